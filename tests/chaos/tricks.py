"""A process that exchanges names under the hands of a cleaner: `python -m tests.chaos.tricks ROOT OUTSIDE`.

In ROOT it exchanges every `NAME` with `NAME.lnk`, a link to a victim; in the directories there, every file
`NAME` with `NAME.swp`, a link to a file of the victim; and it moves the directories named `out-…` to OUTSIDE
and back. It never changes the victim itself, so whatever happens there is the cleaner's doing.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]

_EXCHANGE = 2
_libc = ctypes.CDLL(None)


def exchange(dir_fd: int, one: str, other: str) -> None:
    """Exchange two names, if both are there."""
    _libc.renameat2(dir_fd, os.fsencode(one), dir_fd, os.fsencode(other), _EXCHANGE)


def swap_files(dir_fd: int, name: str) -> None:
    """Exchange files with links in one directory, unless a link stands in its place now."""
    with suppress(OSError):
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=dir_fd)
        try:
            for link in os.listdir(fd):
                if link.endswith(".swp"):
                    exchange(fd, link, link.removesuffix(".swp"))
        finally:
            os.close(fd)


def go_out_and_in(root_fd: int, outside_fd: int, name: str) -> None:
    """Move a directory out of the area and into it again; a cleaner may have made it anew meanwhile."""
    with suppress(OSError):
        os.rename(name, name, src_dir_fd=root_fd, dst_dir_fd=outside_fd)
        os.rename(name, name, src_dir_fd=outside_fd, dst_dir_fd=root_fd)


def trick(root: str, outside: str) -> None:
    """Go on for ever."""
    flags = os.O_RDONLY | os.O_DIRECTORY
    root_fd, outside_fd = os.open(root, flags), os.open(outside, flags)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        names = os.listdir(root_fd)
        for _ in range(10):
            for name in names:
                if name.endswith(".lnk"):
                    exchange(root_fd, name, name.removesuffix(".lnk"))
                elif name.startswith("out-"):
                    go_out_and_in(root_fd, outside_fd, name)
        for name in names:
            swap_files(root_fd, name)


@contextmanager
def tricked(root: Path, outside: Path) -> Iterator[None]:
    """Have the process at work for the length of a ``with`` statement."""
    command = [sys.executable, "-m", "tests.chaos.tricks", str(root), str(outside)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate(timeout=60)


if __name__ == "__main__":
    trick(*sys.argv[1:])
