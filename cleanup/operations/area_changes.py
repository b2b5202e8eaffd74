"""Changing an area that is in use: switch it off and on, say that it was moved, let it go.

What lies in the trash of an area is a promise, so none of these may break it. In a disabled area nothing is
trashed and nothing purged by time, while everything can be restored. A moved directory is known by its
marker. An area is let go only when its trash is empty; its history then lives on in the audit alone.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from django.db import transaction
from django.db.models import ProtectedError, Q, QuerySet

from cleanup.conf import conf
from cleanup.engine.area import AreaHandle, marker_uuid, open_area, unregister_area
from cleanup.engine.errors import AreaRefused
from cleanup.engine.shelf import clear_trash, is_empty
from cleanup.engine.states import ItemState
from cleanup.models import (
    ACTIVE_STATES,
    CleanupItem,
    CleanupRun,
    PlanBatch,
    RetentionPolicy,
    StagedContent,
    StagingArea,
    Upload,
    UploadState,
)
from cleanup.operations.areas import check_path, locked, opened
from cleanup.operations.outcomes import OperationRefused, RunActive
from cleanup.operations.runs import stop
from cleanup.stores import Actor, DatabaseAuditSink, record
from cleanup.stores.plans import OPEN
from cleanup.stores.sql import database_now

#: Rows whose bytes may still be in the trash.
_IN_TRASH = Q(
    state__in=[ItemState.TRASHED, ItemState.PURGE_INTENT, ItemState.RESTORING, ItemState.ERROR]
) & ~Q(trash_id="")

_UNDER_WAY = (UploadState.OPEN, UploadState.FINISHING)


def set_enabled(area: StagingArea, enabled: bool, actor: Actor) -> StagingArea:
    """Let policies act in an area, or keep them off; a run that is under way is told to stop.

    Calling it twice changes nothing more.
    """
    with transaction.atomic():
        changed = StagingArea.objects.filter(pk=area.pk).exclude(enabled=enabled).update(enabled=enabled)
        if changed:
            _write(area, "area_enabled" if enabled else "area_disabled", actor)
    area.enabled = enabled
    if not enabled:
        for run in _active(area):
            with suppress(OperationRefused):  # it ended meanwhile
                stop(run, actor=actor)
    return area


def set_protected(area: StagingArea, protected: bool, actor: Actor) -> StagingArea:
    """Ask for two persons, or one, to approve what is above a brake. Twice changes nothing more."""
    with transaction.atomic():
        changed = (
            StagingArea.objects.filter(pk=area.pk).exclude(protected=protected).update(protected=protected)
        )
        if changed:
            _write(area, "area_protected" if protected else "area_unprotected", actor)
    area.protected = protected
    return area


def move_area(area: StagingArea, path: str | Path, actor: Actor) -> StagingArea:
    """Note that the directory of an area is now at `path`; its marker must have come along. No file is moved.

    Raises:
        RunActive: a run of the area is not over.
        AreaRefused: a dangerous place, or not the directory that was registered.
        OperationRefused: the old directory is still there, so this one is a copy; or the path is not
            absolute.
    """
    place = check_path(path)
    _refuse_active(area)
    with open_area(place, uuid=area.uuid, forbidden=conf().forbidden_paths) as handle:
        device = str(handle.device)
    if str(place) != area.path and _is_marked(area):
        raise OperationRefused(f"{area.path} is still there with the area's marker: {place} is a copy of it")
    with transaction.atomic():
        StagingArea.objects.filter(pk=area.pk).update(path=str(place), device=device)
        _write(area, "area_moved", actor, **{"from": area.path, "to": str(place)})
    area.path, area.device = str(place), device
    return area


def _is_marked(area: StagingArea) -> bool:
    try:
        return marker_uuid(area.path) == str(area.uuid)
    except AreaRefused:
        return False  # a link, or somebody else's marker: not the area


def remove_area(area: StagingArea, actor: Actor, *, dry_run: bool = False) -> None:
    """Let an area go: its marker, its empty trash, its policies and the rows of its runs. No file goes.

    Where the directory cannot be opened any more, the rows alone say that its trash is empty.

    Args:
        area: disabled before.
        actor: who does it.
        dry_run: only find out whether it may.

    Raises:
        OperationRefused: it is enabled, something is in its trash, or files are registered in it.
        RunActive: a run of it is not over.
    """
    if area.enabled:
        raise OperationRefused(f"area {area.name!r} is enabled; disable it first")
    _refuse_active(area)
    handle = _open_if_there(area)
    if handle is None:
        _refuse_trash(area)
        _forget(area, actor, dry_run=dry_run)
        return
    with handle, locked(handle):
        _refuse_trash(area, handle)
        _forget(area, actor, dry_run=dry_run)
        if not dry_run:
            clear_trash(handle)
            unregister_area(handle)


def _open_if_there(area: StagingArea) -> AreaHandle | None:
    try:
        return opened(area)
    except AreaRefused:
        return None


def _refuse_trash(area: StagingArea, handle: AreaHandle | None = None) -> None:
    rows = CleanupItem.objects.filter(_IN_TRASH, area=area).count()
    moving = PlanBatch.objects.filter(OPEN, run__area=area).exists()
    if rows or moving or (handle is not None and not is_empty(handle)):
        what = f"{rows} items are" if rows else "something is"
        raise OperationRefused(f"{what} still in the trash of {area.name!r}: restore or purge first")


def _forget(area: StagingArea, actor: Actor, *, dry_run: bool) -> None:
    """Delete all rows of the area, its own last; with `dry_run` take that back."""
    try:
        with transaction.atomic():
            CleanupItem.objects.filter(area=area).delete()
            CleanupRun.objects.filter(area=area).delete()
            RetentionPolicy.objects.filter(area=area).delete()
            # Those that are over tell of the past alone; one that is open still wants the area.
            Upload.objects.filter(area=area).exclude(state__in=_UNDER_WAY).delete()
            StagedContent.objects.filter(area=area, files__isnull=True).delete()
            _write(area, "area_removed", actor, uuid=str(area.uuid), directory=area.path)
            StagingArea.objects.filter(pk=area.pk).delete()
            transaction.set_rollback(dry_run)
    except ProtectedError as error:
        kinds = sorted({str(one._meta.verbose_name_plural) for one in error.protected_objects})
        raise OperationRefused(f"{', '.join(kinds)} still point to area {area.name!r}") from error


def _active(area: StagingArea) -> QuerySet[CleanupRun]:
    return CleanupRun.objects.filter(area=area, state__in=ACTIVE_STATES)


def _refuse_active(area: StagingArea) -> None:
    if _active(area).exists():
        raise RunActive(f"area {area.name!r} has a run that is not over; stop it first")


def _write(area: StagingArea, action: str, actor: Actor, **evidence: str) -> None:
    entry = record(actor, action, now=database_now(), area=area.name, evidence=evidence)
    DatabaseAuditSink().write([entry])
