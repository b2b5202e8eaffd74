"""Crash points of the bus: they are all in the code, and a misspelt one is a mistake."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from bus import faults
from tests.servers import environment, python


def test_a_fault_that_is_misspelt_is_a_mistake():
    text = "log.after_insert:1:kill,log.after_trim:2:hang,trash.after_rename:1:ENOSPC"
    assert faults.parse(text).keys() == {"log.after_insert", "log.after_trim"}
    for wrong in (
        "log.after_insert:x:kill",
        "log.after_insert:1:explode",
        "log.nowhere:1:kill",
        "hub.nowhere:1:kill",
        "log.after_trim",
    ):
        with pytest.raises(ValueError, match="FAULT"):
            faults.parse(wrong)


def test_every_crash_point_of_the_bus_is_in_the_code_once():
    code = "".join(path.read_text() for path in Path(faults.__file__).parent.rglob("*.py"))
    placed = re.findall(r'\bfault\("([a-z_.]+)"\)', code)
    assert {name: placed.count(name) for name in set(placed) if placed.count(name) > 1} == PLACED_TWICE
    assert set(placed) == faults.POINTS
    assert len(faults.POINTS) >= 25


#: `append` and `append_each` end alike.
PLACED_TWICE = {"log.after_commit": 2}


def test_a_process_that_is_killed_at_a_point_says_at_which():
    killed = subprocess.run(
        [python(), "-c", "from bus.faults import fault; [fault('hub.tick') for _ in range(5)]"],
        env=environment(FAULT="log.after_commit:1:kill,hub.tick:3:kill"),
        capture_output=True,
        timeout=90,
    )
    assert (killed.returncode, killed.stderr) == (-9, b"fault hub.tick\n")


def test_both_libraries_read_the_points_of_one_variable():
    """Each takes what is its own, however many there are, and leaves the rest to the other."""
    code = (
        "from bus import faults as b; from cleanup.engine import faults as c; print(*b._armed, c._armed.name)"
    )
    both = subprocess.run(
        [python(), "-c", code],
        env=environment(FAULT="hub.tick:1:hang,trash.after_rename:2:ENOSPC,log.after_commit:3:kill"),
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert both.stdout.split() == ["hub.tick", "log.after_commit", "trash.after_rename"], both.stderr
