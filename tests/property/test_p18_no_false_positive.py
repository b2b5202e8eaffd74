"""Nothing goes that a policy does not let go, and everything goes that it does: trees x policies x an oracle.

Each case is a small real tree, a policy of any rule over files, holds and a moment. The engine walks, plans
and moves; what is left must be exactly what `oracle.survivors` says, and what was moved exactly what the plan
names. A case is drawn from one seed, which a failure prints: `TEST_SEED=<seed>` runs that one again.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cleanup.engine.area import AreaHandle, open_area, register_area
from cleanup.engine.candidates import Candidate
from cleanup.engine.errors import PolicyInvalid
from cleanup.engine.kernel import birth_ns
from cleanup.engine.plan import Hold, Plan, build_plan
from cleanup.engine.policy import Policy
from cleanup.engine.scan import Skips, walk
from cleanup.engine.sieve import sieve_for
from cleanup.engine.trash import Header, move, prepare, trash_ids
from tests.property.oracle import KEYS, PATTERNS, Planted, World, survivors

DEEP = bool(os.environ.get("TEST_DEEP"))
CASES = 50_000 if DEEP else 2_000
#: Cases in which each slip has to show.
PATIENCE = 1_500

DAY_NS = 86_400 * 10**9
AGE = timedelta(days=2)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

FOLDERS = [b"", b"job-1", b"job-1/sub", b"job-2", b"job-2/keep", b"job-3", b"other.log", b"other.log/job-1"]
NAMES = [b"a", b"a.log", b"b", b"keep", b"x\n\xff", b"job-1.txt", "ü".encode(), b"Z"]
LETTERS = ["m", "m", "m", "a", "c", "b", "am", "acm", "abcm"]
DIRECTORY_LETTERS = ["", "", "M", "A", "AM", "C", "B"]


class Plot:
    """One area, planted anew for each case."""

    def __init__(self, root: Path) -> None:
        self.root = os.fsencode(root / "area")
        self.outside = os.fsencode(root / "outside")
        os.mkdir(self.root)
        os.mkdir(self.outside)
        self.uuid = uuid4()
        register_area(self.root, self.uuid)
        self.area: AreaHandle = open_area(self.root, uuid=self.uuid)

    def clear(self) -> None:
        """Leave nothing but the marker."""
        for entry in os.scandir(self.root):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            elif entry.name != b".staging-area":
                os.unlink(entry.path)
        for name in os.listdir(self.outside):
            os.unlink(os.path.join(self.outside, name))

    def path(self, below: bytes) -> bytes:
        return os.path.join(self.root, below)

    def left(self) -> set[bytes]:
        """Everything that is there, but for the engine's own."""
        found, pending = set[bytes](), [b""]
        while pending:
            directory = pending.pop()
            for entry in os.scandir(self.path(directory) if directory else self.root):
                below = os.path.join(directory, entry.name)
                if below in (b".trash", b".staging-area"):
                    continue
                found.add(below)
                if entry.is_dir(follow_symlinks=False):
                    pending.append(below)
        return found


