"""Kills `python -m cleanup.engine` at every single step of its commands; prints what was wrong afterwards.

`python -m tests.e2e.engine_crasher FOLDER FIRST EVERY` takes the steps FIRST, FIRST + EVERY and so on. For
each a child is forked, which dies there, and another, which comes after it; so a crash costs milliseconds. It
runs in a process of its own, because only one without threads may fork.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from cleanup.engine import faults
from cleanup.engine.cli import main as command

#: More steps than any command takes on the small area below.
MANY = 150

#: What the audit calls the outcome of each.
DONE = {"run": "trashed", "purge": "purged", "restore": "restored", "rename": "restored"}

VERBS = {
    "run": ["run"],
    "purge": ["purge", "in", "--now", "test"],
    "restore": ["restore", "in"],
    "rename": ["restore", "in", "--path", "deep/b", "--to", "else/where"],
}


class Box:
    """An area with files that go and one that stays."""

    def __init__(self, root: Path) -> None:
        self.root, self.area, self.file = root, root / "in", root / "c.toml"
        (self.area / "deep").mkdir(parents=True)
        for name in ("a", "deep/b", "r.result.json.lz4"):
            (self.area / name).write_text(name)
            os.utime(self.area / name, (time.time() - 9e5,) * 2)
        (self.area / "r.metadata.json").write_text('{"expires_at": "2020-01-01T00:00:00Z"}')
        (self.area / "new").write_text("new")
        common = 'area = "in"\nmode = "enforce"\nmax_percent = 100\n'
        self.file.write_text(
            f'state = "state"\n[areas.in]\npath = "{self.area}"\n[policies.results]\n{common}'
            f'rule = "expires_at"\n[policies.old]\n{common}rule = "age"\nage = "2d"\nexclude = ["r.*"]\n'
        )

    def __call__(self, *words: str, fault: str = "") -> int:
        """Run a command in a forked child; return how it ended."""
        child = os.fork()
        if not child:
            os.dup2(os.open(self.root / "out", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 1)
            faults._armed = faults._first_of_ours(fault)
            os._exit(command([*words, "--config", str(self.file), "--json"]))
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def contents(self) -> Counter[str]:
        """Every content in the area and in its trash."""
        names = (".staging-area", "manifest.json", ".ballast")
        return Counter(
            path.read_text() for path in self.area.rglob("*")
            if path.is_file() and path.name not in names and not path.name.startswith(".staging")
        )  # fmt: skip

    def noted(self, action: str) -> Counter[str]:
        """What the audit says has happened, by path."""
        lines = (self.root / "state" / "audit.jsonl").read_text().splitlines()
        entries = [json.loads(line) for line in lines]
        return Counter(entry["path"] for entry in entries if entry["action"] == action)


def one_crash(root: Path, verb: str, step: int) -> tuple[bool, list[str]]:
    """Crash one command at one step; return whether it got so far, and what was wrong afterwards."""
    box = Box(root)
    box("register")
    if verb != "run":
        box("run")
    before = box.contents()
    ended = box(*VERBS[verb], fault=f"*:{step}:kill")
    wrong = []
    if verb != "purge" and box.contents() != before:
        wrong.append(f"{verb} {step}: lost {before - box.contents()}")
    # The next command finishes what is open; this one has nothing of its own to do.
    if box("purge") != 0:
        wrong.append(f"{verb} {step}: the next command failed")
    wrong += [f"{verb} {step}: {one}" for one in check(box, before, verb)]
    return ended == -signal.SIGKILL, wrong


def check(box: Box, before: Counter[str], verb: str) -> list[str]:
    """Say in what the audit and the disk differ, and whether the command can be done again."""
    trash = box.area / ".trash"
    inside = Counter(path.read_text() for path in trash.rglob("data/*")) if trash.exists() else Counter()
    gone = before - box.contents()
    wrong = [] if gone.total() == 0 or verb == "purge" else [f"lost {gone}"]
    if any(count > 1 for count in box.noted(DONE[verb]).values()):
        wrong.append("the audit tells of one file twice")
    trashed = box.noted("trashed").total() - box.noted("restored").total() - box.noted("purged").total()
    items = sum(1 for name in ("a", "deep/b", "r.result.json.lz4") if name in inside)
    if trashed != items:
        wrong.append(f"the audit knows of {trashed} items in the trash, which holds {items}")
    if verb == "purge" and inside:
        again = box(*VERBS[verb])
        if again != 0 or any(trash.rglob("data/*")):
            wrong.append("the rest could not be purged")
    if box("verify") != 0:
        wrong.append("the audit is not sound")
    return wrong


def main() -> None:
    root, first, every = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    wrong: list[str] = []
    steps: dict[str, int] = {}
    for verb in VERBS:
        for step in range(first, MANY, every):
            folder = root / f"{verb}{step}"
            killed, found = one_crash(folder, verb, step)
            wrong += found
            shutil.rmtree(folder)
            if not killed:
                break
            steps[verb] = step
    print(json.dumps({"wrong": wrong, "steps": steps}))  # noqa: T201  (it is what this program is for)


if __name__ == "__main__":
    main()
