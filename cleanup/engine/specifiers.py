"""What the specifiers of tmpfiles.d (``%t``, ``%h`` …) and its names of users stand for on this machine.

Read once for whoever cleans or imports here; the reader of the format itself touches no disk. A value that
this machine cannot tell is None, which leaves the lines out that need it.
"""

import grp
import os
import platform
import pwd
import re
from pathlib import Path

#: Letter to the key of os-release.
_RELEASE = {
    "o": "ID", "w": "VERSION_ID", "W": "VARIANT_ID", "B": "BUILD_ID", "A": "IMAGE_VERSION", "M": "IMAGE_ID",
}  # fmt: skip

#: What Python calls a machine to what systemd calls it.
_ARCHITECTURES = {"x86_64": "x86-64", "i686": "x86", "aarch64": "arm64", "armv7l": "arm"}


def specifiers() -> dict[str, str | None]:
    """Return letter to value, as for the system's own lines: those of root, in the system's places."""
    host = platform.node()
    release = _release()
    return {
        "t": "/run", "S": "/var/lib", "C": "/var/cache", "L": "/var/log", "T": "/tmp", "V": "/var/tmp",  # noqa: S108
        "h": "/root", "u": "root", "U": "0", "g": "root", "G": "0",
        "H": host, "l": host.partition(".")[0], "q": host, "v": platform.release(),
        "a": _ARCHITECTURES.get(platform.machine(), platform.machine()),
        "m": _id("/etc/machine-id"), "b": _id("/proc/sys/kernel/random/boot_id"),
        **{letter: release.get(key, "") for letter, key in _RELEASE.items()},
    }  # fmt: skip


def _id(path: str) -> str | None:
    """Return an id that the system keeps in a file, without dashes."""
    try:
        found = Path(path).read_text(encoding="ascii").strip().replace("-", "")
    except (OSError, UnicodeDecodeError):
        return None
    return found if re.fullmatch("[0-9a-f]{32}", found) else None


def _release() -> dict[str, str]:
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}


def user_id(name: str) -> int | None:
    """Return the number of a user, or None if there is none of that name."""
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def group_id(name: str) -> int | None:
    """Return the number of a group, or None if there is none of that name."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def read_files(paths: list[str]) -> tuple[bytes, list[tuple[str, int]]]:
    """Read files of lines in the order of their names, as systemd does.

    Returns:
        One text, and for each of its lines (from 0) the file it is from and its number there, from 1.

    Raises:
        OSError: a file cannot be read.
    """
    text, places = b"", []
    for path in sorted(paths, key=lambda path: (os.path.basename(path), path)):
        lines = Path(path).read_bytes().removesuffix(b"\n").split(b"\n")
        places += [(path, number) for number in range(1, len(lines) + 1)]
        text += b"".join(line + b"\n" for line in lines)
    return text, places
