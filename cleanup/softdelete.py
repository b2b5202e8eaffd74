"""Rows that are soft-deleted, and purged only after a grace period.

A model that inherits `SoftDeleteModel` keeps its rows when `delete()` is called on them; `objects` shows the
living, `all_objects` everything. `purge_after` is fixed at the moment of deletion, so a later change of
policy never shortens it. A row on which another depends that must stay (a protected reference, or a row that
would be deleted with it and lives or can still be restored) is not removed: it stays soft-deleted until that
is no longer so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import chain
from typing import Any, ClassVar, Self, TypeVar

from django.db import models, transaction
from django.db.models.deletion import Collector, ProtectedError, RestrictedError
from django.utils import timezone

_Row = TypeVar("_Row", bound=models.Model)

#: How long a soft-deleted row can be restored unless the caller says otherwise.
DEFAULT_GRACE_PERIOD = timedelta(days=7)


@dataclass(slots=True, kw_only=True)
class Removal:
    """What became of rows that were to be removed for good."""

    #: Of the model itself; what goes with a row by its references is not counted.
    removed: int = 0
    #: Keys of rows that had to stay.
    kept: list[Any] = field(default_factory=list)


class SoftDeleteQuerySet(models.QuerySet[_Row]):
    """Rows with the verbs of soft deletion, each one statement."""

    def alive(self) -> Self:
        return self.filter(deleted_at__isnull=True)

    def deleted(self) -> Self:
        return self.filter(deleted_at__isnull=False)

    def due(self, now: datetime) -> Self:
        """Soft-deleted rows whose grace period is over."""
        return self.deleted().filter(purge_after__lte=now)

    def delete(self) -> tuple[int, dict[str, int]]:
        """Soft-delete the living rows of this set; returns what Django's `delete` does."""
        count = self.soft_delete()
        return count, {self.model._meta.label: count}

    def soft_delete(self, *, grace_period: timedelta = DEFAULT_GRACE_PERIOD, reason: str = "") -> int:
        now = timezone.now()
        return self.alive().update(deleted_at=now, purge_after=now + grace_period, delete_reason=reason)

    def restore(self) -> int:
        return self.deleted().update(deleted_at=None, purge_after=None, delete_reason="")

    def purge(self, now: datetime) -> int:
        """Remove for good the rows that are due and on which nothing depends; return how many."""
        return self.due(now).remove(now).removed

    def remove(self, now: datetime) -> Removal:
        """Remove the soft-deleted rows of this set for good, whatever their grace, but those that must stay.

        All of them at once if nothing stands in the way, else one by one.
        """
        rows = self.deleted().order_by()
        keys = list(rows.values_list("pk", flat=True))
        if not keys or not rows.blocked(now):
            return Removal(removed=rows.erase())
        done = Removal()
        for key in keys:
            row = type(self)(self.model, using=self.db).filter(pk=key).deleted()
            if row.blocked(now):
                done.kept.append(key)
            else:
                done.removed += row.erase()
        return done

    def erase(self) -> int:
        """Delete these rows, and what Django deletes with them; return how many of these."""
        with transaction.atomic():
            return int(models.QuerySet.delete(self)[1].get(self.model._meta.label, 0))

    def blocked(self, now: datetime) -> bool:
        """Whether deleting these rows is forbidden by a reference, or would take rows along that may stay."""
        if not self.model._meta.related_objects:
            return False
        collector = Collector(using=self.db, origin=self)
        try:
            collector.collect(self)
        except (ProtectedError, RestrictedError):
            return True
        own = set(self.values_list("pk", flat=True))
        found = (row for rows in collector.data.values() for row in rows)
        at_once = [rows for rows in collector.fast_deletes if issubclass(rows.model, SoftDeleteModel)]
        taken: Iterator[models.Model] = chain(
            found, *(rows.exclude(purge_after__lte=now) for rows in at_once)
        )
        return any(
            _may_stay(row, now) and not (isinstance(row, self.model) and row.pk in own) for row in taken
        )


def _may_stay(row: models.Model, now: datetime) -> bool:
    """Whether a row lives, or can still be restored."""
    if not isinstance(row, SoftDeleteModel):
        return False
    return row.deleted_at is None or row.purge_after is None or row.purge_after > now


class AliveManager(models.Manager.from_queryset(SoftDeleteQuerySet)):  # type: ignore[misc]
    """Shows living rows only."""

    def get_queryset(self) -> SoftDeleteQuerySet[Any]:
        found: SoftDeleteQuerySet[Any] = super().get_queryset()
        return found.alive()


class SoftDeleteModel(models.Model):
    """Base of models whose rows can be brought back."""

    deleted_at = models.DateTimeField(null=True, blank=True, db_index=True, editable=False)
    #: When the row may be removed for good.
    purge_after = models.DateTimeField(null=True, blank=True, db_index=True, editable=False)
    delete_reason = models.CharField(max_length=200, blank=True, editable=False)

    objects: ClassVar[Any] = AliveManager()
    all_objects: ClassVar[Any] = SoftDeleteQuerySet.as_manager()

    class Meta:
        abstract = True
        base_manager_name = "all_objects"

    def delete(self, *args: Any, **kwargs: Any) -> tuple[int, dict[str, int]]:
        """Soft-delete this row with the default grace period."""
        done: tuple[int, dict[str, int]] = type(self).all_objects.filter(pk=self.pk).delete()
        self._follow()
        return done

    def restore(self) -> bool:
        """Bring this row back. False if it was alive or is gone."""
        done = bool(type(self).all_objects.filter(pk=self.pk).restore())
        self._follow()
        return done

    def _follow(self) -> None:
        """Read what was written: this object may be saved later, and must not undo it."""
        names = ("deleted_at", "purge_after", "delete_reason")
        found = type(self).all_objects.filter(pk=self.pk).values(*names).first() or {}
        for name, value in found.items():
            setattr(self, name, value)
