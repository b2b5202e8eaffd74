"""Policies out of tmpfiles.d and back: no more goes than by systemd, and what is written reads the same."""

from __future__ import annotations

import os
import random
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cleanup.engine.area import AreaHandle
from cleanup.engine.globs import escaped_regex, is_match
from cleanup.engine.kernel import DIRECTORY
from cleanup.engine.names import Patterns, escape
from cleanup.engine.plan import build_plan
from cleanup.engine.policy import Policy
from cleanup.engine.scan import Skips, walk
from cleanup.engine.sweep import Event, Sweep
from cleanup.engine.tmpfiles import Line, read
from cleanup.engine.translation import FIRST_LEVEL, Draft, lines_for, translate
from tests.property.test_tmpfiles_oracle import Case

DEEP = bool(os.environ.get("TEST_DEEP"))
CASES = 10_000 if DEEP else 200
EXAMPLES = settings(max_examples=5_000 if DEEP else 100, deadline=None)

pytestmark = [pytest.mark.sqlite_only, pytest.mark.timeout(1800 if DEEP else 400)]


def removed_by_lines(lines: tuple[Line, ...], now: datetime) -> set[bytes]:
    """The regular files that the cleaner would remove."""
    events: list[Event] = []
    sweep = Sweep(lines, now_ns=int(now.timestamp() * 1e9), dry_run=True, on_event=events.append)
    sweep.clean()
    gone = {event.path for event in events if event.action == "removed"}
    return {path for path in gone if os.path.isfile(path) and not os.path.islink(path)}


def trashed_by_policies(drafts: list[Draft], now: datetime) -> set[bytes]:
    """The files that the policies would trash."""
    found: set[bytes] = set()
    for draft in drafts:
        if not os.path.isdir(draft.directory) or os.path.islink(draft.directory):
            continue
        policy = Policy(
            name="p", rule="age", age=draft.age, age_by=draft.age_by, include=draft.include,
            exclude=draft.exclude,
        )  # fmt: skip
        handle = AreaHandle(fd=os.open(draft.directory, DIRECTORY), path="", uuid=str(uuid4()))
        with handle as area:
            candidates = walk(area, policy=policy, on_skip=Skips())
            plan = build_plan(policy, candidates, now=now, area_uuid=area.uuid)
        found |= {os.path.join(draft.directory, m.path) for item in plan.items for m in item.members}
    return found


def test_policies_trash_nothing_that_systemd_would_keep(tmp_path: Path) -> None:
    """Sticky files are left out: no policy knows them. Where both can say the same, the same files go."""
    start = int(os.environ.get("TEST_SEED", random.SystemRandom().randrange(10**9)))
    went = 0
    for seed in range(start, start + CASES):
        case = Case.draw(seed)
        case.entries = [entry for entry in case.entries if entry[1] != "sticky"]
        root, now = tmp_path / str(seed), time.time()
        case.build(root, now)
        moment = datetime.now(UTC)
        config = read(os.fsencode(case.text(root)))
        drafts, _ = translate(config.lines)
        by_lines = removed_by_lines(config.lines, moment)
        by_policies = trashed_by_policies(drafts, moment)
        shown = f"TEST_SEED={seed}\n{case.text(Path('@'))}"
        assert by_policies <= by_lines, f"{by_policies - by_lines} would be lost\n{shown}"
        if not any(line.type in "xX" or b"?" in line.path or b"[" in line.path for line in config.lines):
            assert by_policies == by_lines, f"{by_lines - by_policies} stay\n{shown}"
        went += len(by_policies)
    assert went > CASES // 4


names = st.binary(min_size=1, max_size=6).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..", b".trash")
    and not name.startswith(b".staging-")
)  # fmt: skip
paths = st.lists(names, min_size=1, max_size=3).map(b"/".join)


def quoted(path: bytes) -> str:
    return "/" + "".join(f"[{char}]" if char in "*?[" else char for char in escape(path))


starred = st.lists(st.sampled_from(["*", "a*", "*.b", ".*", "d", "*[*]", "*-*"]), min_size=1, max_size=2)
excludes = st.lists(
    st.one_of(paths.map(quoted), starred.map(lambda parts: "/" + "/".join(parts)), st.just(FIRST_LEVEL)),
    max_size=3, unique=True,
)  # fmt: skip
some_paths = st.lists(
    st.one_of(paths, st.lists(st.sampled_from([b"a", b".b", b"x.b", b".c", b"dc", b"d", b"a*"]), min_size=1,
                              max_size=3).map(b"/".join)),
    max_size=8,
)  # fmt: skip


@EXAMPLES
@given(
    directory=paths,
    age=st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=4000)),
    age_by=st.frozensets(st.sampled_from("abcm"), min_size=1),
    exclude=excludes,
    looked_at=some_paths,
)
def test_what_is_written_as_lines_reads_back_as_the_same_policy(
    directory: bytes, age: timedelta, age_by: frozenset[str], exclude: list[str], looked_at: list[bytes]
) -> None:
    directory = b"/srv/" + directory
    lines = lines_for(directory, age=age, age_by=age_by, exclude=exclude)
    config = read("\n".join(lines).encode())
    assert not config.troubles
    (draft,), _ = translate(config.lines)
    assert (draft.directory, draft.age, draft.age_by, draft.include) == (directory, age, age_by, ())
    before, after = Patterns(exclude, subtree=True), Patterns(draft.exclude, subtree=True)
    for path in looked_at:
        text = escape(path)
        assert (before.match(text) is None) == (after.match(text) is None), text
    if not any("*" in pattern.replace("[*]", "") for pattern in exclude):
        assert set(draft.exclude) == set(exclude)


pieces = st.sampled_from(
    [b"*", b"?", b"[ab]", b"[!a]", b"[a-c]", b"[[:alpha:]]", b"[^\xc3]", b"a", b"b", b".", b"/", b"\\*",
     b"\\\\", "ü".encode(), b"\n", b"[", b"[]a]", b"[z-a]", b"[a-\xff]"]
)  # fmt: skip
bytes_met = st.sampled_from([b"a", b"b", b".", b"/", b"*", b"\\", "ü".encode(), b"\n", b"\xff", b"[", b"]"])


@EXAMPLES
@given(st.lists(pieces, min_size=1, max_size=4), st.lists(bytes_met, min_size=1, max_size=4))
@example([b"*", b"?", b"[ab]"], [b"\n"])
@example([b"?", b"?"], ["ü".encode()])
def test_a_pattern_over_escaped_names_fits_what_it_fits_as_bytes(
    parts: list[bytes], name: list[bytes]
) -> None:
    pattern, path = b"".join(parts), b"".join(name)
    more = Patterns([rf"re:\A{escaped_regex(pattern)}\Z"]).match(escape(path)) is not None
    less = Patterns([rf"re:\A{escaped_regex(pattern, sure=True)}\Z"]).match(escape(path)) is not None
    assert less <= is_match(pattern, path) <= more
    if path.isascii():
        assert less == more
