"""The table of states and the recovery, over every combination there is."""

from __future__ import annotations

from datetime import timedelta
from itertools import product

import pytest

from cleanup.engine.states import (
    TRANSITIONS,
    Decision,
    InTrash,
    ItemState,
    Observation,
    Source,
    can_move,
    purge_after,
    recover,
)
from tests.unit.cleanup_engine.kit import DAY, NOW

S, T, D, I = Source, InTrash, Decision, ItemState

EVERYTHING = list(product([None, *ItemState], Source, InTrash))

#: The state that a row takes when a decision is carried out, where the decision alone says so.
TARGETS = {
    D.FINISH: I.TRASHED,
    D.VANISHED: I.VANISHED,
    D.CHANGED: I.CHANGED,
    D.LOST: I.LOST,
    D.RESTORED: I.RESTORED,
    D.PURGED: I.PURGED,
    D.ERROR: I.ERROR,
}


def decide(state: ItemState | None, source: Source, trash: InTrash) -> Decision:
    return recover(state, Observation(source=source, trash=trash))


@pytest.mark.parametrize(
    ("state", "source", "trash", "decision"),
    [
        (I.INTENT, S.SAME, T.NO, D.RETRY),
        (I.INTENT, S.GONE, T.WHOLE, D.FINISH),
        (I.INTENT, S.GONE, T.NO, D.VANISHED),
        (I.INTENT, S.OTHER, T.WHOLE, D.FINISH),
        (I.INTENT, S.OTHER, T.NO, D.CHANGED),
        (I.INTENT, S.PART, T.PART, D.RETRY),
        (I.INTENT, S.GONE, T.OTHER, D.RETRY),
        (I.TRASHED, S.GONE, T.NO, D.LOST),
        (I.TRASHED, S.OTHER, T.WHOLE, D.NOTHING),
        (I.RESTORING, S.SAME, T.NO, D.RESTORED),
        (I.RESTORING, S.GONE, T.WHOLE, D.RESTORE_ON),
        (I.RESTORING, S.GONE, T.NO, D.LOST),
        (I.PURGE_INTENT, S.GONE, T.WHOLE, D.PURGE_ON),
        (I.PURGE_INTENT, S.OTHER, T.PART, D.PURGE_ON),
        (I.PURGE_INTENT, S.GONE, T.NO, D.PURGED),
        (None, S.GONE, T.WHOLE, D.ADOPT),
        (None, S.GONE, T.NO, D.NOTHING),
    ],
)
def test_recovery_follows_the_table(
    state: ItemState | None, source: Source, trash: InTrash, decision: Decision
) -> None:
    assert decide(state, source, trash) is decision


def test_recovery_answers_every_combination() -> None:
    assert len(EVERYTHING) == 14 * 4 * 4
    assert all(isinstance(decide(*combination), Decision) for combination in EVERYTHING)


@pytest.mark.parametrize(("state", "source", "trash"), EVERYTHING)
def test_no_decision_leads_where_a_row_may_not_go(
    state: ItemState | None, source: Source, trash: InTrash
) -> None:
    decision = decide(state, source, trash)
    if decision in TARGETS and state is not None and TRANSITIONS[state]:
        assert can_move(state, TARGETS[decision])
    if decision in (D.ADOPT, D.ADOPT_ERROR):
        assert state is None


@pytest.mark.parametrize(("state", "source", "trash"), EVERYTHING)
def test_only_a_purge_that_was_intended_goes_on(
    state: ItemState | None, source: Source, trash: InTrash
) -> None:
    if decide(state, source, trash) in (D.PURGE_ON, D.PURGED):
        assert state is I.PURGE_INTENT
        assert trash is not T.OTHER


@pytest.mark.parametrize(("state", "source", "trash"), EVERYTHING)
def test_bytes_in_the_trash_are_never_forgotten(
    state: ItemState | None, source: Source, trash: InTrash
) -> None:
    """Whatever is in the trash has a row that can lead it out again, or keeps a row that says error."""
    if trash is T.NO or state in (I.TRASHED, I.ERROR):
        return
    decision = decide(state, source, trash)
    assert decision not in (D.NOTHING, D.VANISHED, D.CHANGED, D.RESTORED, D.PURGED, D.LOST)


@pytest.mark.parametrize("source", Source)
def test_a_missing_trashed_file_is_an_alarm_and_never_counted_as_purged(source: Source) -> None:
    assert decide(I.TRASHED, source, T.NO) is D.LOST


def test_what_is_final_stays_final() -> None:
    final = {state for state in ItemState if not TRANSITIONS[state]}
    assert final == {I.PURGED, I.RESTORED, I.SKIPPED, I.HELD, I.CHANGED, I.VANISHED}


def test_nothing_is_purged_but_out_of_the_trash_by_intent() -> None:
    assert [state for state in ItemState if can_move(state, I.PURGED)] == [I.PURGE_INTENT]
    assert [state for state in ItemState if can_move(state, I.PURGE_INTENT)] == [I.TRASHED]
    assert [state for state in ItemState if can_move(state, I.TRASHED)] == [
        I.INTENT,
        I.PURGE_INTENT,
        I.RESTORING,
        I.LOST,
    ]


def test_a_promised_grace_is_never_shortened() -> None:
    assert purge_after(NOW, DAY) == NOW + DAY
    assert purge_after(NOW, timedelta(0), promised=NOW + 7 * DAY) == NOW + 7 * DAY
    assert purge_after(NOW, 9 * DAY, promised=NOW + 7 * DAY) == NOW + 9 * DAY
