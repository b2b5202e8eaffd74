"""Judging, naming and planning against independent oracles, over generated input and generated trees."""

from __future__ import annotations

import fnmatch
import os
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cleanup.engine.ages import format_age, parse_age
from cleanup.engine.names import Patterns, escape, unescape
from cleanup.engine.plan import build_plan, decode_items, encode_items
from cleanup.engine.policy import Candidate, Companion, Policy, judge
from cleanup.engine.states import InTrash
from cleanup.engine.trash import observe, purge_batch, restore
from tests.unit.cleanup_engine.kit import AGE, EXPIRY, NOW, Garden, a_stat, ns

NS = 1_000_000_000
NAMES = st.binary(min_size=1, max_size=40).filter(lambda name: b"/" not in name and b"\0" not in name)


@given(st.binary())
def test_escaping_is_printable_and_reverses_exactly(name: bytes) -> None:
    text = escape(name)
    assert text.isprintable()
    assert unescape(text) == name


@given(st.binary(), st.binary())
def test_two_names_are_never_escaped_alike(one: bytes, other: bytes) -> None:
    assert (escape(one) == escape(other)) == (one == other)


@given(st.timedeltas(min_value=timedelta(0)))
def test_a_written_age_is_read_as_the_same_length(age: timedelta) -> None:
    assert parse_age(format_age(age)) == age


@given(st.text("ab*?.", min_size=1, max_size=8), st.text("ab.", min_size=1, max_size=8))
def test_a_glob_on_one_name_agrees_with_the_shells(pattern: str, name: str) -> None:
    while "**" in pattern:
        pattern = pattern.replace("**", "*")
    assert bool(Patterns([pattern]).match(name)) == fnmatch.fnmatchcase(name, pattern)


#: Stamps at, around and far from the cut-off of two days.
STAMPS = st.one_of(
    st.sampled_from([ns(NOW - timedelta(days=2)) + delta for delta in (-1, 0, 1)]),
    st.sampled_from([ns(NOW) + delta for delta in (-1, 0, 1)]),
    st.integers(0, ns(NOW) * 2),
)


@given(
    st.fixed_dictionaries({f"{letter}time_ns": STAMPS for letter in "abcm"}),
    st.sets(st.sampled_from("abcm"), min_size=1),
    st.integers(1, 3),
    st.sampled_from(["file", "dir", "symlink", "other"]),
)
def test_the_age_rule_agrees_with_its_definition(
    stamps: dict[str, int], letters: set[str], nlink: int, kind: str
) -> None:
    """It goes if and only if it is a plain single file and the newest selected stamp is below the cut-off."""
    policy = msgspec.structs.replace(AGE, age_by=frozenset(letters))
    verdict = judge(policy, Candidate(b"x", a_stat(**stamps, nlink=nlink, kind=kind)), now=NOW)
    cutoff = int(NOW.timestamp()) * NS - 2 * 86400 * NS
    newest = max(stamps[f"{letter}time_ns"] for letter in letters)
    assert (verdict.action == "trash") == (kind == "file" and nlink == 1 and newest < cutoff)


@given(
    st.datetimes(timezones=st.one_of(st.none(), st.timezones())),
    st.timezones(),
    st.datetimes(timezones=st.just(UTC)),
)
def test_a_result_never_goes_before_any_reading_of_its_expiry_has_passed(
    expires_at: datetime, zone: object, now: datetime
) -> None:
    policy = msgspec.structs.replace(EXPIRY, naive_timezone=zone)
    companion = Companion(b"r.metadata.json", a_stat(), expires_at)
    verdict = judge(policy, Candidate(b"r.result.json.lz4", a_stat(), companion), now=now)
    if verdict.action == "trash":
        placed = expires_at if expires_at.tzinfo else expires_at.replace(tzinfo=zone)  # type: ignore[arg-type]
        readings = [placed] if expires_at.tzinfo else [placed.replace(fold=0), placed.replace(fold=1)]
        assert all(now > reading.astimezone(UTC) for reading in readings)


