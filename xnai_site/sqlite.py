"""Put a SQLite without the WAL-reset bug in place of the interpreter's own.

SQLite 3.7.0 to 3.51.2 can corrupt a database in WAL mode that several processes write to
(https://sqlite.org/wal.html, "the WAL-reset bug"), which is the default of this site: web, worker and beat
share one file. The `pysqlite3` wheel bundles a sound version. Where the platform has no wheel, `is_sound`
lets the settings fall back to the rollback journal, and a system check says so.
"""

from __future__ import annotations

import importlib
import sys

#: The first release in which the WAL-reset bug is mended.
FIRST_SOUND_VERSION = (3, 51, 3)


def install() -> None:
    """Make `import sqlite3` give the bundled SQLite, if this platform has it. Idempotent."""
    try:
        bundled = importlib.import_module("pysqlite3")
        dbapi2 = importlib.import_module("pysqlite3.dbapi2")
    except ImportError:
        return
    sys.modules["sqlite3"] = bundled
    sys.modules["sqlite3.dbapi2"] = dbapi2


def version() -> tuple[int, ...]:
    """The version of the SQLite library in use, such as `(3, 53, 4)`."""
    info: tuple[int, ...] = importlib.import_module("sqlite3").sqlite_version_info
    return info


def is_sound() -> bool:
    """Whether several processes may share a WAL database without risk."""
    return version() >= FIRST_SOUND_VERSION
