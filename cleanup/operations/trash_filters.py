"""Which files in the trash an order is about: a filter as a dictionary, and the rows that it finds.

The filter is kept with the order as it was given, by names and moments and not by ids of rows, so that it can
be read years later. It finds what is in the trash now; `before` narrows it to what was there at a moment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db.models import Count, Q, QuerySet, Sum

from cleanup.engine.names import patterns
from cleanup.models import CleanupItem, CleanupRun, ItemState, RetentionPolicy
from cleanup.operations.areas import find_area
from cleanup.operations.outcomes import OperationRefused

#: Beyond so many files a page says "more than" instead of counting on: a second on a slow disk.
MOST_COUNTED = 1_000_000


def _by_area(name: str) -> Q:
    return Q(area=find_area(name))


def _by_policy(name: str) -> Q:
    if not RetentionPolicy.objects.filter(name=name).exists():
        raise OperationRefused(f"no policy is called {name!r}")
    return Q(run__in=CleanupRun.objects.filter(policy_version__policy__name=name).values("pk"))


def _by_run(text: str) -> Q:
    try:
        return Q(run=UUID(text))
    except ValueError as error:
        raise OperationRefused(f"{text!r} is not the id of a run") from error


def _by_moment(lookup: str) -> Callable[[str], Q]:
    def condition(text: str) -> Q:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError as error:
            raise OperationRefused(f"{text!r} is no moment") from error
        if moment.tzinfo is None:
            raise OperationRefused(f"{text!r} names no zone")
        return Q(**{lookup: moment})

    return condition


def _by_size(text: Any) -> Q:
    try:
        return Q(size__gte=int(text))
    except ValueError as error:
        raise OperationRefused(f"{text!r} is no number of bytes") from error


#: What a filter may name, to the condition on a row. `path` is a glob, asked about each row that is found.
_CONDITIONS: dict[str, Callable[[Any], Q]] = {
    "area": _by_area,
    "policy": _by_policy,
    "run": _by_run,
    "reason": lambda text: Q(reason=text),
    "contains": lambda text: Q(path__icontains=text),
    "begins": lambda text: Q(path__startswith=text),
    "min_size": _by_size,
    "trashed_from": _by_moment("trashed_at__gte"),
    "trashed_before": _by_moment("trashed_at__lt"),
    "purge_from": _by_moment("purge_after__gte"),
    "purge_before": _by_moment("purge_after__lt"),
}

_WORDS = {
    "path": "path like {}", "contains": "path with {}", "begins": "path beginning with {}",
    "min_size": "{} bytes or more", "trashed_from": "trashed since {}", "trashed_before": "trashed before {}",
    "purge_from": "purge not before {}", "purge_before": "purge before {}",
}  # fmt: skip


def matching(found_by: Mapping[str, Any], *, before: datetime | None = None) -> QuerySet[CleanupItem]:
    """The rows in the trash that a filter finds; its `path` is left to `fits`.

    Raises:
        OperationRefused: it names what there is not.
    """
    if unknown := sorted(set(found_by) - {*_CONDITIONS, "path"}):
        raise OperationRefused(f"nothing in the trash is found by {', '.join(unknown)}")
    rows = CleanupItem.objects.filter(state=ItemState.TRASHED)
    for name, value in found_by.items():
        if name != "path":
            rows = rows.filter(_CONDITIONS[name](value))
    return rows if before is None else rows.filter(trashed_at__lte=before)


def fits(found_by: Mapping[str, Any]) -> Callable[[str], bool]:
    """Whether an escaped path is one that the filter's glob means; without a glob each is."""
    if not found_by.get("path"):
        return lambda path: True
    matcher = patterns((found_by["path"],), subtree=True)
    return lambda path: matcher.match(path) is not None


def count(found_by: Mapping[str, Any]) -> tuple[int, int, bool]:
    """Files and bytes that a filter finds now, and whether there are more than were counted."""
    rows = matching(found_by).order_by()
    if found_by.get("path"):
        return _count_each(rows, fits(found_by))
    # Of a slice: the database stops when it has so many.
    part = (
        CleanupItem.objects.filter(pk__in=rows.values("pk")[: MOST_COUNTED + 1]) if _is_huge(rows) else rows
    )
    found = part.order_by().aggregate(files=Count("pk"), bytes=Sum("size"))
    files = found["files"] or 0
    return min(files, MOST_COUNTED), found["bytes"] or 0, files > MOST_COUNTED


def _is_huge(rows: QuerySet[CleanupItem]) -> bool:
    return rows.values("pk")[MOST_COUNTED : MOST_COUNTED + 1].exists()


def _count_each(rows: QuerySet[CleanupItem], is_meant: Callable[[str], bool]) -> tuple[int, int, bool]:
    files = size = 0
    for path, number in _paths(rows):
        if is_meant(path):
            files, size = files + 1, size + number
    return files, size, False


def _paths(rows: QuerySet[CleanupItem]) -> Iterator[tuple[str, int]]:
    yield from rows.values_list("path", "size").iterator(chunk_size=10_000)


def in_words(found_by: Mapping[str, Any]) -> str:
    """A filter as a person reads it: `area staged, reason older than age`."""
    parts = []
    for name, value in found_by.items():
        text = str(value).replace("_", " ") if name == "reason" else str(value)
        parts.append(_WORDS[name].format(text) if name in _WORDS else f"{name} {text}")
    return ", ".join(parts) or "everything in the trash"
