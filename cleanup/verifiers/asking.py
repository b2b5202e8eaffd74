"""Asking all verifiers of a policy: batches, canaries, counters.

`asking` is for work that moves or removes: it asks the canaries before and after, and what does not answer
them as it must raises `VerifierFailed`, which stops the run. (An emptied Redis, a wrong collection or a
restored backup answers every question, and wrongly.) `asker` is for a question or two. A verifier that has
failed in several batches one after another is not asked any more by the same asker, so a server that is down
costs a run a few time-outs and not one for each batch.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import NamedTuple

import msgspec

from cleanup.conf import conf
from cleanup.engine.area import AreaHandle
from cleanup.engine.errors import PolicyInvalid, VerifierFailed
from cleanup.engine.verify import Answer, Checked, Deadline, Finding, Subject, Verifier, ask
from cleanup.models import StagedFile
from cleanup.stores.sql import chunks
from cleanup.verifiers.checks import note_of_run
from cleanup.verifiers.kinds import Surroundings
from cleanup.verifiers.specifications import Specification, build, canonical, parse
from cleanup.verifiers.totals import add_answers

logger = logging.getLogger(__name__)

#: Batches in a row after whose failure a verifier is given up.
_GIVEN_UP_AFTER = 3


@dataclass(slots=True)
class _Asked:
    """A verifier as one asker sees it: with its canaries, and its failures in a row."""

    verifier: Verifier
    kind: str
    canaries: list[tuple[Subject, Answer]] = field(default_factory=list)
    failures: int = 0

    @property
    def name(self) -> str:
        return self.verifier.name

    def verify(self, items: Sequence[Subject], deadline: Deadline) -> Sequence[Finding]:
        """Ask, unless that has failed too often."""
        if self.failures >= _GIVEN_UP_AFTER:
            return [
                Finding(Answer.UNKNOWN, "given up: it failed in several batches one after another")
            ] * len(items)
        self.failures += 1
        findings = self.verifier.verify(items, deadline)
        self.failures = 0
        return findings


class Asker:
    """All verifiers of a policy, to be called with one batch of subjects at a time."""

    def __init__(
        self,
        specifications: Iterable[Specification],
        *,
        policy: str = "",
        area: AreaHandle | None = None,
        counted: bool = True,
    ) -> None:
        """Make the verifiers.

        Args:
            specifications: of the policy.
            policy: its name, for the counters.
            area: open, for verifiers that look at files.
            counted: whether the answers are added to the counters.

        Raises:
            PolicyInvalid: a specification that could not be obeyed.
        """
        self.policy, self.counted = policy, counted
        #: By verifier what it said first when it could not tell, for who wonders why nothing went.
        self.doubts: dict[str, str] = {}
        self.asked = [
            _Asked(verifier, *kind_and_canaries(verifier.name))
            for verifier in build(specifications, Surroundings(area=area))
        ]
        self.digests = any("{sha256}" in asked.name for asked in self.asked)

    def __call__(self, subjects: Sequence[Subject]) -> list[Checked]:
        """Answer about each of `subjects`; a task that the path does not name is looked up."""
        if not self.asked:
            return [Checked(Answer.PASS)] * len(subjects)
        checked = self._ask(self.asked, with_registry(subjects, digests=self.digests))
        self._note_doubts(checked)
        if self.counted:
            self._count(checked)
        return checked

    def check_canaries(self) -> None:
        """Ask every verifier what it must know.

        Raises:
            VerifierFailed: one gave another answer, or none.
        """
        for asked in self.asked:
            if not asked.canaries:
                continue
            began = time.monotonic()
            wrong = wrong_canary(asked.name, asked.canaries, partial(self._ask, [asked]))
            if self.counted:
                self._note_canaries(asked.name, wrong, time.monotonic() - began)
            if wrong:
                raise VerifierFailed(f"verifier {asked.name} cannot be trusted: {wrong}")

    def _note_canaries(self, name: str, wrong: str, seconds: float) -> None:
        asked_by = f"policy {self.policy}" if self.policy else ""
        note_of_run(name, sound=not wrong, detail=wrong, seconds=seconds, asked_by=asked_by)

    def _ask(self, asked: Sequence[Verifier], subjects: Sequence[Subject]) -> list[Checked]:
        return ask(asked, subjects, on_error=_log, deadline=Deadline(conf().verifier_batch_timeout))

    def _note_doubts(self, checked: Sequence[Checked]) -> None:
        for one in checked:
            if one.answer is Answer.UNKNOWN:
                for name, said in one.evidence.items():
                    if said.startswith(Answer.UNKNOWN):
                        self.doubts.setdefault(name, said)

    def _count(self, checked: Sequence[Checked]) -> None:
        for asked in self.asked:
            # The evidence of a verifier begins with its answer.
            answers = Counter(one.evidence[asked.name].partition(":")[0] for one in checked)
            add_answers(f"{self.policy}/{asked.kind}" if self.policy else asked.kind, answers)


def kind_and_canaries(name: str) -> tuple[str, list[tuple[Subject, Answer]]]:
    """The kind of a verifier, and what it must answer about whom."""
    kind, options = parse(name)
    wanted = {"canary_present": Answer.PASS, "canary_absent": Answer.FAIL}
    return kind, [
        (Subject(path="", task_id=options[option]), answer)
        for option, answer in wanted.items()
        if options.get(option)
    ]


def wrong_canary(
    name: str,
    canaries: Sequence[tuple[Subject, Answer]],
    ask: Callable[[Sequence[Subject]], Sequence[Checked]],
) -> str:
    """Ask the canaries of a verifier; return what is wrong with an answer, or nothing."""
    subjects = [subject for subject, _ in canaries]
    for (subject, wanted), found in zip(canaries, ask(subjects), strict=True):
        if found.answer is not wanted:
            return f"its canary {subject.task_id} must {wanted}, and it said {found.evidence[name]}"
    return ""


def asker(
    specifications: Iterable[Specification], *, policy: str = "", area: AreaHandle | None = None
) -> Asker:
    """Return what asks all of a policy's verifiers, without their canaries; see `Asker`."""
    return Asker(specifications, policy=policy, area=area)


