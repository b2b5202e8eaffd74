"""Our cleaner against Debian's `systemd-tmpfiles`: the same lines, the same trees, the same survivors."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import stat
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cleanup.engine.globs import is_match
from cleanup.engine.sweep import Event, Sweep
from cleanup.engine.tmpfiles import read

ORACLE = shutil.which("systemd-tmpfiles")
CASES = 50_000 if os.environ.get("TEST_DEEP") else 2_000
REMOVALS = 10_000 if os.environ.get("TEST_DEEP") else 300
#: Trees in one call of the oracle: most of a call is its start.
TOGETHER = 50
DAY = 86_400
NAMES = ("a", "b", "c.tmp", "d.log", ".hidden", "sp ace", "b\\s", "[x]", "x", "keep", "new\nline", "ü")
AGES = ("0", "1us", "1d", "2d", "3d", "1w", "10d", "1M", "infinity", "1d 12h")
STAMPS = ("", "m:", "a:", "am:", "mM:", "aA:", "amM:", "mAM:", "M:", "c:", "b:", "bM:", "abcmABCM:")

pytestmark = [
    pytest.mark.sqlite_only,
    pytest.mark.timeout(600),
    pytest.mark.skipif(ORACLE is None, reason="there is no systemd-tmpfiles (systemd-standalone-tmpfiles)"),
]


@dataclass
class Case:
    """One tree and its lines; `build` makes the same tree in any place."""

    seed: int
    entries: list[tuple[str, str, int, int]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    #: Directories that somebody holds a lock on.
    locked: list[str] = field(default_factory=list)

    @classmethod
    def draw(cls, seed: int, kinds: str = "ddeexXvqQD") -> Case:
        dice, case = random.Random(seed), cls(seed)
        folders = [""]
        for _ in range(dice.randrange(4, 18)):
            path = f"{dice.choice(folders)}/{dice.choice(NAMES)}"
            if any(path == entry[0] for entry in case.entries):
                continue
            kind = dice.choices(("dir", "file", "sticky", "link", "fifo"), (5, 8, 1, 1, 1))[0]
            days = [dice.choice((-2, 0, 1, 2, 3, 5, 8, 20, 40, 400)) for _ in "am"]
            # The oracle's pattern matching follows links, which renews their time of access.
            case.entries.append((path, kind, 0 if kind == "link" else days[0], days[1]))
            if kind == "dir":
                folders.append(path)
        # Debian's version reads `\\n` in a line as an n; newer ones, and we, as a line feed.
        places = [place for place in folders + [entry[0] for entry in case.entries] if "\n" not in place]
        cleaned: list[str] = []
        for number in range(dice.randrange(1, 6)):
            kind, place, age = _draw_line(dice, places, kinds, first=not number)
            here = [folder for folder in folders if _fits(os.fsencode(place), folder, kind)]
            # In which of two lines' turn a directory is cleaned that both name depends on a hash there.
            if not set(here) & set(cleaned):
                cleaned += here
                case.lines.append(f"{kind} {_quoted('@' + place)} - - - {_quoted(age)} -")
        case.locked = [folder for folder in folders[1:] if dice.random() < 0.1]
        return case

    def lock(self, root: Path) -> list[int]:
        """Lock what is to be locked; return the descriptors."""
        held = [
            os.open(f"{root}{folder}", os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME) for folder in self.locked
        ]
        for descriptor in held:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        return held

    def build(self, root: Path, now: float) -> None:
        root.mkdir(parents=True)
        for path, kind, _, _ in self.entries:
            place = f"{root}{path}"
            if kind == "dir":
                os.mkdir(place)
            elif kind == "link":
                os.symlink("/etc", place)
            elif kind == "fifo":
                os.mkfifo(place)
            else:
                Path(place).write_text(path)
                os.chmod(place, 0o1644 if kind == "sticky" else 0o644)
        for path, _, access, change in reversed(self.entries):
            stamps = (now - access * DAY - 7, now - change * DAY - 7)
            os.utime(f"{root}{path}", stamps, follow_symlinks=False)

    def text(self, root: Path) -> str:
        return "".join(line.replace("@", str(root)) + "\n" for line in self.lines)


def _draw_line(dice: random.Random, places: list[str], kinds: str, *, first: bool) -> tuple[str, str, str]:
    kind = kinds[0] if first else dice.choice(kinds)
    place = "" if first else dice.choice(places)
    if kind in "exXrR" and dice.random() < 0.6:
        parts = place.split("/")
        parts[-1] = dice.choice(("*", "?", "*.tmp", "[ab]", "[!a]*", ".*")) if parts[-1] else ""
        place = "/".join(parts)
    elif kind in "exXrR":
        place = "".join(f"\\{char}" if char in "[\\" else char for char in place)
    age = dice.choice(("-", *AGES)) if kind in "xX" or dice.random() < 0.1 else dice.choice(AGES)
    return kind, place, age if age == "-" else f"{dice.choice(('', '', '~'))}{dice.choice(STAMPS)}{age}"


def _fits(pattern: bytes, folder: str, kind: str) -> bool:
    return is_match(pattern, os.fsencode(folder)) if kind in "eXrR" else pattern == os.fsencode(folder)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("%", "%%")
    return f'"{escaped}"' if escaped != text or " " in text else text


def survivors(root: Path, case: Case, now: float) -> dict[str, tuple[int, bool]]:
    """What is left: path to its kind, and whether its time of change is still the one that was set."""
    changes = {path: change for path, _, _, change in case.entries}
    left = {}
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            path = os.path.join(folder, name).removeprefix(str(root))
            found = os.lstat(f"{root}{path}")
            kept = abs(found.st_mtime - (now - changes[path] * DAY - 7)) < 1
            left[path] = (stat.S_IFMT(found.st_mode), kept)
    return left


def clean_here(text: str, *, remove: bool) -> None:
    events: list[Event] = []
    config = read(os.fsencode(text))
    sweep = Sweep(config.lines, now_ns=time.time_ns(), on_event=events.append)
    sweep.remove() if remove else sweep.clean()


def clean_there(text: str, place: Path, *, remove: bool) -> None:
    place.write_text(text)
    action = "--remove" if remove else "--clean"
    done = subprocess.run([str(ORACLE), action, str(place)], capture_output=True, text=True, check=False)
    # 65: a line was refused; 73: a directory that is not empty could not be removed.
    assert done.returncode in (0, 65, 73), done.stderr


def compare(cases: list[Case], folder: Path, *, remove: bool = False) -> list[str]:
    """Return what differs, one sentence each."""
    now = time.time()
    ours, theirs = folder / "ours", folder / "theirs"
    for case in cases:
        case.build(ours / str(case.seed), now)
        case.build(theirs / str(case.seed), now)
    held = [one for case in cases for root in (ours, theirs) for one in case.lock(root / str(case.seed))]
    time.sleep(0.01)
    clean_here("".join(case.text(ours / str(case.seed)) for case in cases), remove=remove)
    text = "".join(case.text(theirs / str(case.seed)) for case in cases)
    clean_there(text, folder / "lines.conf", remove=remove)
    for descriptor in held:
        os.close(descriptor)
    differences = []
    for case in cases:
        here = survivors(ours / str(case.seed), case, now)
        there = survivors(theirs / str(case.seed), case, now)
        if here != there:
            names = sorted(set(here.items()) ^ set(there.items()))
            differences.append(f"seed {case.seed}: {names}\n{case.text(Path('@'))}")
    shutil.rmtree(ours)
    shutil.rmtree(theirs)
    return differences


def test_the_same_lines_on_the_same_trees_leave_the_same_survivors(tmp_path: Path) -> None:
    start = int(os.environ.get("TEST_SEED", random.SystemRandom().randrange(10**9)))
    for first in range(start, start + CASES, TOGETHER):
        differences = compare(
            [Case.draw(seed) for seed in range(first, first + TOGETHER)], tmp_path / str(first)
        )
        assert not differences, f"TEST_SEED={start}\n" + "\n".join(differences[:3])


def plain_removal(seed: int) -> Case:
    """One line that removes, on a tree without what only newer versions spare: see `Sweep.remove`."""
    case = Case.draw(seed, "drRD")
    case.lines, case.locked = case.lines[:2], []
    case.entries = [(path, "file" if kind == "sticky" else kind, *days) for path, kind, *days in case.entries]
    return case


def test_what_a_line_removes_at_any_age_is_the_same(tmp_path: Path) -> None:
    start = int(os.environ.get("TEST_SEED", random.SystemRandom().randrange(10**9)))
    for first in range(start, start + REMOVALS, TOGETHER):
        cases = [plain_removal(seed) for seed in range(first, first + TOGETHER)]
        differences = compare(cases, tmp_path / str(first), remove=True)
        assert not differences, f"TEST_SEED={start}\n" + "\n".join(differences[:3])
