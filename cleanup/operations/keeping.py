"""Holds on what was restored: it stays for as long as its policy's grace period, unless somebody releases it.

A restore makes one hold for all its files of an area, before the first of them moves: a crash then leaves too
many names held, never too few. It lists exact paths and is shown, and released, like any other hold.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from django.db import transaction

from cleanup.engine.expiry import RESULT_SUFFIX, companion_name
from cleanup.engine.holds import pack_paths
from cleanup.engine.names import escape, unescape
from cleanup.models import CleanupItem, Hold, PolicyVersion, StagingArea
from cleanup.operations.areas import release
from cleanup.operations.outcomes import OperationRefused
from cleanup.operations.policies import policy_of
from cleanup.stores import Actor, DatabaseAuditSink, record
from cleanup.stores.sql import chunks, database_now

#: Who made the hold; the reason names the person who restored.
MAKER = "restore"

_RESULT = RESULT_SUFFIX.decode()


def check_rename(rename: str) -> None:
    """Refuse what cannot be added to a name.

    Raises:
        OperationRefused: it holds a slash or a character that is not printable.
    """
    if rename and ("/" in rename or "\\" in rename or not rename.isprintable()):
        raise OperationRefused(f"{rename!r} cannot be a part of a name")


def renamed(path: str, rename: str) -> str:
    """The escaped path beside `path` for a file whose name is taken: `a/b.txt` becomes `a/b.<rename>.txt`."""
    directory, slash, name = path.rpartition("/")
    if name.endswith(_RESULT):
        stem, ending = name.removesuffix(_RESULT), _RESULT
    else:
        stem, ending = os.path.splitext(name)
    return f"{directory}{slash}{stem}.{rename}{ending}"


def keep_restored(
    area: StagingArea, ids: Sequence[UUID], actor: Actor, *, to: str | None, rename: str = ""
) -> Hold | None:
    """Hold the names to which items are about to be restored; None if their grace period is zero.

    Args:
        area: of all the items.
        ids: of the items.
        actor: who restores.
        to: the name that one item is given, instead of its old one.
        rename: what is added to names that are taken: both names are held.
    """
    paths, grace = _paths_and_grace(ids)
    if not paths or grace <= timedelta(0):
        return None
    if to is not None:
        companion = companion_name(unescape(to))
        paths = {to} if companion is None else {to, escape(companion)}
    if rename:
        others = {renamed(path, rename) for path in paths}
        companions = filter(None, (companion_name(unescape(path)) for path in others))
        paths |= others | {escape(name) for name in companions}
    now = database_now()
    with transaction.atomic():
        made = Hold.objects.create(
            area=area, pattern="", paths=pack_paths(paths), until=now + grace, created_by=MAKER,
            reason=f"{len(paths)} files restored by {actor.name}"[:300],
        )  # fmt: skip
        evidence = {"hold": made.pk, "files": len(paths), "until": (now + grace).isoformat()}
        entry = record(actor, "held", now=now, area=area.name, reason=made.reason, evidence=evidence)
        DatabaseAuditSink().write([entry])
    return made


def _paths_and_grace(ids: Sequence[UUID]) -> tuple[set[str], timedelta]:
    """The names of the items' files, and the longest grace period of the policies that took them."""
    paths, versions, grace = set[str](), set[int](), timedelta(0)
    for part in chunks(ids):
        rows = CleanupItem.objects.filter(pk__in=part).order_by()
        for members, version, trashed_at, purge_after in rows.values_list(
            "members", "run__policy_version", "trashed_at", "purge_after"
        ):
            paths.update(member["path"] for member in members)
            if version is not None:
                versions.add(version)
            elif trashed_at is not None and purge_after is not None:
                grace = max(grace, purge_after - trashed_at)  # its policy is not known any more
    found = PolicyVersion.objects.filter(pk__in=versions)
    return paths, max([grace, *(policy_of(version).grace_period for version in found)])


def narrow(kept: Hold | None, back: Sequence[str], actor: Actor) -> None:
    """Leave in a hold only what did come back; without any, release it.

    Args:
        kept: from `keep_restored`.
        back: the escaped paths of the files that are in their places again.
        actor: who restored.
    """
    if kept is None or kept.paths is None:
        return
    if not back:
        release(kept, actor)
        return
    packed = pack_paths(back)
    if packed != bytes(kept.paths):
        reason = f"{len(set(back))} files restored by {actor.name}"[:300]
        Hold.objects.filter(pk=kept.pk).update(paths=packed, reason=reason)