@contextmanager
def asking(
    specifications: Iterable[Specification],
    *,
    policy: str = "",
    area: AreaHandle | None = None,
    counted: bool = True,
) -> Iterator[Asker]:
    """Give an `Asker` whose canaries are asked first, and again at the end unless that is an exception.

    Raises:
        PolicyInvalid: a specification that could not be obeyed.
        VerifierFailed: a canary was not answered as it must; nothing more may be moved.
    """
    made = Asker(specifications, policy=policy, area=area, counted=counted)
    made.check_canaries()
    yield made
    made.check_canaries()


def describe(specification: Specification) -> str:
    """A specification as one line for people; one that could not be obeyed as somebody wrote it."""
    try:
        return canonical(specification)
    except PolicyInvalid:
        return specification if isinstance(specification, str) else json.dumps(specification)


def _log(verifier: Verifier, error: Exception) -> None:
    logger.warning("verifier %s failed: %s: %s", verifier.name, type(error).__name__, error)


def with_registry(subjects: Sequence[Subject], *, digests: bool = False) -> list[Subject]:
    """Fill in what the registry of staged files knows of those whose path names no task, or of all.

    The task that a path names counts before the registry's. A row goes to the trash with its file, so of a
    trashed file the row counts that was alive then; what was registered later is another file.

    Args:
        subjects: one batch.
        digests: look up all, for their SHA-256.
    """
    wanted = [one.path for one in subjects if one.path and (digests or one.task_id is None)]
    known: dict[tuple[str | None, str], list[_Row]] = {}
    for part in chunks(dict.fromkeys(wanted)):
        rows = StagedFile.all_objects.filter(path__in=part).order_by()
        for area, path, *row in rows.values_list("area__uuid", "path", *_Row._fields):
            known.setdefault((str(area), path), []).append(_Row(*row))
    return [_filled(subject, known.get((subject.area, subject.path), [])) for subject in subjects]


class _Row(NamedTuple):
    """What counts of a `StagedFile`."""

    deleted_at: datetime | None
    created_at: datetime
    task_id: str
    sha256: str


def _filled(subject: Subject, rows: Sequence[_Row]) -> Subject:
    known = [row for row in rows if _is_of(row, subject.trashed_at)]
    if not known:
        return subject
    row = max(known, key=lambda one: one.created_at)
    return msgspec.structs.replace(
        subject,
        task_id=subject.task_id if subject.task_id is not None else row.task_id or None,
        sha256=row.sha256 or None,
    )


def _is_of(row: _Row, trashed_at: datetime | None) -> bool:
    """Whether a row was alive when its file was trashed, or is now if it lies in its place."""
    if trashed_at is None:
        return row.deleted_at is None
    return row.created_at <= trashed_at and (row.deleted_at is None or row.deleted_at >= trashed_at)
