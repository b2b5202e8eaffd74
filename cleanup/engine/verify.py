"""Asking others whether a file really may go: PASS, FAIL or UNKNOWN.

A verifier knows something the file system does not: that the task is complete, that the points are in the
index. It is asked twice, before the trash and again before the purge. Only PASS lets a file go. A verifier
that raises, answers too few or answers nonsense has said UNKNOWN about every file of the batch, since nobody
can tell which of its answers are meant; a service that is down is thus never read as a task that is done.
All verifiers of a policy share one deadline for a batch, so nobody who answers slowly can hold up a run.
"""

import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
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
    sha256: str | None = None  #: hex, if somebody has registered the file
    mtime_ns: int | None = None  #: of the newest of its files
    trashed_at: datetime | None = None  #: if it lies in the trash: what was registered later is another file


class Finding(msgspec.Struct, frozen=True):
    """One answer and what it rests on."""

    answer: Answer
    evidence: str = ""  #: short, for the audit: ``redis task:7:status=Complete``


class Deadline:
    """The end of the time that one batch may take, by a clock that nobody sets."""

    def __init__(self, length: timedelta) -> None:
        """Begin now."""
        self._end = time.monotonic() + length.total_seconds()

    def left(self) -> float:
        """Return the seconds left, more than none.

        Raises:
            TimeoutError: none are left.
        """
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the time for the batch is over")
        return left

    def is_over(self) -> bool:
        """Whether no time is left."""
        return time.monotonic() >= self._end


class BrokenOff(Exception):
    """A verifier could not go on: what it found until then stands, the rest of `findings` is UNKNOWN."""

    def __init__(self, findings: Sequence[Finding], error: Exception) -> None:
        """Keep one finding for each subject, and what went wrong."""
        super().__init__(str(error))
        self.findings, self.error = findings, error


class Verifier(Protocol):
    """Somebody who can be asked.

    `verify` returns exactly one finding for each subject, in their order, before the deadline. It may raise:
    that is UNKNOWN for the whole batch, or for the rest of it with `BrokenOff`; after an error it asks no
    more about the batch. A subject that it lacks the means to judge (no task id) is UNKNOWN too.
    """

    @property
    def name(self) -> str:
        """The name under which policies list it."""
        ...

    def verify(self, items: Sequence[Subject], deadline: Deadline) -> Sequence[Finding]:
        """Answer about each of `items`."""
        ...


class Checked(msgspec.Struct, frozen=True):
    """What all verifiers together say about one file."""

    answer: Answer
    evidence: dict[str, str] = {}  #: by verifier: its answer and what it rests on


OnError = Callable[[Verifier, Exception], None]

#: For a batch, unless the caller knows better.
PATIENCE = timedelta(seconds=30)

_EVIDENCE = 200


def _findings(
    verifier: Verifier, subjects: Sequence[Subject], deadline: Deadline, on_error: OnError
) -> Sequence[Finding]:
    """Ask one verifier; any misbehaviour is UNKNOWN for all."""
    try:
        findings, broken = _call(verifier, subjects, deadline)
        _refuse_nonsense(findings, len(subjects))
    except Exception as error:  # noqa: BLE001 - whatever goes wrong inside a verifier keeps the files
        on_error(verifier, error)
        return [doubt(error)] * len(subjects)
    if broken is not None:
        on_error(verifier, broken)
    return findings


def _call(
    verifier: Verifier, subjects: Sequence[Subject], deadline: Deadline
) -> tuple[Sequence[Finding], Exception | None]:
    deadline.left()
    try:
        return verifier.verify(subjects, deadline), None
    except BrokenOff as broken:
        return broken.findings, broken.error


def doubt(error: Exception) -> Finding:
    """Return what an error says about a file: UNKNOWN."""
    return Finding(Answer.UNKNOWN, f"{type(error).__name__}: {error}")


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


def ask(
    verifiers: Sequence[Verifier],
    subjects: Sequence[Subject],
    *,
    on_error: OnError,
    deadline: Deadline | None = None,
) -> list[Checked]:
    """Ask every verifier about every subject; all must say PASS.

    FAIL outweighs UNKNOWN, which outweighs PASS. Without verifiers everything passes.

    Args:
        verifiers: with distinct names.
        subjects: one batch; the verifiers decide how to split it further.
        on_error: told of each verifier that misbehaved; its own exceptions are not caught.
        deadline: shared by all verifiers; who is not reached in time has said UNKNOWN.
    """
    if not subjects:
        return []
    end = deadline or Deadline(PATIENCE)
    by_name = {verifier.name: _findings(verifier, subjects, end, on_error) for verifier in verifiers}
    checked = []
    for index in range(len(subjects)):
        found = {name: findings[index] for name, findings in by_name.items()}
        evidence = {name: _describe(finding) for name, finding in found.items()}
        checked.append(Checked(_combine([finding.answer for finding in found.values()]), evidence))
    return checked


def _describe(finding: Finding) -> str:
    return f"{finding.answer}: {_printable(finding.evidence)}" if finding.evidence else str(finding.answer)


def _printable(text: str) -> str:
    """Bring to a length and a form that every database, log and page takes: servers say what they like."""
    text = text[:_EVIDENCE]
    return text if text.isprintable() else ascii(text)[1:-1][:_EVIDENCE]
