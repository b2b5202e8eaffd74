"""The history checker finds each kind of broken promise, and nothing in a sound history."""

from __future__ import annotations

from tests.history import Acked, Logged, Reading, Seen, Start, late, problems


def logged(*keys: str | None, first: int = 1) -> list[Logged]:
    return [Logged(topic="t:1", epoch="e", offset=n, key=key) for n, key in enumerate(keys, first)]


def acked(offset: int, key: str, number: int = 0, sent_at: float = 0.0, acked_at: float = 1.0) -> Acked:
    return Acked(
        topic="t:1",
        epoch="e",
        offset=offset,
        key=key,
        publisher="p",
        number=number,
        sent_at=sent_at,
        acked_at=acked_at,
    )


def reading(*offsets: int, start: int = 0, epoch: str = "e") -> Reading:
    steps: list[Start | Seen] = [Start(epoch=epoch, offset=start)]
    steps += [Seen(epoch=epoch, offset=offset, key="abc"[offset - 1]) for offset in offsets]
    return Reading(reader="r", topic="t:1", steps=steps)


def kinds(**history: object) -> list[str]:
    return [finding.kind for finding in problems(**history)]


def test_a_sound_history_has_no_problems():
    acks = [acked(1, "a", 1), acked(2, "b", 2, 1.0, 2.0), acked(3, "c", 3, 2.0, 3.0)]
    readings = [reading(1, 2, 3), reading(3, start=2), reading(start=3)]
    assert problems(log=logged("a", "b", "c"), acks=acks, readings=readings) == []


def test_an_acknowledged_event_that_is_not_in_the_log_is_lost():
    assert kinds(log=logged("a"), acks=[acked(1, "a"), acked(2, "b")]) == ["lost"]
    assert kinds(log=logged("a", "x"), acks=[acked(2, "b")]) == ["lost"]


def test_a_key_that_was_stored_twice_is_a_duplicate():
    assert kinds(log=logged("a", "b", "a")) == ["duplicate"]
    assert kinds(log=logged(None, None)) == []


def test_a_hole_in_the_log_is_found_and_a_trimmed_beginning_is_not():
    assert kinds(log=[*logged("a"), *logged("c", first=3)]) == ["skipped"]
    assert kinds(log=logged("c", first=3), readings=[reading(1, 2, 3)]) == []


def test_acks_that_go_back_are_non_monotonic_only_if_the_publisher_had_waited():
    log = logged("a", "b")
    waited = [acked(2, "b", 1, 0.0, 1.0), acked(1, "a", 2, 1.5, 2.0)]
    assert kinds(log=log, acks=waited) == ["non-monotonic"]
    at_once = [acked(2, "b", 1, 0.0, 1.0), acked(1, "a", 2, 0.5, 2.0)]
    assert kinds(log=log, acks=at_once) == []


def test_a_reader_that_misses_repeats_or_swaps_events_is_found():
    log = logged("a", "b", "c")
    assert sorted(kinds(log=log, readings=[reading(1, 3)])) == ["lost", "skipped"]
    assert kinds(log=log, readings=[reading(1, 2)]) == ["lost"]
    assert kinds(log=log, readings=[reading(1, 2, 2, 3)]) == ["duplicate"]
    assert sorted(kinds(log=log, readings=[reading(2, 1, 3)])) == ["out of order", "skipped", "skipped"]


def test_a_reader_that_saw_what_was_never_committed_is_found():
    assert kinds(log=logged("a", "x"), readings=[reading(1, 2)]) == ["lost"]


def test_a_reader_that_was_told_of_a_loss_may_begin_anew_but_has_lost_what_the_log_holds():
    told = reading(1)
    told.steps += [Start(epoch="e", offset=2), Seen(epoch="e", offset=3, key="c")]
    assert kinds(readings=[told]) == []
    assert kinds(log=logged("a", "b", "c"), readings=[told]) == ["lost"]


def test_an_epoch_that_changes_without_a_word_is_non_monotonic():
    changed = reading(1)
    changed.steps.append(Seen(epoch="f", offset=2, key="b"))
    assert kinds(readings=[changed]) == ["non-monotonic"]


def test_delays_run_from_the_ack_to_the_arrival():
    read = Reading(reader="r", topic="t:1", steps=[Seen(epoch="e", offset=1, key="a", at=1.75)])
    assert late([acked(1, "a")], [read]) == [0.75]
