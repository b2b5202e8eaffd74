"""The checks of an installation: what holds, what does not, and how to mend it.

Each check is a function that returns one `Finding` and never raises for what it is there to find. `manage.py
doctor` runs them all; `/healthz/full` those about the running site; the lamps of the console those that a
page may wait for: a few indexed queries each, and nobody is asked who might not answer. All three say the
same of the same thing, for it is the same function. They only look: nothing is changed.
"""

from __future__ import annotations

from collections.abc import Callable

from xnai_site.checkup.database import (
    clocks,
    database,
    database_trouble,
    durability,
    migrations,
    sqlite_library,
    unapplied_migrations,
)
from xnai_site.checkup.finding import FAILED, OK, WARNING, Finding, first_line
from xnai_site.checkup.machine import disk, packages, pinned, port, python, state_folder, static_files
from xnai_site.checkup.processes import (
    beat,
    layer_canary,
    log,
    redis_memory,
    redis_server,
    redis_trouble,
    servers,
    worker,
)
from xnai_site.checkup.retention import (
    approvals,
    area_disks,
    audit,
    canaries,
    signing_key,
    staging,
    trash_folders,
)
from xnai_site.checkup.security import exposure, logins, secrets

__all__ = [
    "ALL", "FAILED", "LAMPS", "OK", "RUNNING_SITE", "WARNING", "Check", "Finding", "approvals", "area_disks",
    "audit", "beat", "canaries", "clocks", "database", "database_trouble", "disk", "durability", "exposure",
    "first_line", "layer_canary", "log", "logins", "migrations", "packages", "pinned", "port", "python",
    "redis_memory", "redis_server", "redis_trouble", "secrets", "servers", "signing_key", "sqlite_library",
    "staging", "state_folder", "static_files", "trash_folders", "unapplied_migrations", "worker",
]  # fmt: skip

Check = Callable[[], Finding]

#: Those that a page of the console may wait for.
LAMPS: tuple[Check, ...] = (
    log, servers, beat, worker, audit, canaries, staging, trash_folders, area_disks, approvals,
)  # fmt: skip

#: Those that say how the running site is.
RUNNING_SITE: tuple[Check, ...] = (database, migrations, redis_server, disk, *LAMPS)

#: In the order in which one thing depends on another.
ALL: tuple[Check, ...] = (
    python, packages, state_folder, sqlite_library, database, migrations, durability, clocks, static_files,
    redis_server, redis_memory, layer_canary, port, exposure, secrets, logins, disk, signing_key, *LAMPS,
)  # fmt: skip
