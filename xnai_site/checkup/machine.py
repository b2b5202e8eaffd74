"""Checks of the machine and what is installed on it: interpreter, packages, state folder, disk, port, static
files.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from django.conf import settings
from django.contrib.staticfiles import finders

from cleanup.conf import conf as cleanup_conf
from xnai_site.checkup.finding import FAILED, OK, WARNING, Finding, failed, number, ok

#: Below this the databases and the broker come close to refusing writes.
LEAST_FREE_BYTES = 500_000_000
LEAST_FREE_PERCENT = 5


def python() -> Finding:
    version = sys.version.split()[0]
    return Finding(name="python", state=OK, detail=f"{version} at {sys.prefix}")


def packages() -> Finding:
    """Compare what is installed with the pins of requirements.txt, markers considered."""
    wrong = []
    for name, wanted in pinned(settings.BASE_DIR / "requirements.txt"):
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found = "missing"
        if found != wanted:
            wrong.append(f"{name} {found} (wanted {wanted})")
    if wrong:
        return Finding(
            name="packages",
            state=FAILED,
            detail=", ".join(wrong),
            mend="Run `pip install -r requirements.txt` in this environment, or delete .venv and run again.",
        )
    return Finding(name="packages", state=OK, detail="as pinned in requirements.txt")


def pinned(requirements: Path) -> list[tuple[str, str]]:
    """Names and versions that requirements.txt pins for this platform and interpreter."""
    from packaging.requirements import Requirement

    entries = (line.split("#")[0].strip() for line in requirements.read_text().splitlines())
    wanted = [Requirement(entry) for entry in entries if entry]
    here = [entry for entry in wanted if entry.marker is None or entry.marker.evaluate()]
    return [(entry.name, next(iter(entry.specifier)).version) for entry in here]


def disk() -> Finding:
    """Look at the file systems of the state folder and of the staging root."""
    tight = []
    for folder in {settings.VAR_DIR, Path(settings.CLEANUP["STAGING_ROOT"])}:
        there = next(place for place in (folder, *folder.parents) if place.exists())
        usage = shutil.disk_usage(there)
        if usage.free < LEAST_FREE_BYTES or usage.free * 100 < usage.total * LEAST_FREE_PERCENT:
            tight.append(f"{folder}: {usage.free / 1e9:.1f} GB free")
    if tight:
        return Finding(
            name="disk",
            state=WARNING,
            detail="; ".join(tight),
            mend="Free some space: `manage.py cleanup report` shows what the policies would give back.",
        )
    return Finding(name="disk", state=OK, detail="enough space")


def state_folder() -> Finding:
    """Ours to write, nobody else's, and the keys in it readable by their owner alone."""
    name, folder = "state folder", Path(settings.VAR_DIR)
    # The group may sign: worker and web may be two users.
    for key, closed in ((folder / "secret_key", 0o077), (cleanup_conf().audit_key_file, 0o007)):
        if key.is_file() and key.stat().st_mode & closed:
            return failed(
                name,
                f"{key} can be read by other users",
                f"chmod 600 {key}; then make a new key if somebody else has had the chance to read it.",
            )
    if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
        return failed(
            name, f"{folder} cannot be written", f"Give it to this user: chown {os.getuid()} {folder}"
        )
    if folder.exists() and folder.stat().st_mode & 0o002:
        return failed(name, f"everybody can write to {folder}", f"chmod o-w {folder}")
    return ok(name, str(folder))


def port() -> Finding:
    """Whether the usual port is free, or ours."""
    with socket.socket() as probe:
        probe.settimeout(1)
        if probe.connect_ex(("127.0.0.1", 8000)) != 0:
            return Finding(name="port", state=OK, detail="8000 is free")
    return Finding(
        name="port",
        state=WARNING,
        detail="somebody listens on 8000",
        mend="If that is not this site, choose another: `manage.py up --port N`.",
    )


# What browsers load -----------------------------------------------------------------------------------------


def static_files() -> Finding:
    """Whether the files that pages load were collected, and are those of this version."""
    name = "static files"
    if settings.DEBUG:
        return ok(name, "taken from the source, for DEBUG is on")
    wrong = [path for path, source in _own_files() if not _is_collected(path, source)]
    if wrong:
        return failed(
            name,
            f"{number(len(wrong), 'file')} missing or of another version in {settings.STATIC_ROOT}, "
            f"first {wrong[0]}",
            "Run `manage.py collectstatic --noinput`, then start the web processes again.",
        )
    return ok(name, f"collected in {settings.STATIC_ROOT}")


def _own_files() -> Iterator[tuple[str, Path]]:
    """Name and source of every static file of this project."""
    for finder in finders.get_finders():
        for path, storage in finder.list([]):
            if path.startswith("bus/"):
                yield path, Path(storage.path(path))


def _is_collected(path: str, source: Path) -> bool:
    there = Path(settings.STATIC_ROOT) / path
    return there.is_file() and there.read_bytes() == source.read_bytes()