class Sowing:
    """Plants the tree of one seed."""

    def __init__(self, plot: Plot, draw: random.Random) -> None:
        self.plot, self.draw = plot, draw
        self.things: dict[bytes, Planted] = {}
        #: Long after now or hardly: how stamps that cannot be set compare with the cut-off.
        self.now_ns = time.time_ns() // 1000 * 1000 + draw.choice([DAY_NS * 10, 3600 * 10**9])
        self.rule = draw.choice(["age", "expires_at", "keep_newest", "watermark", "orphan"])

    def world(self) -> World:
        """Plant, and draw a policy."""
        for _ in range(self.draw.randint(1, 10)):
            self.plant()
        self.stamp_directories()
        policy = self.policy()
        holds = [self.hold() for _ in range(self.draw.choice([0, 0, 1, 2]))]
        files = sorted(path for path, thing in self.things.items() if thing.kind == "file")
        return World(
            things=self.things, policy=policy, now_ns=self.now_ns, holds=[hold for hold, _ in holds],
            held_now=[counts for _, counts in holds], needed=self.draw.choice([0, 1, 10, 25, 60, 1000]),
            orphans={path for path in files if self.draw.random() < 0.7},
        )  # fmt: skip

    # The tree

    def plant(self) -> None:
        folder = self.draw.choice(FOLDERS)
        if not self.folder(folder):
            return
        if self.rule == "expires_at" and self.draw.random() < 0.7:
            self.result(folder)
            return
        path = os.path.join(folder, self.draw.choice(NAMES))
        if path in self.things:
            return
        kinds = ["file"] * 14 + ["link", "fifo", "socket", "hard", "hard", "own", "nested"]
        kind = self.draw.choice(kinds)
        getattr(self, f"plant_{kind}")(path, folder)

    def folder(self, folder: bytes) -> bool:
        """Make a directory and those above it; False where something else has the name."""
        parts = folder.split(b"/") if folder else []
        for depth in range(1, len(parts) + 1):
            path = b"/".join(parts[:depth])
            if path not in self.things:
                os.mkdir(self.plot.path(path))
                self.things[path] = Planted(path=path, kind="dir")
            elif self.things[path].kind != "dir":
                return False
        return True

    def plant_file(self, path: bytes, folder: bytes, content: bytes | None = None) -> Planted:
        content = b"x" * self.draw.choice([0, 1, 5, 10, 20, 20]) if content is None else content
        with open(self.plot.path(path), "wb") as file:
            file.write(content)
        thing = Planted(path=path, kind="file", size=len(content), stamps=self.stamps(self.plot.path(path)))
        self.things[path] = thing
        return thing

    def plant_link(self, path: bytes, folder: bytes) -> None:
        target = self.draw.choice([b"/nowhere", b"a", self.plot.outside, b".."])
        os.symlink(target, self.plot.path(path))
        self.things[path] = Planted(path=path, kind="link")

    def plant_fifo(self, path: bytes, folder: bytes) -> None:
        os.mkfifo(self.plot.path(path))
        self.things[path] = Planted(path=path, kind="fifo")

    def plant_socket(self, path: bytes, folder: bytes) -> None:
        os.mknod(self.plot.path(path), stat.S_IFSOCK | 0o600)
        self.things[path] = Planted(path=path, kind="socket")

    def plant_hard(self, path: bytes, folder: bytes) -> None:
        thing = self.plant_file(path, folder)
        if self.draw.random() < 0.5:
            os.link(self.plot.path(path), os.path.join(self.plot.outside, b"%d" % len(self.things)))
        else:
            other = path + b".too"
            os.link(self.plot.path(path), self.plot.path(other))
            self.things[other] = Planted(path=other, kind="file", size=thing.size, links=2)
            self.things[other].stamps = thing.stamps
        thing.links = 2
        thing.stamps |= self.fixed(self.plot.path(path))

    def plant_own(self, path: bytes, folder: bytes) -> None:
        """Something of the engine's own; at the top the trash itself is the engine's to make."""
        name = self.draw.choice([b".staging-x", b".trash"]) if folder else b".staging-x"
        if os.path.join(folder, name) not in self.things and self.folder(os.path.join(folder, name)):
            self.plant_file(os.path.join(folder, name, b"a"), folder)

    def plant_nested(self, path: bytes, folder: bytes) -> None:
        """Make a directory an area of its own, if it has not been made one yet."""
        if folder and os.path.join(folder, b".staging-area") not in self.things:
            self.plant_file(os.path.join(folder, b".staging-area"), folder, b"{}")

    def result(self, folder: bytes) -> None:
        stem = os.path.join(folder, self.draw.choice([b"r", b"s", b"keep", b"t.log"]))
        result, metadata = stem + b".result.json.lz4", stem + b".metadata.json"
        if result in self.things or metadata in self.things:
            return
        kind = self.draw.choice(
            ["expired"] * 6 + ["now", "future", "bad", "none", "directory", "link", "hard"]
        )
        thing = self.plant_file(result, folder)
        thing.companion = "expired" if kind in ("expired", "hard") else kind
        if kind == "directory":
            self.folder(metadata)
        elif kind == "link":
            self.plant_link(metadata, folder)
        elif kind != "none":
            self.metadata(metadata, folder, kind)

    def metadata(self, path: bytes, folder: bytes, kind: str) -> None:
        moments = {"now": 0, "future": 1, "expired": -self.draw.choice([1, 10**6, 10**12])}
        if kind == "bad":
            content = self.draw.choice([
                b"", b"{}", b"[]", b'{"expires_at": 1}', b'{"expires_at": "soon"}', b"\xff",
                b'{"expires_at": "2020-01-01"}', b'{"expires_at": "2020-01-01T00:00:00", "expires_at": ""}',
            ])  # fmt: skip
        else:
            at = EPOCH + timedelta(microseconds=self.now_ns // 1000 + moments.get(kind, -1))
            at = at.replace(tzinfo=None) if self.draw.random() < 0.3 else at
            content = json.dumps({"expires_at": at.isoformat()}).encode()
        thing = self.plant_file(path, folder, content)
        if kind == "hard":
            os.link(self.plot.path(path), os.path.join(self.plot.outside, b"%d" % len(self.things)))
            thing.links = 2

    # Stamps

    def stamps(self, path: bytes) -> dict[str, int | None]:
        """Set the stamps that can be set; return all of them."""
        chosen = {letter: self.stamp() for letter in "am"}
        os.utime(path, ns=(chosen["a"], chosen["m"]), follow_symlinks=False)
        return {**chosen, **self.fixed(path)}

    def stamp(self) -> int:
        cutoff = self.now_ns - 2 * DAY_NS
        near = [cutoff - 1, cutoff, cutoff + 1, self.now_ns, self.now_ns + 1, self.now_ns + DAY_NS]
        old = [cutoff - DAY_NS, cutoff - DAY_NS - 1, 10**9, cutoff - 5]
        return self.draw.choice(near + old * 3)

    def fixed(self, path: bytes) -> dict[str, int | None]:
        """Those that nobody can set: change and birth, of a moment ago."""
        found = os.lstat(path)
        return {"c": found.st_ctime_ns, "b": birth_ns(self.plot.area.fd, path)}

    def stamp_directories(self) -> None:
        """Last of all, the deepest first: making a name in a directory changes it."""
        for path in sorted((p for p, thing in self.things.items() if thing.kind == "dir"), reverse=True):
            self.things[path].stamps = self.stamps(self.plot.path(path))

    # The policy

    def some(self, *, often: float) -> tuple[str, ...]:
        if self.draw.random() > often:
            return ()
        return tuple(self.draw.sample(sorted(PATTERNS), self.draw.choice([1, 1, 2])))

    def policy(self) -> Policy:
        draw, fields = self.draw, dict[str, Any]()
        if self.rule != "expires_at":
            fields["age"] = AGE if self.rule in ("age", "orphan") else draw.choice([None, AGE])
            fields["age_by"] = frozenset(draw.choice(LETTERS))
        if self.rule == "keep_newest":
            fields["keep"] = draw.choice([1, 1, 2, 3])
            fields["group_pattern"] = draw.choice([None, *KEYS])
        if self.rule == "watermark":
            fields["order_by"] = draw.choice(["age", "size"])
        if self.rule in ("age", "keep_newest", "watermark") and draw.random() < 0.5:
            fields |= self.bundles(fields["age_by"])
        policy = Policy(
            name="case", rule=self.rule, include=self.some(often=0.3), exclude=self.some(often=0.3),
            allow_hardlinks=draw.random() < 0.3, **fields,
        )  # fmt: skip
        policy.validate()
        return policy

    def bundles(self, age_by: frozenset[str]) -> dict[str, Any]:
        if self.draw.random() < 0.4:
            return {"unit": "bundle", "bundle_pattern": self.draw.choice(list(KEYS))}
        upper = self.draw.choice(DIRECTORY_LETTERS)
        lower = frozenset() if upper and self.draw.random() < 0.3 else age_by
        return {"unit": "bundle", "age_by": lower | frozenset(upper)}

    def hold(self) -> tuple[Hold, bool]:
        """A hold, and whether it counts now."""
        now = EPOCH + timedelta(microseconds=self.now_ns // 1000)
        after = self.draw.choice([None, -1, 0, 1])
        until = None if after is None else now + timedelta(microseconds=after)
        return Hold(pattern=self.draw.choice(sorted(PATTERNS)), until=until), after in (None, 1)


def carried_out(plot: Plot, world: World) -> tuple[Plan, set[bytes]]:
    """Plan and move; return the plan and what the moves say is in the trash."""
    now = EPOCH + timedelta(microseconds=world.now_ns // 1000)
    sieve = sieve_for(world.policy, now=now)
    found: Iterator[Candidate] = walk(plot.area, policy=world.policy, on_skip=Skips(), sieve=sieve)
    if world.policy.rule == "orphan":
        found = (one for one in found if one.path in world.orphans)
    plan = build_plan(
        world.policy, found, now=now, area_uuid=plot.area.uuid, holds=world.holds, needed=world.needed,
        sieve=sieve,
    )  # fmt: skip
    if not plan.items:
        return plan, set()
    ids = trash_ids(uuid4(), len(plan.items), day=now.date())
    header = Header(
        policy="case", policy_version="1", run="run", trashed_at=now, purge_after=now + timedelta(days=7)
    )
    with plot.area.lock():
        moved = move(plot.area, prepare(plot.area, plan.items, ids=ids, header=header))
    assert {one.outcome for one in moved} == {"trashed"}, moved
    return plan, {member.path for item in plan.items for member in item.members}


def judge_case(plot: Plot, seed: int) -> int:
    """Carry out the case of one seed; return how many files went."""
    plot.clear()
    world = Sowing(plot, random.Random(seed)).world()
    stays, note = survivors(world), f"TEST_SEED={seed}: {world.policy}"
    plan, moved = carried_out(plot, world)
    left = plot.left()
    assert left - stays == set(), f"{note}\nshould have gone: {sorted(left - stays)}"
    assert stays - left == set(), f"{note}\nWRONGLY GONE: {sorted(stays - left)}"
    assert moved == set(world.things) - left, f"{note}\nthe plan is not what happened"
    assert plan.files == len(moved), note
    return len(moved)


@pytest.fixture(scope="module")
def plot() -> Iterator[Plot]:
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        made = Plot(Path(folder))
        yield made
        made.area.close()


@pytest.mark.sqlite_only
@pytest.mark.timeout(7200 if DEEP else 600)
def test_what_is_left_is_exactly_what_the_rules_say(plot: Plot) -> None:
    if "TEST_SEED" in os.environ:
        judge_case(plot, int(os.environ["TEST_SEED"]))
        return
    went: list[int] = []

    @settings(max_examples=CASES, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
    @given(seed=st.integers(0, 2**48))
    def case(seed: int) -> None:
        went.append(judge_case(plot, seed))

    case()
    assert len(went) > CASES * 9 // 10
    assert sum(count > 0 for count in went) > CASES // 4, "nothing goes: these cases judge nothing"


#: A slip of each kind: what an engine that has it would take the policy, or the world, for.
SLIPS: dict[str, Callable[[World], dict[str, Any]]] = {
    "the age is a microsecond short": lambda world: {"age": AGE - timedelta(microseconds=1)},
    "exclude is not heeded": lambda world: {"exclude": ()},
    "include is not heeded": lambda world: {"include": ()},
    "another stamp is looked at": lambda world: {"age_by": frozenset("m")},
    "hard links go": lambda world: {"allow_hardlinks": True},
    "one more is kept": lambda world: {"keep": (world.policy.keep or 1) + 1},
    "bundles are torn apart": lambda world: {"unit": "file", "bundle_pattern": None},
    "groups are directories": lambda world: {"group_pattern": None},
    "the order is another": lambda world: {"order_by": "size"},
}


@pytest.mark.sqlite_only
@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_of_the_engine_is_found(plot: Plot, slip: str) -> None:
    for seed in range(PATIENCE):
        plot.clear()
        world = Sowing(plot, random.Random(seed)).world()
        stays, right = survivors(world), world.policy
        world.policy = msgspec.structs.replace(right, **SLIPS[slip](world))
        if _obeyable(world.policy):
            carried_out(plot, world)
            if plot.left() != stays:
                return
    raise AssertionError(f"no case of {PATIENCE} shows that {slip}")


@pytest.mark.sqlite_only
def test_a_hold_that_is_not_heeded_is_found(plot: Plot) -> None:
    for seed in range(PATIENCE):
        plot.clear()
        world = Sowing(plot, random.Random(seed)).world()
        stays = survivors(world)
        world.holds = []
        carried_out(plot, world)
        if plot.left() != stays:
            return
    raise AssertionError(f"no case of {PATIENCE} shows that holds are not heeded")


def _obeyable(policy: Policy) -> bool:
    try:
        policy.validate()
    except PolicyInvalid:
        return False
    return True
