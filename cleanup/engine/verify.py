"""Asking others whether a file really may go: PASS, FAIL or UNKNOWN.

A verifier knows something the file system does not: that the task is complete, that the points are in the
index. It is asked twice, before the trash and again before the purge. Only PASS lets a file go. A verifier
that raises, answers too few or answers nonsense has said UNKNOWN about every file of the batch, since nobody
can tell which of its answers are meant; a service that is down is thus never read as a task that is done.
"""

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Protocol

import msgspec


class Answer(StrEnum):
    """What a verifier says about one file."""

    PASS = "pass"  #: it may go  # noqa: S105
    FAIL = "fail"  #: it must stay
    UNKNOWN = "unknown"  #: cannot tell, so it stays


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """The file that a verifier is asked about."""

    path: str  #: below the area, escaped
    task_id: str | None = None
    size: int = 0
    area: str | None = None  #: uuid


class Finding(msgspec.Struct, frozen=True):
    """One answer and what it rests on."""

    answer: Answer
    evidence: str = ""  #: short, for the audit: ``redis task:7:status=Complete``


class Verifier(Protocol):
    """Somebody who can be asked.

    `verify` returns exactly one finding for each subject, in their order. It bounds its own waiting. It may
    raise: that is UNKNOWN for the whole batch. A subject that it lacks the means to judge (no task id) is
    UNKNOWN too.
    """

    @property
    def name(self) -> str:
        """The name under which policies list it."""
        ...

    def verify(self, items: Sequence[Subject]) -> Sequence[Finding]:
        """Answer about each of `items`."""
        ...


class Checked(msgspec.Struct, frozen=True):
    """What all verifiers together say about one file."""

    answer: Answer
    evidence: dict[str, str] = {}  #: by verifier: its answer and what it rests on


OnError = Callable[[Verifier, Exception], None]


def _findings(verifier: Verifier, subjects: Sequence[Subject], on_error: OnError) -> Sequence[Finding]:
    """Ask one verifier; any misbehaviour is UNKNOWN for all."""
    try:
        findings = verifier.verify(subjects)
        _refuse_nonsense(findings, len(subjects))
    except Exception as error:  # noqa: BLE001 - whatever goes wrong inside a verifier keeps the files
        on_error(verifier, error)
        return [Finding(Answer.UNKNOWN, f"{type(error).__name__}: {error}"[:200])] * len(subjects)
    return findings


def _refuse_nonsense(findings: object, expected: int) -> None:
    if not isinstance(findings, (list, tuple)):
        raise TypeError(f"a verifier returned {type(findings).__name__}, not a list")
    if len(findings) != expected:
        raise ValueError(f"{len(findings)} answers to {expected} questions")
    for finding in findings:
        if not isinstance(finding, Finding) or not isinstance(finding.answer, Answer):
            raise TypeError(f"a verifier answered with {type(finding).__name__}")


def _combine(answers: Sequence[Answer]) -> Answer:
    if Answer.FAIL in answers:
        return Answer.FAIL
    return Answer.UNKNOWN if Answer.UNKNOWN in answers else Answer.PASS


def ask(verifiers: Sequence[Verifier], subjects: Sequence[Subject], *, on_error: OnError) -> list[Checked]:
    """Ask every verifier about every subject; all must say PASS.

    FAIL outweighs UNKNOWN, which outweighs PASS. Without verifiers everything passes.

    Args:
        verifiers: with distinct names.
        subjects: one batch; the verifiers decide how to split it further.
        on_error: told of each verifier that misbehaved; its own exceptions are not caught.
    """
    if not subjects:
        return []
    by_name = {verifier.name: _findings(verifier, subjects, on_error) for verifier in verifiers}
    checked = []
    for index in range(len(subjects)):
        found = {name: findings[index] for name, findings in by_name.items()}
        evidence = {name: _describe(finding) for name, finding in found.items()}
        checked.append(Checked(_combine([finding.answer for finding in found.values()]), evidence))
    return checked


def _describe(finding: Finding) -> str:
    return f"{finding.answer}: {finding.evidence}" if finding.evidence else str(finding.answer)
