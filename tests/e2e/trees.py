"""Trees with real content for the retention tests, and an oracle that knows nothing of the engine.

Documentation and sources of installed packages are copied below a root, under odd names too, with chosen
modification times; links lead out of the tree, a FIFO and a hard link lie in it. `old_files` and
`expired_results` say by plain `os.walk` what a policy has to find, `fingerprints` what a restore has to bring
back.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

import celery
import django
import lz4.frame
import twisted

DAY = 86_400.0

#: Names that break naive code: line ends, invalid UTF-8, 255 bytes, escapes, options, globs, dots.
ODD_NAMES = (
    b"two\nlines.txt",
    b"half-\xff\xfe-utf8.txt",
    b"n" * 251 + b".txt",
    "naïve Ünïcödé 日本語.txt".encode(),
    b"back\\slash and \\x41.txt",
    b"-rf .txt",
    b"star*?[a].txt",
    b".hidden",
    b" leading and trailing ",
    b"\x1b[31mred.txt",
    b"quote'\"`$(id).txt",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """What has to be the same after a restore."""

    digest: str
    mode: int
    mtime_ns: int
    owner: tuple[int, int]


def plant(root: Path, outside: Path, *, files: int, age_days: float, seed: int) -> None:
    """Fill `root` with `files` real files and the odd ones; two in five are older than `age_days`."""
    dice = random.Random(seed)
    for source in islice(_sources(), files):
        target = root / source.parent.parent.name / source.parent.name / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    odd = os.fsencode(root) + b"/odd \xe9 names"
    os.mkdir(odd)
    for name in ODD_NAMES:
        _write(odd + b"/" + name, name * 20)
    for path in regular_files(root):
        full = os.fsencode(root) + b"/" + path
        os.chmod(full, dice.choice((0o600, 0o640, 0o644, 0o755)))
        days = age_days * (dice.uniform(1.1, 5) if dice.random() < 0.4 else dice.uniform(0, 0.9))
        _set_age(full, days, dice)
    _plant_traps(root, outside, age_days)


def _sources() -> Iterator[Path]:
    seen = set()
    for package in (django, twisted, celery):
        for path in sorted(Path(package.__path__[0]).rglob("*")):
            place = path.parts[-3:]
            if path.is_file() and path.suffix != ".pyc" and place not in seen:
                seen.add(place)
                yield path


def _plant_traps(root: Path, outside: Path, age_days: float) -> None:
    """What must never be touched: links out of the tree, what they lead to, a hard link, a FIFO."""
    treasure = outside / "treasure"
    treasure.mkdir(parents=True)
    for number in range(3):
        _write(os.fsencode(treasure / f"{number}.txt"), b"not yours")
    (root / "link-to-file").symlink_to(treasure / "0.txt")
    (root / "link-to-folder").symlink_to(treasure)
    (root / "dangling").symlink_to(outside / "nowhere")
    os.link(treasure / "1.txt", root / "hard-link.txt")
    os.mkfifo(root / "fifo")
    long_ago = time.time() - 10 * age_days * DAY
    for path in (*treasure.iterdir(), root / "fifo"):
        os.utime(path, (long_ago, long_ago))


def plant_results(root: Path, *, pairs: int, seed: int) -> None:
    """Fill `root` with lz4 results and their metadata: expired, not yet, without a zone, and broken ones."""
    dice = random.Random(seed)
    texts = [source.read_bytes()[:50_000] for source in islice(_sources(), 40)]
    for number in range(pairs):
        folder = root / f"{number % 7}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.result.json.lz4").write_bytes(lz4.frame.compress(dice.choice(texts)))
        if (content := _metadata(number, dice)) is not None:
            (folder / f"{number}.metadata.json").write_bytes(content)
    (root / "metadata-alone.metadata.json").write_bytes(_expiry(datetime.now(UTC) - timedelta(days=9)))
    (root / "not-a-result.json.lz4").write_bytes(b"x")


def _metadata(number: int, dice: random.Random) -> bytes | None:
    moment = datetime.now(UTC) + timedelta(days=dice.choice((-30, -2, 2, 30)), seconds=number)
    broken = {
        3: b"{",
        13: b"[]",
        23: b'{"expires_at": 7}',
        33: b'{"expires_at": "soon"}',
        43: b'{"expires_on": "2001-01-01T00:00:00Z"}',
        53: None,
    }
    if number in broken:
        return broken[number]
    return _expiry(moment if number % 3 else moment.replace(tzinfo=None))


def _expiry(moment: datetime) -> bytes:
    return json.dumps({"expires_at": moment.isoformat(), "task_id": "t"}).encode()


def _write(path: bytes, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)


def _set_age(path: bytes, days: float, dice: random.Random) -> None:
    at = time.time_ns() - int(days * DAY * 1e9) - dice.randrange(1_000_000_000)
    os.utime(path, ns=(at, at))


def regular_files(root: Path) -> set[bytes]:
    """All regular files of one name below `root`, on its file system, as relative paths."""
    top = os.fsencode(root)
    device = os.stat(top).st_dev
    found = set()
    for folder, folders, names in os.walk(top):
        folders[:] = [
            name
            for name in folders
            if name != b".trash" and os.lstat(os.path.join(folder, name)).st_dev == device
        ]
        for name in names:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and not name.startswith(b".staging-"):
                found.add(os.path.relpath(path, top))
    return found


def old_files(root: Path, age_days: float) -> set[bytes]:
    """What a policy of this age, by modification time, has to find."""
    edge = time.time() - age_days * DAY
    return {path for path in regular_files(root) if os.lstat(os.fsencode(root) + b"/" + path).st_mtime < edge}


def expired_results(root: Path) -> set[bytes]:
    """The results whose companion says, in plain ISO 8601, a time that is over."""
    now, found = datetime.now(UTC), set()
    for result in root.rglob("*.result.json.lz4"):
        companion = result.with_name(result.name.removesuffix(".result.json.lz4") + ".metadata.json")
        try:
            moment = datetime.fromisoformat(json.loads(companion.read_text())["expires_at"])
        except (OSError, ValueError, TypeError, KeyError):
            continue
        if moment.replace(tzinfo=moment.tzinfo or UTC) < now:
            found.add(os.fsencode(result.relative_to(root)))
    return found


def fingerprints(root: Path) -> dict[bytes, Fingerprint]:
    """Content and metadata of every regular file below `root`."""
    return {path: _fingerprint(os.fsencode(root) + b"/" + path) for path in regular_files(root)}


def _fingerprint(path: bytes) -> Fingerprint:
    status = os.lstat(path)
    with open(path, "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    return Fingerprint(
        digest=digest, mode=status.st_mode, mtime_ns=status.st_mtime_ns, owner=(status.st_uid, status.st_gid)
    )


def size_of(root: Path, paths: set[bytes]) -> int:
    """Bytes of these files together."""
    return sum(os.lstat(os.fsencode(root) + b"/" + path).st_size for path in paths)


def space_of(root: Path, paths: set[bytes]) -> int:
    """Bytes that these files occupy on the disk."""
    return sum(os.lstat(os.fsencode(root) + b"/" + path).st_blocks * 512 for path in paths)


def disk_usage(root: Path) -> int:
    """Bytes that the regular files below `root` occupy on the disk, the trash included."""
    return sum(
        os.lstat(os.path.join(folder, name)).st_blocks * 512
        for folder, _, names in os.walk(os.fsencode(root))
        for name in names
    )


def unescaped(path: str) -> bytes:
    r"""The bytes of a path as the commands print it: `\xNN` is one byte, all else UTF-8."""
    return re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes([int(match[1], 16)]), path.encode())
