"""Places where no area may be: the root, homes, system directories, parents of mounts, the project itself.

The check looks at the place as it is now and refuses with one stable word, before a marker is written and
again at every opening. It is a guard against mistakes; what protects a run from exchanged paths is that it
never uses one.
"""

import os
import pwd
import re
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from cleanup.engine.errors import AreaRefused

#: Refused with all that lies below.
_SYSTEM_TREES = tuple(
    Path(name)
    for name in (
        "/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/sbin", "/sys",
        "/usr", "/System", "/Library", "/Applications",
    )
)  # fmt: skip

#: Refused themselves; below them there is room for areas.
_SYSTEM_DIRECTORIES = frozenset(
    Path(name)
    for name in (
        "/home", "/lost+found", "/media", "/mnt", "/opt", "/root", "/run", "/run/user", "/srv", "/tmp",  # noqa: S108
        "/var", "/var/backups", "/var/cache", "/var/lib", "/var/local", "/var/log", "/var/mail", "/var/opt",
        "/var/run", "/var/spool", "/var/tmp", "/Users", "/private", "/Volumes",  # noqa: S108
    )
)  # fmt: skip

#: Inside a system tree, yet meant for data.
_DATA_TREES = (Path("/dev/shm"),)  # noqa: S108

_MOUNTINFO = Path("/proc/self/mountinfo")
_OCTAL = re.compile(rb"\\([0-7]{3})")


def check_place(
    path: Path, *, forbidden: Sequence[Path] = (), permitted: Sequence[Path] = (), mounts: bool = True
) -> None:
    """Refuse `path` if an area there would be dangerous.

    Args:
        path: the directory.
        forbidden: trees that an area may neither lie in nor contain.
        permitted: exceptions inside `forbidden`.
        mounts: also refuse a directory with a mount below it; at every later opening the walk skips such
            mounts.

    Raises:
        AreaRefused: with the reason ``not_absolute``, ``missing``, ``symlink``, ``not_a_directory``,
        ``root``,
            ``home``, ``system``, ``forbidden`` or ``mount_below``.
    """
    _check_directory(path)
    real = path.resolve()
    if real == real.parent:
        raise AreaRefused("root", f"{path} is the root of the file system")
    if _is_system(real):
        raise AreaRefused("system", f"{path} is a system directory")
    if any(home.is_relative_to(real) for home in _homes()):
        raise AreaRefused("home", f"{path} is, or holds, somebody's home")
    _check_forbidden(real, [tree.resolve() for tree in forbidden], [tree.resolve() for tree in permitted])
    below = next((mount for mount in mount_points() if real in mount.parents), None) if mounts else None
    if below is not None:
        raise AreaRefused("mount_below", f"{path} has another file system mounted below it, at {below}")


def _check_directory(path: Path) -> None:
    if not path.is_absolute() or ".." in path.parts:
        raise AreaRefused("not_absolute", f"{path} is not an absolute path without '..'")
    try:
        mode = path.lstat().st_mode
    except (OSError, ValueError) as error:
        raise AreaRefused("missing", f"{path} does not exist or cannot be reached") from error
    if stat.S_ISLNK(mode):
        raise AreaRefused("symlink", f"{path} is a symbolic link")
    if not stat.S_ISDIR(mode):
        raise AreaRefused("not_a_directory", f"{path} is not a directory")


def _is_system(real: Path) -> bool:
    if real in _SYSTEM_DIRECTORIES or real in _DATA_TREES:
        return True
    if any(real.is_relative_to(tree) for tree in _DATA_TREES):
        return False
    return any(real.is_relative_to(tree) for tree in _SYSTEM_TREES)


def _homes() -> Iterable[Path]:
    """Yield every home directory; `/` and the like are the homes of accounts that have none."""
    # Many accounts share a home, and every one that is resolved takes a look at the disk.
    for name in {*(entry.pw_dir for entry in pwd.getpwall()), os.path.expanduser("~")}:
        home = Path(name)
        if home.is_absolute() and home.parent != home:
            yield home.resolve()


def _check_forbidden(real: Path, forbidden: Sequence[Path], permitted: Sequence[Path]) -> None:
    for tree in forbidden:
        if tree.is_relative_to(real):
            raise AreaRefused("forbidden", f"{real} is or holds {tree}, which is not to be cleaned")
        excepted = any(real.is_relative_to(exception) for exception in permitted)
        if real.is_relative_to(tree) and not excepted:
            raise AreaRefused("forbidden", f"{real} lies in {tree}, which is not to be cleaned")


def mount_points() -> list[Path]:
    """Return where file systems are mounted; empty where the system has no mount table to read."""
    try:
        table = _MOUNTINFO.read_bytes()
    except FileNotFoundError:
        return []
    fields = (line.split(b" ") for line in table.splitlines())
    return [Path(os.fsdecode(_unoctal(field[4]))) for field in fields if len(field) > 4]


def _unoctal(name: bytes) -> bytes:
    """Undo the octal escapes of spaces and newlines in the mount table."""
    return _OCTAL.sub(lambda match: bytes([int(match[1], 8)]), name)
