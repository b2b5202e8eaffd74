"""Other programs that do the same work, and our own children: each run once, with its time and its memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cleanup.engine.errors import EngineError


class BenchFailed(EngineError):
    """A program that was to be measured failed."""

    code = "bench_failed"


def installed(program: str) -> str | None:
    """Where a program is, if it is installed."""
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")


def run(command: Sequence[str], *, codes: Sequence[int] = (0,)) -> tuple[float, float]:
    """Run a program to its end and return the seconds that it took, and how many of processor time.

    Raises:
        BenchFailed: it ended with a code that is not among `codes`.
    """
    began, cpu = time.perf_counter(), _of_children()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    seconds, cpu = time.perf_counter() - began, _of_children() - cpu
    if done.returncode not in codes:
        raise BenchFailed(f"{command[0]} ended with code {done.returncode}")
    return seconds, cpu


def _of_children() -> float:
    """Processor time of all children that have ended (s)."""
    times = os.times()
    return times.children_user + times.children_system


def child(job: str, *, environ: Mapping[str, str] | None = None, **given: Any) -> dict[str, Any]:
    """Do a job of `cleanup.bench.child` in a process of its own and return what it says.

    Raises:
        BenchFailed: it did not end well.
    """
    named = [f"{name}={value}" for name, value in (environ or {}).items()]
    command = ["env", *named, sys.executable, "-m", "cleanup.bench.child", job, json.dumps(given)]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or f"code {done.returncode}").splitlines()[-1]
        raise BenchFailed(f"{job}: {last}")
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


def find(root: Path, *, delete: bool = False) -> list[str]:
    """`find` for the files of a tree that were not changed for two days."""
    return ["find", str(root), "-xdev", "-type", "f", "-mmin", "+2880", *(["-delete"] if delete else [])]


def tmpfiles(root: Path, folder: Path, *, age: str) -> list[str]:
    """`systemd-tmpfiles` with one line for a tree; the age goes by the time of the last change alone."""
    config = folder / "bench.conf"
    config.write_text(f"d {root} - - - m:{age}\n")
    return ["systemd-tmpfiles", "--clean", str(config)]


def tmpreaper(root: Path) -> list[str]:
    """`tmpreaper` for a tree; it must not run for longer than it needs."""
    return ["tmpreaper", "--mtime", "--runtime=0", "2d", str(root)]
