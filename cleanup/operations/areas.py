"""Verbs on areas and holds: which trees may be cleaned, and which files in them stay all the same."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Q

from cleanup.conf import conf
from cleanup.engine.area import AreaHandle, marker_uuid, open_area, register_area
from cleanup.engine.errors import AreaBusy, PolicyInvalid
from cleanup.engine.holds import Hold as EngineHold
from cleanup.engine.holds import Holds, unpack_paths
from cleanup.engine.names import patterns
from cleanup.models import Hold, StagingArea
from cleanup.operations.outcomes import NotFound, OperationRefused
from cleanup.stores import Actor, DatabaseAuditSink, record
from cleanup.stores.sql import database_now
from cleanup.stores.waiting import ask_now

#: An area is locked for one batch at a time, well below a second; whoever waits longer meets a worker that
#: hangs.
PATIENCE = timedelta(seconds=10)

#: How often a locked area is tried again (s).
_RETRY = 0.01


def find_area(name: str) -> StagingArea:
    """The area `name`.

    Raises:
        NotFound: there is none.
    """
    area = StagingArea.objects.filter(name=name).first()
    if area is None:
        raise NotFound(f"there is no area {name!r}")
    return area


def add_area(name: str, path: str | Path, actor: Actor, *, protected: bool = False) -> StagingArea:
    """Register the directory `path` as an area; its marker is written first, so a row never lacks one.

    A directory whose marker no row knows (the database was lost) becomes the area that it was.

    Raises:
        AreaRefused: a dangerous place, or another area.
        OperationRefused: the name is taken or no name, or the path is not absolute.
    """
    place = check_path(path)
    if StagingArea.objects.filter(name=name).exists():
        raise OperationRefused(f"there is an area {name!r} already")
    area = StagingArea(name=name, path=str(place), uuid=_known_uuid(place) or uuid4(), protected=protected)
    _validate(area)
    registration = register_area(place, area.uuid, forbidden=conf().forbidden_paths)
    area.device = str(registration.device)
    with transaction.atomic():
        area.save()
        evidence = {
            "uuid": str(area.uuid),
            "directory": str(place),
        }
        entry = record(actor, "area_added", now=database_now(), area=name, evidence=evidence)
        DatabaseAuditSink().write([entry])
    return area


def check_path(path: str | Path) -> Path:
    """Return `path` if a row can hold it.

    Raises:
        OperationRefused: it is not absolute, or neither database could store it.
    """
    place = Path(path)
    if not place.is_absolute():
        raise OperationRefused(f"the path of an area is absolute, not {str(path)!r}")
    if not _is_storable(str(place)):
        raise OperationRefused(f"the path of an area is valid UTF-8 without NUL, not {str(path)!r}")
    return place


def _is_storable(text: str) -> bool:
    """Whether both databases can hold `text`."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def _validate(area: StagingArea) -> None:
    try:
        area.full_clean(exclude=["device"])
    except ValidationError as error:
        raise OperationRefused("; ".join(error.messages)) from error


def _known_uuid(place: Path) -> UUID | None:
    """The uuid in the marker of `place`, if there is one that no row has.

    Raises:
        AreaRefused: a link, or a marker that holds no uuid.
    """
    found = marker_uuid(place)
    if found is None or StagingArea.objects.filter(uuid=found).exists():
        return None
    return UUID(found)


def opened(area: StagingArea) -> AreaHandle:
    """Open the directory of `area`, after all checks.

    Raises:
        AreaRefused: it is not, or no longer, the directory that was registered.
    """
    device = int(area.device) if area.device else None
    return open_area(area.path, uuid=area.uuid, device=device, forbidden=conf().forbidden_paths)


@contextmanager
def locked(handle: AreaHandle, *, patience: timedelta = PATIENCE) -> Iterator[None]:
    """Hold the area's lock, waiting for whoever holds it now.

    Raises:
        AreaBusy: it was not free within `patience`.
    """
    deadline = time.monotonic() + patience.total_seconds()
    while True:
        lock = handle.lock()
        try:
            lock.__enter__()
            break
        except AreaBusy:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_RETRY)
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


def hold(area: StagingArea, pattern: str, until: datetime | None, reason: str, actor: Actor) -> Hold:
    """Promise that files matching `pattern` are neither trashed nor purged until then, or until released.

    Raises:
        OperationRefused: no reason, or the time has passed.
        PolicyInvalid: the pattern cannot be understood.
    """
    now = database_now()
    if not reason.strip():
        raise OperationRefused("a hold needs a reason")
    if until is not None and until <= now:
        raise OperationRefused("a hold ends in the future")
    patterns((pattern,), subtree=True)
    with transaction.atomic():
        made = Hold.objects.create(
            area=area, pattern=pattern, until=until, reason=reason[:300], created_by=actor.name
        )
        evidence = {"hold": made.pk, "pattern": pattern, "until": until.isoformat() if until else None}
        entry = record(actor, "held", now=now, area=area.name, reason=reason, evidence=evidence)
        DatabaseAuditSink().write([entry])
    return made


def release(held: Hold, actor: Actor) -> None:
    """End a hold.

    Raises:
        OperationRefused: it was released before.
    """
    now = database_now()
    with transaction.atomic():
        if not Hold.objects.filter(pk=held.pk, released_at__isnull=True).update(released_at=now):
            raise OperationRefused("the hold was released before")
        ask_now(area=held.area)
        evidence = {"hold": held.pk, "pattern": held.shown}
        entry = record(actor, "hold_released", now=now, area=held.area.name, evidence=evidence)
        DatabaseAuditSink().write([entry])
    held.released_at = now


def active_holds(area_id: int, *, now: datetime) -> list[EngineHold]:
    """The holds of an area that count at `now`."""
    rows = Hold.objects.filter(
        Q(until__isnull=True) | Q(until__gt=now), area_id=area_id, released_at__isnull=True
    )
    return [engine_hold(row) for row in rows]


def engine_hold(row: Hold) -> EngineHold:
    """What the engine makes of a hold's row."""
    try:
        paths = unpack_paths(bytes(row.paths)) if row.paths else frozenset[str]()
    except PolicyInvalid:
        return EngineHold(pattern="**", until=row.until)  # in doubt everything stays
    return EngineHold(pattern=row.pattern, until=row.until, paths=paths)


def held_by(holds: Sequence[EngineHold], paths: Sequence[str]) -> str | None:
    """The pattern of a hold that keeps one of the escaped `paths`, or None.

    A pattern that cannot be understood (nobody could have saved it) keeps everything.
    """
    try:
        matcher = Holds(holds)
    except PolicyInvalid:
        return "a hold that cannot be understood"
    return next((match for path in paths if (match := matcher.match(path)) is not None), None)