@given(st.lists(st.tuples(NAMES, STAMPS, st.integers(0, 10**12)), max_size=20), st.randoms())
def test_the_digest_depends_on_the_files_alone(files: list[tuple[bytes, int, int]], random: object) -> None:
    unique = {name: Candidate(name, a_stat(mtime_ns=stamp, size=size)) for name, stamp, size in files}
    shuffled = list(unique.values())
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one = build_plan(AGE, unique.values(), now=NOW, area_uuid="a")
    other = build_plan(AGE, shuffled, now=NOW, area_uuid="a")
    assert one.digest == other.digest
    assert decode_items(encode_items(one.items)) == one.items
    assert len(one.items) + sum(one.kept.values()) == one.scanned == len(unique)


FILES = st.dictionaries(
    st.lists(NAMES.map(lambda name: b"f" + name), min_size=1, max_size=3).map(b"/".join),
    st.tuples(st.binary(max_size=20), st.integers(-3, 6)),
    max_size=12,
)


def plant(garden: Garden, files: dict[bytes, tuple[bytes, int]]) -> dict[bytes, tuple[bytes, int]]:
    """Write what can be written: a name may be a directory of another."""
    planted = {}
    for name, (content, days) in files.items():
        try:
            garden.write(name, content, days=days)
        except OSError:
            continue
        planted[name] = (content, days)
    return planted


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(FILES, st.integers(0, 4), st.booleans())
def test_what_is_gone_is_exactly_what_an_oracle_says_and_all_of_it_comes_back(
    files: dict[bytes, tuple[bytes, int]], age_days: int, give_back: bool
) -> None:
    policy = Policy(name="p", rule="age", age=timedelta(days=age_days))
    with tempfile.TemporaryDirectory() as folder:
        garden = Garden(Path(folder))
        planted = plant(garden, files)
        survivors = {name for name, (_, days) in planted.items() if days <= age_days}
        with garden.open() as area, area.lock():
            moved = garden.trash(area, policy) if survivors != set(planted) else []
            assert {one.outcome for one in moved} <= {"trashed"}
            assert garden.files() == survivors
            ids = [one.trash_id for one in moved]
            if give_back:
                assert {restore(area, trash_id).outcome for trash_id in ids} <= {"restored"}
                assert {name: garden.read(name) for name in garden.files()} == {
                    name: content for name, (content, _) in planted.items()
                }
            else:
                freed = sum(len(content) for name, (content, _) in planted.items() if name not in survivors)
                assert sum(one.bytes for one in purge_batch(area, ids)) == freed
                assert garden.files() == survivors
            assert garden.trashed_files() == set()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(FILES, st.data())
def test_a_file_that_changed_after_the_plan_always_survives(
    files: dict[bytes, tuple[bytes, int]], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        garden = Garden(Path(folder))
        planted = plant(garden, {name: (content, 10) for name, (content, _) in files.items()})
        with garden.open() as area, area.lock():
            items = garden.plan(area).items
            touched = data.draw(st.sets(st.sampled_from(sorted(planted)))) if planted else set()
            for name in touched:
                os.unlink(garden.path(name))
                garden.write(name, b"fresh content, longer than any that was there before")
            if items:
                prepared = garden.prepare(area, items)
                moved = dict(zip((item.path for item in items), _move(area, prepared), strict=True))
                assert {name for name, outcome in moved.items() if outcome == "changed"} == touched
                gone = [item for item in items if item.path not in touched]
                assert all(
                    observe(area, item, trash_id).trash is InTrash.WHOLE
                    for item, trash_id in zip(items, prepared.ids, strict=True)
                    if item in gone
                )
            assert garden.files() == touched


def _move(area: object, prepared: object) -> list[str]:
    from cleanup.engine.trash import move

    return [moved.outcome for moved in move(area, prepared)]  # type: ignore[arg-type]
