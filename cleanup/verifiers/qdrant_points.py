"""Asks Qdrant whether the points that were made of a file are in the index.

A filter selects the points of a task (or, with other placeholders, of a file); there must be at least
`at_least` of them, or exactly `exactly`, or exactly as many as a companion file says (`exactly_from`). The
qdrant-client package is optional and imported when somebody asks. Requests go through our own transport, so
that the deadline of the batch and the size of an answer hold. A missing collection is UNKNOWN: it is a
mistake, or a restored backup, and no answer about the points.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from importlib.util import find_spec
from typing import Any

from cleanup.conf import conf
from cleanup.engine.errors import PolicyInvalid
from cleanup.engine.verify import Deadline, Finding, Subject
from cleanup.verifiers.beside import read_beside
from cleanup.verifiers.kinds import CANARIES, Kind, Option, Options, Surroundings
from cleanup.verifiers.questions import answer_all, says, unknown
from cleanup.verifiers.templates import Template
from cleanup.verifiers.values import count_at

#: The filter as JSON, filled in, and how many points it must select: (count, whether that exactly).
_Question = tuple[str, int, bool]

#: Before the path of a folder with an embedded Qdrant.
_FOLDER = "file://"


class QdrantPoints:
    """A `Verifier` over counts of points."""

    def __init__(self, name: str, options: Options, surroundings: Surroundings) -> None:
        """Keep the options; a client is made for each batch."""
        self.name, self.area = name, surroundings.area
        self.collection = options["collection"]
        self.filter = _filter_of(options)
        self.at_least, self.exactly = int(options["at_least"]), options["exactly"]
        self.beside = Template(options["exactly_from"]) if options["exactly_from"] else None
        self.at = options["exactly_at"]

    def verify(self, items: Sequence[Subject], deadline: Deadline) -> list[Finding]:
        """Answer about each of `items`."""
        return answer_all(items, self._question, lambda questions: self._ask(questions, deadline))

    def _question(self, subject: Subject) -> _Question | Finding:
        try:
            filled = json.dumps(_filled(self.filter, subject), sort_keys=True)
        except _Lacking as lacking:
            return unknown(str(lacking))
        if self.beside is not None:
            return self._named_count(filled, subject, self.beside)
        if self.exactly:
            return filled, int(self.exactly), True
        return filled, self.at_least, False

    def _named_count(self, filled: str, subject: Subject, name: Template) -> _Question | Finding:
        data = read_beside(self.area, subject, name)
        if isinstance(data, Finding):
            return data
        try:
            return filled, count_at(data, self.at), True
        except ValueError as error:
            return unknown(str(error))

    def _ask(self, questions: Sequence[_Question], deadline: Deadline) -> Iterator[Finding]:
        if not questions:
            return
        from qdrant_client import models

        with closing(_client(deadline)) as client:
            for filled, wanted, exact in questions:
                deadline.left()
                chosen = models.Filter.model_validate(json.loads(filled))
                found = client.count(self.collection, count_filter=chosen, exact=True).count
                passes = found == wanted if exact else found >= wanted
                sign = "" if exact else "at least "
                yield says(passes, f"{found} points, {sign}{wanted} expected")


class _Lacking(Exception):
    """The filter cannot be filled in for a file."""


def _filter_of(options: Options) -> Any:
    """The filter as a document whose texts are templates.

    Raises:
        ValueError: no JSON.
        PolicyInvalid: a placeholder that does not exist.
    """
    if options["filter"]:
        document = json.loads(options["filter"])
    else:
        document = {"must": [{"key": options["field"], "match": {"value": options["value"]}}]}
    return _templates(document)


def _templates(document: Any) -> Any:
    if isinstance(document, dict):
        return {key: _templates(value) for key, value in document.items()}
    if isinstance(document, list):
        return [_templates(value) for value in document]
    return Template(document) if isinstance(document, str) else document


def _filled(document: Any, subject: Subject) -> Any:
    """The document for one file. What is filled in stays within one text, so no filter changes its form."""
    if isinstance(document, dict):
        return {key: _filled(value, subject) for key, value in document.items()}
    if isinstance(document, list):
        return [_filled(value, subject) for value in document]
    if not isinstance(document, Template):
        return document
    text = document.fill(subject)
    if text is None:
        raise _Lacking(document.lacking(subject))
    return text


def _client(deadline: Deadline) -> Any:
    from qdrant_client import QdrantClient

    url = conf().qdrant_url
    if not url:
        raise PolicyInvalid("CLEANUP['QDRANT_URL'] says nowhere where Qdrant is")
    if url.startswith(_FOLDER):
        return QdrantClient(path=url.removeprefix(_FOLDER))
    from cleanup.verifiers.qdrant_transport import connected

    return connected(url, conf().qdrant_api_key, deadline)


def _check(options: Options) -> str | None:
    if find_spec("qdrant_client") is None:
        return "the package qdrant-client is not installed"
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,255}", options["collection"]):
        return "collection names a collection"
    if options["filter"] and not _is_filter(options["filter"]):
        return "the filter is no filter of Qdrant in JSON"
    if not _used(_filter_of(options)):
        return "the filter has no placeholder such as {task_id}, so all files would be judged by one answer"
    return _check_counts(options)


def _is_filter(text: str) -> bool:
    from qdrant_client import models

    try:
        document = json.loads(text)
        models.Filter.model_validate(document)
    except (ValueError, RecursionError):  # pydantic's errors are ValueErrors too
        return False
    return bool(document)


def _placeholders(options: Options) -> frozenset[str]:
    try:
        document = _filter_of(options)
    except (ValueError, RecursionError):
        return frozenset()  # `_check` says what is wrong
    return _used(document) | Template(options["exactly_from"]).placeholders


def _used(document: Any) -> frozenset[str]:
    """The placeholders of a document's texts."""
    if isinstance(document, Template):
        return document.placeholders
    parts = document.values() if isinstance(document, dict) else document
    return frozenset().union(*map(_used, parts)) if isinstance(document, (dict, list)) else frozenset()


def _check_counts(options: Options) -> str | None:
    for name in ("at_least", "exactly"):
        if options[name] and not re.fullmatch(r"[0-9]{1,9}", options[name]):
            return f"{name} is a whole number"
    if int(options["at_least"] or 0) < 1:
        return "at_least is 1 or more: no points are no proof"
    if options["exactly"] == "0":
        return "exactly is 1 or more: no points are no proof"
    if options["exactly"] and options["exactly_from"]:
        return "exactly and exactly_from exclude each other"
    if options["exactly_from"] and (options["canary_present"] or options["canary_absent"]):
        return "a canary is no file, so it has no companion that says how many points there are"
    return None


KIND = Kind(
    summary="the points of the task are in a collection of Qdrant: at least or exactly so many",
    options={
        "collection": Option(meaning="name of the collection"),
        "field": Option(default="task_id", meaning="field of the payload that names the task"),
        "value": Option(default="{task_id}", meaning="template of what the field holds"),
        "filter": Option(meaning="a whole filter in JSON instead; its texts are templates"),
        "at_least": Option(default="1", meaning="fewer points keep the file"),
        "exactly": Option(meaning="any other number of points keeps the file"),
        "exactly_from": Option(meaning="template of the name of a JSON file beside it that says how many"),
        "exactly_at": Option(default="points", meaning="where in that file the number stands"),
        **CANARIES,
    },
    check=_check,
    make=QdrantPoints,
    placeholders=_placeholders,
)
