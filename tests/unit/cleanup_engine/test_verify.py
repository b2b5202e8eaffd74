"""Asking verifiers: three values, and doubt about everything that misbehaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta

import pytest

from cleanup.engine.verify import Answer, BrokenOff, Deadline, Finding, Subject, Verifier, ask

SUBJECTS = [Subject(path="a", task_id="1"), Subject(path="b"), Subject(path="c")]
PASS, FAIL, UNKNOWN = Answer.PASS, Answer.FAIL, Answer.UNKNOWN


class Scripted:
    """A verifier that answers as told."""

    def __init__(self, name: str, answer: Callable[[Sequence[Subject]], object]) -> None:
        self.name = name
        self._answer = answer

    def verify(self, items: Sequence[Subject], deadline: Deadline) -> Sequence[Finding]:
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


def broken_after(found: list[Finding]) -> Callable[[Sequence[Subject]], object]:
    def break_off(items: Sequence[Subject]) -> object:
        rest = [Finding(UNKNOWN, "not asked")] * (len(items) - len(found))
        raise BrokenOff([*found, *rest], TimeoutError("too slow"))

    return break_off


def test_what_was_answered_before_an_error_stands() -> None:
    told: list[Exception] = []
    broken = Scripted("broken", broken_after([Finding(PASS), Finding(FAIL)]))
    checked = ask([broken], SUBJECTS, on_error=lambda verifier, error: told.append(error))
    assert [one.answer for one in checked] == [PASS, FAIL, UNKNOWN]
    assert [str(error) for error in told] == ["too slow"]


def test_who_breaks_off_with_another_number_of_answers_has_said_unknown_about_all() -> None:
    broken = Scripted("broken", broken_after([Finding(PASS)] * 4))
    assert answers(broken) == [UNKNOWN] * 3


def test_all_verifiers_of_a_batch_share_one_deadline() -> None:
    told: list[Exception] = []
    seen: list[Deadline] = []

    class Watching(Scripted):
        def verify(self, items: Sequence[Subject], deadline: Deadline) -> Sequence[Finding]:
            seen.append(deadline)
            return super().verify(items, deadline)

    pair = [Watching(name, lambda items: [Finding(PASS)] * len(items)) for name in ("one", "two")]
    checked = ask(pair, SUBJECTS, on_error=lambda verifier, error: told.append(error))
    assert [one.answer for one in checked] == [PASS] * 3
    assert seen[0] is seen[1]
    over = Deadline(timedelta(0))
    late = ask(pair, SUBJECTS, on_error=lambda verifier, error: told.append(error), deadline=over)
    assert [one.answer for one in late] == [UNKNOWN] * 3
    assert len(seen) == 2, "nobody is asked when the time is over"
    assert [type(error) for error in told] == [TimeoutError] * 2


def test_a_deadline_says_what_is_left_until_it_is_over() -> None:
    deadline = Deadline(timedelta(hours=1))
    assert 3_590 < deadline.left() <= 3_600
    assert not deadline.is_over()
    over = Deadline(timedelta(seconds=-1))
    assert over.is_over()
    with pytest.raises(TimeoutError):
        over.left()


@pytest.mark.parametrize("evidence", ["a\x00b", "\x1b[31m", "line\nline", "\u202e", "\ud800", "x" * 5_000])
def test_evidence_is_short_and_printable_whatever_was_answered(evidence: str) -> None:
    talking = Scripted("talking", lambda items: [Finding(FAIL, evidence)] * len(items))
    (checked, *_) = ask([talking], SUBJECTS, on_error=lambda verifier, error: None)
    assert checked.evidence["talking"].isprintable()
    assert len(checked.evidence["talking"]) < 250
