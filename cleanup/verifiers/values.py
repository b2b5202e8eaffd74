"""A value inside a JSON document: is it what a policy expects?

Documents come from servers and files that may be broken. What is no JSON, names a key twice, lacks the value
or holds something other than text, a whole number or a truth value there, says nothing: UNKNOWN.
"""

from __future__ import annotations

import json
from typing import Any

from cleanup.engine.verify import Finding
from cleanup.verifiers.questions import says, unknown

#: Documents are read up to this size; a larger one is no answer.
MAX_DOCUMENT = 65_536


def judge_document(data: bytes, at: str, expected: str) -> Finding:
    """Compare the value at the dotted path `at` (`state`, `result.0.ok`) with `expected`, as text."""
    try:
        value = _value_at(_parse(data), at)
    except (ValueError, LookupError, RecursionError) as error:
        return unknown(f"no value at {at}: {error}")
    if isinstance(value, bool):
        value = "true" if value else "false"
    if not isinstance(value, (str, int)):
        return unknown(f"{at} is {_kind(value)}")
    return says(str(value) == expected, f"{at} = {value}")


def count_at(data: bytes, at: str) -> int:
    """The whole number at the dotted path `at`; an empty path is the document itself.

    Raises:
        ValueError: there is none.
    """
    try:
        value = _value_at(_parse(data), at)
    except (LookupError, RecursionError) as error:
        raise ValueError(f"no value at {at}: {error}") from error
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{at or 'the document'} is {_kind(value)}, not a count")
    return value


def _kind(value: object) -> str:
    return "null" if value is None else f"of type {type(value).__name__}"


def _parse(data: bytes) -> Any:
    if not data.strip():
        raise ValueError("an empty document")
    return json.loads(data, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _value_at(document: Any, at: str) -> Any:
    for step in at.split(".") if at else []:
        if isinstance(document, list) and step.isdecimal() and len(step) < 10:
            document = document[int(step)]
        elif isinstance(document, dict):
            document = document[step]
        else:
            raise LookupError(f"{step} of {_kind(document)}")
    return document
