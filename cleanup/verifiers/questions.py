"""Many files, fewer questions: files of one task share an answer, and after an error nobody is asked.

A verifier says which question decides about a file and answers distinct questions one after another; this
module brings the answers back to the files. The first error ends the batch: what was answered stands, the
rest is UNKNOWN.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TypeVar

from cleanup.engine.verify import Answer, BrokenOff, Finding, Subject, doubt

Q = TypeVar("Q", bound=Hashable)


def answer_all(
    subjects: Sequence[Subject],
    question_of: Callable[[Subject], Q | Finding],
    ask_each: Callable[[Sequence[Q]], Iterator[Finding]],
) -> list[Finding]:
    """Answer about every subject.

    Args:
        subjects: one batch.
        question_of: the question that decides about a subject, or at once the finding.
        ask_each: yields a finding for each distinct question, in their order.

    Raises:
        BrokenOff: `ask_each` raised or yielded too few.
    """
    questions = [question_of(subject) for subject in subjects]
    distinct = list(dict.fromkeys(one for one in questions if not isinstance(one, Finding)))
    answers: dict[Q, Finding] = {}
    error: Exception | None = None
    try:
        for question, finding in zip(distinct, ask_each(distinct), strict=True):
            answers[question] = finding
    except Exception as problem:  # noqa: BLE001 - whatever goes wrong while asking keeps the files
        error = problem
    unanswered = Finding(Answer.UNKNOWN) if error is None else doubt(error)
    findings = [one if isinstance(one, Finding) else answers.get(one, unanswered) for one in questions]
    if error is not None:
        raise BrokenOff(findings, error)
    return findings


def unknown(evidence: str) -> Finding:
    """A finding of somebody who cannot tell."""
    return Finding(Answer.UNKNOWN, evidence)


def says(passes: bool, evidence: str) -> Finding:
    """A finding of somebody who can."""
    return Finding(Answer.PASS if passes else Answer.FAIL, evidence)
