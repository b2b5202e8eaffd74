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

S, T, D, St = Source, InTrash, Decision, ItemState

EVERYTHING = list(product([None, *ItemState], Source, InTrash))

#: The state that a row takes when a decision is carried out, where the decision alone says so.
TARGETS = {
    D.FINISH: St.TRASHED,
    D.VANISHED: St.VANISHED,
    D.CHANGED: St.CHANGED,
    D.LOST: St.LOST,
    D.RESTORED: St.RESTORED,
    D.PURGED: St.PURGED,
    D.ERROR: St.ERROR,
}


def decide(state: ItemState | None, source: Source, trash: InTrash) -> Decision:
    return recover(state, Observation(source=source, trash=trash))


@pytest.mark.parametrize(
    ("state", "source", "trash", "decision"),
    [
        (St.INTENT, S.SAME, T.NO, D.RETRY),
        (St.INTENT, S.GONE, T.WHOLE, D.FINISH),
        (St.INTENT, S.GONE, T.NO, D.VANISHED),
        (St.INTENT, S.OTHER, T.WHOLE, D.FINISH),
        (St.INTENT, S.OTHER, T.NO, D.CHANGED),
        (St.INTENT, S.PART, T.PART, D.RETRY),
        (St.INTENT, S.GONE, T.OTHER, D.RETRY),
        (St.TRASHED, S.GONE, T.NO, D.LOST),
        (St.TRASHED, S.OTHER, T.WHOLE, D.NOTHING),
        (St.RESTORING, S.SAME, T.NO, D.RESTORED),
        (St.RESTORING, S.GONE, T.WHOLE, D.RESTORE_ON),
        (St.RESTORING, S.GONE, T.NO, D.LOST),
        (St.PURGE_INTENT, S.GONE, T.WHOLE, D.PURGE_ON),
        (St.PURGE_INTENT, S.OTHER, T.PART, D.PURGE_ON),
        (St.PURGE_INTENT, S.GONE, T.NO, D.PURGED),
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


def test_no_decision_leads_where_a_row_may_not_go() -> None:
    for state, source, trash in EVERYTHING:
        decision = decide(state, source, trash)
        if decision in TARGETS and state is not None and TRANSITIONS[state]:
            assert can_move(state, TARGETS[decision]), (state, source, trash)
        if decision in (D.ADOPT, D.ADOPT_ERROR):
            assert state is None, (state, source, trash)


def test_only_a_purge_that_was_intended_goes_on() -> None:
    for state, source, trash in EVERYTHING:
        if decide(state, source, trash) in (D.PURGE_ON, D.PURGED):
            assert state is St.PURGE_INTENT, (state, source, trash)
            assert trash is not T.OTHER, (state, source, trash)


def test_bytes_in_the_trash_are_never_forgotten() -> None:
    """Whatever is in the trash has a row that can lead it out again, or keeps a row that says error."""
    forgetful = (D.NOTHING, D.VANISHED, D.CHANGED, D.RESTORED, D.PURGED, D.LOST)
    for state, source, trash in EVERYTHING:
        if trash is T.NO or state is St.ERROR or (state is St.TRASHED and trash is T.WHOLE):
            continue
        assert decide(state, source, trash) not in forgetful, (state, source, trash)


@pytest.mark.parametrize("source", Source)
def test_a_missing_trashed_file_is_an_alarm_and_never_counted_as_purged(source: Source) -> None:
    assert decide(St.TRASHED, source, T.NO) is D.LOST


def test_what_is_final_stays_final() -> None:
    final = {state for state in ItemState if not TRANSITIONS[state]}
    assert final == {St.PURGED, St.RESTORED, St.SKIPPED, St.HELD, St.CHANGED, St.VANISHED}


def test_nothing_is_purged_but_out_of_the_trash_by_intent() -> None:
    assert [state for state in ItemState if can_move(state, St.PURGED)] == [St.PURGE_INTENT]
    assert [state for state in ItemState if can_move(state, St.PURGE_INTENT)] == [St.TRASHED]
    assert [state for state in ItemState if can_move(state, St.TRASHED)] == [
        St.INTENT,
        St.RESTORING,
        St.LOST,
    ]


def test_a_promised_grace_is_never_shortened() -> None:
    assert purge_after(NOW, DAY) == NOW + DAY
    assert purge_after(NOW, timedelta(0), promised=NOW + 7 * DAY) == NOW + 7 * DAY
    assert purge_after(NOW, 9 * DAY, promised=NOW + 7 * DAY) == NOW + 9 * DAY
