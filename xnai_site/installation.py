"""Bring the database and the files of an installation to the state that this code needs.

`manage.py up` calls `prepare` at every start, the container image through its `migrate` command once.
Everything here is done only where it is missing, so a second start costs a few queries. Errors of the
database come out as `InstallationError` with a sentence.
"""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path

from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.staticfiles.finders import get_finders
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import DatabaseError, connection

from cleanup.models import StagingArea
from cleanup.operations.policies import ensure_demo_areas
from xnai_site import checkup, roles

#: The user that `up` makes when there is no superuser yet.
FIRST_USER = "admin"


class InstallationError(Exception):
    """The installation cannot be brought into shape; the message says why and what to do."""


def prepare() -> None:
    """Migrate, collect static files, make sure of the three roles.

    Raises:
        InstallationError: the database or the static folder cannot be used.
    """
    if reason := checkup.database_trouble():
        raise InstallationError(unusable(reason))
    try:
        migrate()
        roles.ensure_roles()
    except (DatabaseError, ImproperlyConfigured) as failure:
        raise InstallationError(unusable(checkup.first_line(failure))) from failure
    try:
        collect_static()
    except OSError as error:
        raise InstallationError(f"cannot write {settings.STATIC_ROOT}: {error.strerror}.") from error


def unusable(reason: str) -> str:
    return (
        f"the database cannot be used: {reason}. Check DATABASE_URL, and that the server runs and knows this "
        "user and database."
    )


def migrate() -> None:
    """Apply what is missing. Asking first spares the signals of an empty migration."""
    if checkup.unapplied_migrations():
        call_command("migrate", interactive=False, verbosity=0)


def collect_static() -> None:
    """Copy and compress the static files if they have changed since the last time."""
    stamp = Path(settings.STATIC_ROOT) / ".collected"
    now = static_fingerprint()
    if stamp.is_file() and stamp.read_text() == now:
        return
    call_command("collectstatic", interactive=False, verbosity=0)
    stamp.write_text(now)


def static_fingerprint() -> str:
    """Changes with the name, size or time of any static file of any app."""
    digest = hashlib.sha256()
    for finder in get_finders():
        for path, storage in finder.list([]):
            status = Path(storage.path(path)).stat()
            digest.update(
                f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape")
            )
    return digest.hexdigest()


def prepare_staging() -> None:
    """Make the demonstration areas in a database that has none. What an operator removed stays away."""
    if not StagingArea.objects.exists():
        ensure_demo_areas()


def ensure_first_user() -> str:
    """Make the first superuser if there is none.

    Returns:
        Its password, which is kept nowhere else; empty if there was a superuser already.
    """
    users = get_user_model()
    if users._default_manager.filter(is_superuser=True).exists():
        return ""
    password = secrets.token_urlsafe(12)
    users.objects.create_superuser(username=FIRST_USER, password=password)
    return password


def close_connections() -> None:
    """Let go of the database connections of this thread."""
    connection.close()
