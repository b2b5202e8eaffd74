"""What the pages of cleanup share: ages and sizes as people write them, reasons as people read them, who the
person is.

Fields give the values that `cleanup.operations` takes; whatever they cannot read is an error on the form.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from django import forms
from django.http import HttpRequest
from unfold.widgets import UnfoldAdminTextInputWidget

from bus import cells
from cleanup.engine.ages import format_age, parse_age
from cleanup.engine.errors import PolicyInvalid
from cleanup.stores import Actor
from cleanup.verifiers import describe

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kMGTP]?)B?", re.ASCII)
_FACTORS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}

#: What the figure of a brake counts.
_BRAKES = {
    "max_files": "files",
    "max_percent": "percent of the area",
    "max_median_factor": "times as many files as usual",
    "max_unknown_percent": "percent unknown answers of verifiers",
}


def actor_of(request: HttpRequest) -> Actor:
    """The person behind a request, as audit entries name them."""
    return Actor(name=request.user.get_username(), kind="user")


class AgeField(forms.CharField):
    """A length of time in the syntax of tmpfiles.d; gives a timedelta."""

    widget = UnfoldAdminTextInputWidget

    def prepare_value(self, value: Any) -> Any:
        return format_age(value) if isinstance(value, timedelta) else value

    def clean(self, value: str | None) -> timedelta | None:
        text = super().clean(value)
        if not text:
            return None
        try:
            return parse_age(text)
        except PolicyInvalid as error:
            raise forms.ValidationError(str(error)) from error


class SizeField(forms.CharField):
    """A number of bytes, with or without a unit: `250 MB`, `100G`, `4096`."""

    widget = UnfoldAdminTextInputWidget

    def prepare_value(self, value: Any) -> Any:
        return exact_size(value) if isinstance(value, int) else value

    def clean(self, value: str | None) -> int:
        text = (super().clean(value) or "").strip()
        match = _SIZE.fullmatch(text)
        if match is None:
            raise forms.ValidationError("Write a size such as 250 MB or 100 GB.")
        return round(float(match[1]) * _FACTORS[match[2]])


def exact_size(number: int) -> str:
    """The shortest way to write a size without rounding it."""
    for unit in "PTGMk":
        if number and number % _FACTORS[unit] == 0:
            return f"{number // _FACTORS[unit]} {unit}B"
    return str(number)


def verifier_line(specification: Any) -> str:
    """A verifier as one line of text: `redis_task:key=job:{task_id},value=done`."""
    return describe(specification)


def reasons(kept: dict[str, int] | None) -> list[tuple[str, str]]:
    """Reason -> number, the most frequent first, as words and figures."""
    ordered: Iterable[tuple[str, int]] = sorted((kept or {}).items(), key=lambda pair: (-pair[1], pair[0]))
    return [(words(reason), f"{number:,}") for reason, number in ordered]


def words(reason: str) -> str:
    """`older_than_age` -> `older than age`"""
    return reason.replace("_", " ")


def brake_lines(hits: list[dict[str, Any]] | None) -> list[str]:
    """Each brake that a plan is above, in a sentence."""
    return [_brake(hit) for hit in hits or []]


def _brake(hit: dict[str, Any]) -> str:
    name, limit, value = str(hit["brake"]), int(hit["limit"]), int(hit["value"])
    if name == "max_bytes":
        return f"{cells.size(value)}, where {cells.size(limit)} is the limit"
    unit = _BRAKES.get(name, words(name))
    return f"{value:,} {unit}, where {limit:,} is the limit"
