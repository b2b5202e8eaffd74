"""Rows that are soft-deleted, and purged only after a grace period.

A model that inherits `SoftDeleteModel` keeps its rows when `delete()` is called on them; `objects` shows the
living, `all_objects` everything. `purge_after` is fixed at the moment of deletion, so a later change of
policy never shortens it.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, ClassVar, Self

from django.db import models
from django.utils import timezone

#: How long a soft-deleted row can be restored unless the caller says otherwise.
DEFAULT_GRACE_PERIOD = timedelta(days=7)


class SoftDeleteQuerySet(models.QuerySet["SoftDeleteModel"]):
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
        """Remove for good the rows that are due. Rows still within their grace period stay."""
        return models.QuerySet.delete(self.due(now))[0]


class AliveManager(models.Manager.from_queryset(SoftDeleteQuerySet)):  # type: ignore[misc]
    """Shows living rows only."""

    def get_queryset(self) -> SoftDeleteQuerySet:
        found: SoftDeleteQuerySet = super().get_queryset()
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
        return type(self).all_objects.filter(pk=self.pk).delete()

    def restore(self) -> bool:
        """Bring this row back. False if it was alive or is gone."""
        return bool(type(self).all_objects.filter(pk=self.pk).restore())
