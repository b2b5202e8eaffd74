"""Asks the site's own database: a row of a model exists, and if wanted a field of it has the expected value.

Models and fields are checked when the policy is saved. Rows are looked for through the model's default
manager, so a soft-deleted one is absent, which is FAIL; so is one of several rows with another value. A value
that the field cannot hold, an error of the database or one that does not answer in time is UNKNOWN.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from django.apps import apps
from django.core.exceptions import FieldDoesNotExist, ValidationError
from django.db import connections, models, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from cleanup.engine.verify import Deadline, Finding, Subject
from cleanup.verifiers.bounded import patience
from cleanup.verifiers.kinds import CANARIES, Kind, Option, Options, Surroundings
from cleanup.verifiers.questions import answer_all, says, unknown
from cleanup.verifiers.templates import Template, placeholders_of

#: Values in one query: below the oldest limit of SQLite.
_PART = 500

#: Rows that one value may have. More is another question than the one that was meant.
_MAX_ROWS = 100

#: Virtual machine steps of SQLite between two looks at the clock.
_STEPS = 20_000


class Record:
    """A `Verifier` over rows of a model."""

    def __init__(self, name: str, options: Options, _: Surroundings) -> None:
        """Keep the options."""
        self.name = name
        self.model = apps.get_model(options["model"])
        self.lookup = _field(self.model, options["field"])
        self.value = Template(options["value"])
        self.checked = _field(self.model, options["check"]) if options["check"] else None
        self.wanted = self.checked.to_python(options["equals"]) if self.checked else None

    def verify(self, items: Sequence[Subject], deadline: Deadline) -> list[Finding]:
        """Answer about each of `items`."""
        return answer_all(items, self._question, lambda values: self._ask(values, deadline))

    def _question(self, subject: Subject) -> Any:
        text = self.value.fill(subject)
        if text is None:
            return unknown(self.value.lacking(subject))
        try:
            value = self.lookup.to_python(text)
            # One value that is too large for its column would be an error about all of its part.
            self.lookup.run_validators(value)
            return value
        except (ValidationError, ValueError, OverflowError):
            return unknown(f"{text} is no {self.lookup.name}")

    def _ask(self, values: Sequence[Any], deadline: Deadline) -> Iterator[Finding]:
        for start in range(0, len(values), _PART):
            part = values[start : start + _PART]
            found = self._rows(part, deadline)
            yield from (self._judge(value, found[value]) for value in part)

    def _rows(self, values: Sequence[Any], deadline: Deadline) -> dict[Any, list[Any]]:
        shown = self.checked.attname if self.checked else self.lookup.attname
        rows = self.model._default_manager.filter(**{f"{self.lookup.attname}__in": values}).order_by()
        limit = len(values) * _MAX_ROWS
        found: dict[Any, list[Any]] = defaultdict(list)
        with _bounded(router.db_for_read(self.model), deadline):
            for value, held in rows.values_list(self.lookup.attname, shown)[: limit + 1]:
                found[value].append(held)
        if sum(map(len, found.values())) > limit:
            raise ValueError(f"more than {_MAX_ROWS} rows for one value")
        return found

    def _judge(self, value: Any, held: Sequence[Any]) -> Finding:
        where = f"{self.model._meta.label} {self.lookup.name}={value}"
        if not held:
            return says(False, f"{where} is absent")
        if self.checked is None:
            return says(True, f"{where} exists")
        others = [one for one in held if one != self.wanted]
        shown = f"{where}: {self.checked.name}={(others or held)[0]}"
        return says(not others, shown)


@contextmanager
def _bounded(alias: str, deadline: Deadline) -> Iterator[None]:
    """Let the database work no longer than a verifier may; an error leaves a transaction around it whole."""
    connection = connections[alias]
    if connection.vendor == "sqlite":
        with _interrupted(connection, deadline):
            yield
        return
    # Not for SQLite, where a transaction would wait for whoever is writing.
    with transaction.atomic(using=alias):
        before = _limit(connection, f"{int(patience(deadline) * 1000) + 1}ms")
        yield
        _limit(connection, before)


@contextmanager
def _interrupted(connection: BaseDatabaseWrapper, deadline: Deadline) -> Iterator[None]:
    connection.ensure_connection()
    end = Deadline(timedelta(seconds=patience(deadline)))
    connection.connection.set_progress_handler(lambda: end.is_over(), _STEPS)
    try:
        yield
    finally:
        connection.connection.set_progress_handler(None, 0)


def _limit(connection: BaseDatabaseWrapper, length: str) -> str:
    """Limit the statements that follow in the transaction; return the limit until now."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('statement_timeout')")
        (before,) = cursor.fetchone()
        cursor.execute("SELECT set_config('statement_timeout', %s, true)", [length])
    return str(before)


def _field(model: type[models.Model], name: str) -> models.Field[Any, Any]:
    field = model._meta.pk if name == "pk" else model._meta.get_field(name)
    if not isinstance(field, models.Field) or not field.concrete:
        raise FieldDoesNotExist(f"{name} is no column")
    return field


def _check(options: Options) -> str | None:
    try:
        model = apps.get_model(options["model"])
    except (LookupError, ValueError):
        return f"there is no model {options['model']!r}; it is named as app_label.Model"
    if "{" not in options["value"]:
        return "the value has no placeholder such as {task_id}, so every file would be judged by the same row"
    if options["equals"] and not options["check"]:
        return "equals says what the field check must be, which is missing"
    try:
        _field(model, options["field"])
        if options["check"]:
            _field(model, options["check"]).to_python(options["equals"])
    except (FieldDoesNotExist, ValidationError, ValueError) as error:
        return f"{model._meta.label}: {error}"
    return None


KIND = Kind(
    summary="a row of a model exists in the site's database, and if wanted has the expected value",
    options={
        "model": Option(meaning="app_label.Model"),
        "field": Option(default="task_id", meaning="the field that names the task or the file"),
        "value": Option(default="{task_id}", meaning="template of what that field holds"),
        "check": Option(meaning="another field whose value counts; empty = the row need only be there"),
        "equals": Option(meaning="what that field must hold, in every such row"),
        **CANARIES,
    },
    check=_check,
    make=Record,
    placeholders=placeholders_of("value"),
)
