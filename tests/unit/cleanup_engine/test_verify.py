"""Asking verifiers: three values, and doubt about everything that misbehaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from cleanup.engine.verify import Answer, Finding, Subject, Verifier, ask

SUBJECTS = [Subject(path="a", task_id="1"), Subject(path="b"), Subject(path="c")]
PASS, FAIL, UNKNOWN = Answer.PASS, Answer.FAIL, Answer.UNKNOWN


class Scripted:
    """A verifier that answers as told."""

    def __init__(self, name: str, answer: Callable[[Sequence[Subject]], object]) -> None:
        self.name = name
        self._answer = answer

    def verify(self, items: Sequence[Subject]) -> Sequence[Finding]:
        return self._answer(items)  # type: ignore[return-value]


def saying(name: str, *answers: Answer) -> Scripted:
    return Scripted(name, lambda items: [Finding(answer, f"{name} says so") for answer in answers])


def failing(error: Exception) -> Callable[[Sequence[Subject]], object]:
    def fail(items: Sequence[Subject]) -> object:
        raise error

    return fail


def answers(*verifiers: Verifier) -> list[Answer]:
    return [checked.answer for checked in ask(verifiers, SUBJECTS, on_error=lambda verifier, error: None)]


def test_without_verifiers_everything_passes() -> None:
    assert answers() == [PASS, PASS, PASS]


def test_all_must_pass_and_fail_outweighs_unknown() -> None:
    one = saying("one", PASS, PASS, FAIL)
    two = saying("two", PASS, UNKNOWN, UNKNOWN)
    assert answers(one, two) == [PASS, UNKNOWN, FAIL]


def test_the_evidence_of_every_verifier_is_kept() -> None:
    checked = ask([saying("one", PASS, FAIL, PASS)], SUBJECTS, on_error=lambda verifier, error: None)
    assert checked[1].evidence == {"one": "fail: one says so"}


@pytest.mark.parametrize(
    "misbehaviour",
    [
        failing(TimeoutError("too slow")),
        failing(RecursionError()),
        lambda items: None,
        lambda items: [],
        lambda items: [Finding(PASS)] * 2,
        lambda items: [Finding(PASS)] * 4,
        lambda items: [True, True, True],
        lambda items: ["pass", "pass", "pass"],
        lambda items: [Finding(PASS), Finding(PASS), Finding("pass")],  # type: ignore[arg-type]
        lambda items: {"a": PASS, "b": PASS, "c": PASS},
        lambda items: (Finding(PASS) for _ in items),
    ],
)
def test_a_verifier_that_misbehaves_has_said_unknown_about_all(
    misbehaviour: Callable[[Sequence[Subject]], object],
) -> None:
    told: list[tuple[Verifier, Exception]] = []
    broken = Scripted("broken", misbehaviour)
    checked = ask(
        [saying("good", PASS, PASS, PASS), broken],
        SUBJECTS,
        on_error=lambda verifier, error: told.append((verifier, error)),
    )
    assert [one.answer for one in checked] == [UNKNOWN] * 3
    assert [verifier for verifier, _ in told] == [broken]
    assert checked[0].evidence["broken"].startswith("unknown: ")


def test_nobody_is_asked_about_nothing() -> None:
    assert (
        ask([Scripted("never", failing(AssertionError()))], [], on_error=lambda verifier, error: None) == []
    )
