"""The permissions of a role as one list, under headings: what they are about, then what may be done with it.

Django's own list repeats the app and the model in each of its lines, and has many that mean nothing here:
nobody adds a connection or changes an entry of the audit.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from django.contrib.auth.models import Permission
from django.contrib.contenttypes.models import ContentType
from django.db.models import Q, QuerySet
from django.forms.models import ModelChoiceIterator, ModelMultipleChoiceField

from xnai_site.roles import in_roles


class _ByModel(ModelChoiceIterator):  # type: ignore[type-arg]
    """Choices under the name of the model that they are about."""

    def __iter__(self) -> Iterator[Any]:
        for about, rows in groupby(self.queryset, key=lambda row: row.content_type):
            yield _heading(about), [self.choice(row) for row in rows]


class PermissionField(ModelMultipleChoiceField):  # type: ignore[type-arg]
    """Permissions to choose from."""

    iterator = _ByModel

    def __init__(self, **options: Any) -> None:
        super().__init__(manageable(), **options)

    def label_from_instance(self, row: Any) -> str:
        """`Can view topic`, under the heading of topics, is `View`; a change of the console is its label."""
        words = row.name.removeprefix("Can ").partition(":")[0]
        model = row.content_type.model_class()
        subject = f" {model._meta.verbose_name}" if model else ""
        return str(words.removesuffix(subject).capitalize())


def manageable() -> QuerySet[Permission]:
    """What our roles are made of, and whatever else a role was given."""
    found = Permission.objects.filter(in_roles() | Q(group__isnull=False)).distinct()
    return found.select_related("content_type").order_by(
        "content_type__app_label", "content_type__model", "codename"
    )


def _heading(about: ContentType) -> str:
    model = about.model_class()
    return f"{about.app_label}: {model._meta.verbose_name_plural if model else about.model}"
