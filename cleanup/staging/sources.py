"""Sources: addresses that are asked for news at an interval. Adding, changing, switching, removing, waking.

An hourly tick queues those that are due; a message to a worker is a wake-up and no more, so one that comes
twice or never does no harm. The refresh itself is in `refreshing`. Who changes, disables or removes a source
takes the lease from a refresh that is under way, which then stages nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import uuid4

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Q

from cleanup.conf import conf
from cleanup.models import Source, SourceState, StagedFile, StagingArea
from cleanup.operations import NotFound, OperationRefused
from cleanup.operations.runs import send
from cleanup.softdelete import DEFAULT_GRACE_PERIOD
from cleanup.staging.addresses import check_literal, networks, parse
from cleanup.staging.refreshing import Refreshed, refresh
from cleanup.stores import Actor, DatabaseAuditSink, record
from cleanup.stores.sql import database_now

__all__ = [
    "TASK",
    "Refreshed",
    "add",
    "change",
    "find",
    "queue",
    "refresh",
    "remove",
    "restore",
    "set_enabled",
    "tick",
    "versions",
    "wake",
]

#: Refreshes one source.
TASK = "cleanup.tasks.refresh_source"

#: A shorter one is a busy loop against somebody's server.
MIN_INTERVAL = timedelta(minutes=1)
MAX_INTERVAL = timedelta(days=366)

#: Queued by one tick; the others wait for the next.
_TOGETHER = 1_000

#: A refresh under way loses its lease by this.
_CALLED_OFF: dict[str, Any] = {"state": SourceState.IDLE, "lease_by": "", "lease_until": None}


def find(name: str, *, removed: bool = False) -> Source:
    """The source `name`; with `removed`, one that was removed.

    Raises:
        NotFound: there is none.
    """
    rows = Source.all_objects.deleted() if removed else Source.objects
    source: Source | None = rows.select_related("area").filter(name=name).first()
    if source is None:
        raise NotFound(f"there is no {'removed ' if removed else ''}source {name!r}")
    return source


def versions(source: Source, limit: int = 20) -> list[StagedFile]:
    """The newest staged files of a source, also those whose rows are soft-deleted."""
    return list(StagedFile.all_objects.filter(source=source).order_by("-version")[:limit])


def add(
    name: str,
    url: str,
    area: StagingArea,
    actor: Actor,
    *,
    interval: timedelta = timedelta(hours=24),
    enabled: bool = True,
) -> Source:
    """Have `url` asked for news, from the next tick on.

    Raises:
        AddressRefused: the address may not be fetched.
        OperationRefused: the name is taken or none, or the interval makes no sense.
    """
    _check(url, interval)
    former = Source.all_objects.filter(name=name).first()
    if former is not None:
        raise OperationRefused(_taken(former))
    source = Source(
        name=name, url=url, area=area, interval=interval, enabled=enabled, next_check_at=database_now(),
        created_by=actor.name[:150],
    )  # fmt: skip
    try:
        source.full_clean()
    except ValidationError as error:
        raise OperationRefused("; ".join(error.messages)) from error
    with transaction.atomic():
        source.save()
        _write(source, "source_added", actor, url=url, interval_s=int(interval.total_seconds()))
    return source


def _check(url: str, interval: timedelta) -> None:
    check_literal(parse(url), networks(conf().source_networks))
    if not MIN_INTERVAL <= interval <= MAX_INTERVAL:
        raise OperationRefused("the interval of a source is between a minute and 366 days")


def _taken(former: Source) -> str:
    if former.deleted_at is None:
        return f"there is a source {former.name!r} already"
    return f"a source {former.name!r} was removed and can still be restored: restore it, or take another name"


def change(
    source: Source, actor: Actor, *, url: str | None = None, interval: timedelta | None = None
) -> Source:
    """Change the address or the interval; a refresh that is under way is called off, and it is due at once.

    Raises:
        AddressRefused: the address may not be fetched.
        OperationRefused: the interval makes no sense, or the source was removed.
    """
    new_url, new_interval = url or source.url, interval or source.interval
    _check(new_url, new_interval)
    changes: dict[str, Any] = {"url": new_url, "interval": new_interval}
    if new_url != source.url:
        # What another server calls its contents says nothing about this one's.
        changes |= {"etag": "", "last_modified": "", "failures": 0, "last_error": ""}
    _update(
        source, "source_changed", actor, {**changes, "next_check_at": database_now()},
        url=new_url, former_url=source.url, interval_s=int(new_interval.total_seconds()),
    )  # fmt: skip
    return source


def set_enabled(source: Source, enabled: bool, actor: Actor) -> Source:
    """Ask a source, or leave it alone; a refresh that is under way is called off. Twice changes nothing more.

    Raises:
        OperationRefused: the source was removed.
    """
    if source.enabled == enabled:
        return source
    changes: dict[str, Any] = {"enabled": enabled}
    if enabled:
        changes["next_check_at"] = database_now()
    _update(source, "source_enabled" if enabled else "source_disabled", actor, changes)
    return source


def remove(source: Source, actor: Actor) -> Source:
    """Soft-delete a source: it is asked no more, and can be restored for 7 days. Its files stay.

    Raises:
        OperationRefused: it was removed already.
    """
    now = database_now()
    going = {"deleted_at": now, "purge_after": now + DEFAULT_GRACE_PERIOD}
    _update(source, "source_removed", actor, {**going, "delete_reason": f"removed by {actor.name}"[:200]})
    return source


def restore(source: Source, actor: Actor) -> Source:
    """Bring a removed source back; it is due at once.

    Raises:
        OperationRefused: it was not removed, or is gone for good.
    """
    back = {"deleted_at": None, "purge_after": None, "delete_reason": "", "next_check_at": database_now()}
    with transaction.atomic():
        if not Source.all_objects.deleted().filter(pk=source.pk).update(**back):
            raise OperationRefused(f"{source.name} was not removed, or is gone for good")
        _write(source, "source_restored", actor)
    source.refresh_from_db(from_queryset=Source.all_objects.select_related("area"))
    return source


def _update(source: Source, action: str, actor: Actor, changes: dict[str, Any], **evidence: Any) -> None:
    with transaction.atomic():
        if not Source.objects.filter(pk=source.pk).update(**changes, **_CALLED_OFF):
            raise OperationRefused(f"{source.name} was removed")
        _write(source, action, actor, **evidence)
    source.refresh_from_db(from_queryset=Source.all_objects.select_related("area"))


def _write(source: Source, action: str, actor: Actor, **evidence: Any) -> None:
    told = {"source": source.name, **evidence}
    entry = record(actor, action, now=database_now(), item=source.pk, area=source.area.name, evidence=told)
    DatabaseAuditSink().write([entry])


# Waking


def queue(source: Source, actor: Actor) -> Source:
    """Have a source asked as soon as may be, though it is not due. Whoever carries it out is to be woken.

    Raises:
        OperationRefused: it is disabled or removed, or is being asked already.
    """
    with transaction.atomic():
        if not _queue(source.pk):
            _check_waiting(source)
        source.refresh_from_db()
        _write(source, "source_refresh_asked", actor, task=source.task_id)
    return source


def _queue(key: int, *conditions: Q) -> bool:
    """Queue a source that is idle, under a new task; False if it is not."""
    idle = Source.objects.filter(*conditions, pk=key, enabled=True, state=SourceState.IDLE)
    return bool(idle.update(state=SourceState.QUEUED, task_id=str(uuid4())))


def _check_waiting(source: Source) -> None:
    """Refuse unless the source waits for a worker: its message may be lost, or the worker dead."""
    found = Source.objects.filter(pk=source.pk).first()
    if found is None:
        raise OperationRefused(f"{source.name} was removed")
    if not found.enabled:
        raise OperationRefused(f"{source.name} is disabled: enable it first")
    if not Source.objects.filter(_waits(database_now()), pk=source.pk).exists():
        raise OperationRefused(f"{source.name} is being asked already")


def _waits(now: datetime) -> Q:
    return Q(state=SourceState.QUEUED) | Q(state=SourceState.ACTIVE, lease_until__lt=now)


def wake(key: int) -> None:
    """Tell a worker, once the open transaction is committed, that a source waits to be asked."""
    transaction.on_commit(partial(send, TASK, str(key)), robust=True)


def tick(now: datetime) -> Sequence[int]:
    """Queue the sources that are due, each once; return the keys of all that a worker is to be woken for.

    Those whose message was lost, or whose worker has died, are among them.
    """
    due = Q(next_check_at__lte=now)
    idle = Source.objects.filter(due, enabled=True, state=SourceState.IDLE).order_by("next_check_at")
    for key in list(idle.values_list("pk", flat=True)[:_TOGETHER]):
        _queue(key, due)
    return list(Source.objects.filter(_waits(now), enabled=True).order_by("pk").values_list("pk", flat=True))
