"""Rows of soft-delete models, as a policy over rows sees them: found by age, taken, brought back, removed.

A row is named `app_label.Model/key`. It is taken by compare-and-set: only if it lives, satisfies the policy's
filter and still has the very stamp that it was planned with.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from django.apps import apps
from django.core.exceptions import FieldDoesNotExist, FieldError, ValidationError
from django.db import models

from cleanup.engine.errors import PolicyInvalid
from cleanup.engine.policy import Policy
from cleanup.softdelete import Removal, SoftDeleteModel
from cleanup.stores.sql import IN_LIST, chunks

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US = timedelta(microseconds=1)

#: Rows read by one statement.
_PAGE = 2_000

RowModel = type[SoftDeleteModel]


def soft_delete_models() -> list[RowModel]:
    """Every model whose rows are soft-deleted and that has a table of its own."""
    return [
        model
        for model in apps.get_models()
        if issubclass(model, SoftDeleteModel) and model._meta.managed and not model._meta.proxy
    ]


def find_model(label: str) -> RowModel:
    """The soft-delete model `app_label.Model`.

    Raises:
        PolicyInvalid: there is none, or its rows could not be brought back.
    """
    try:
        model = apps.get_model(label)
    except (LookupError, ValueError) as error:
        raise PolicyInvalid(f"there is no model {label!r}") from error
    if model not in soft_delete_models():
        raise PolicyInvalid(f"rows of {label} could not be brought back: it is no soft-delete model")
    if model._meta.label != label:
        raise PolicyInvalid(f"model {label!r} is written {model._meta.label}")
    return model


def check_rows(policy: Policy) -> None:
    """Refuse a policy over rows that its model cannot obey.

    Raises:
        PolicyInvalid: the model, the stamp's field or a lookup of the filter is none.
    """
    model = find_model(policy.model)
    try:
        stamp = model._meta.get_field(policy.stamp_field)
    except FieldDoesNotExist as error:
        raise PolicyInvalid(f"{policy.model} has no field {policy.stamp_field!r}") from error
    if not isinstance(stamp, models.DateTimeField):
        raise PolicyInvalid(f"{policy.model}.{policy.stamp_field} holds no moment")
    own = {field.name for field in model._meta.concrete_fields} | {"pk"}
    for lookup in policy.row_lookups:
        if lookup.partition("__")[0] not in own:
            raise PolicyInvalid(f"row_filter: {policy.model} has no field {lookup.partition('__')[0]!r}")
    try:
        str(model.objects.filter(**policy.row_lookups).query)
    except (FieldError, ValidationError, ValueError, TypeError) as error:
        raise PolicyInvalid(f"row_filter cannot be asked of {policy.model}: {error}") from error


def matching(policy: Policy) -> Any:
    """The living rows that satisfy the policy's filter."""
    return find_model(policy.model).objects.filter(**policy.row_lookups)


def aged(policy: Policy, *, now: datetime) -> Iterator[tuple[Any, datetime]]:
    """Yield key and stamp of the matching rows that are as old as the policy says, by their keys.

    Page by page, so that no transaction stays open while a long plan is made.
    """
    before = now - (policy.age or timedelta(0))
    rows = matching(policy).filter(**{f"{policy.stamp_field}__lt": before}).order_by("pk")
    page: list[tuple[Any, datetime]] = list(rows.values_list("pk", policy.stamp_field)[:_PAGE])
    while page:
        yield from page
        page = list(rows.filter(pk__gt=page[-1][0]).values_list("pk", policy.stamp_field)[:_PAGE])


def name_of(model: type[models.Model], key: Any) -> str:
    """The name of a row in plans and audit entries."""
    return f"{model._meta.label}/{key}"


def key_of(model: type[models.Model], name: str) -> Any:
    """The key of the row `name`."""
    return model._meta.pk.to_python(name.partition("/")[2])


def stamp_ns(stamp: datetime) -> int:
    """A stamp as the identity of a planned row, in nanoseconds since 1970."""
    return (stamp - _EPOCH) // _US * 1000


def still_planned(policy: Policy, stamps: Mapping[Any, int]) -> list[Any]:
    """Lock those rows (keys with their planned stamps) that are as they were planned; return their keys.

    Until the end of the caller's transaction.
    """
    found = list[Any]()
    for part in chunks(stamps, IN_LIST // 2):
        rows = matching(policy).select_for_update().filter(pk__in=part).order_by("pk")
        seen = rows.values_list("pk", policy.stamp_field)
        found += [key for key, stamp in seen if stamp is not None and stamp_ns(stamp) == stamps[key]]
    return found


def living(model: RowModel, keys: Collection[Any]) -> set[Any]:
    """Those of `keys` whose row lives."""
    return {
        key
        for part in chunks(keys)
        for key in model.objects.filter(pk__in=part).order_by().values_list("pk", flat=True)
    }


def take(model: RowModel, keys: Sequence[Any], *, at: datetime, purge_after: datetime, reason: str) -> int:
    """Soft-delete the living rows of `keys`."""
    gone = {"deleted_at": at, "purge_after": purge_after, "delete_reason": reason[:200]}
    return sum(int(model.objects.filter(pk__in=part).update(**gone)) for part in chunks(keys, IN_LIST // 2))


def remove(model: RowModel, keys: Sequence[Any], *, now: datetime) -> Removal:
    """Remove for good the rows of `keys` that are due at `now` and on which nothing depends."""
    done = Removal()
    for part in chunks(keys, IN_LIST // 2):
        one: Removal = model.all_objects.filter(pk__in=part).due(now).remove(now)
        done.removed += one.removed
        done.kept += one.kept
    return done
