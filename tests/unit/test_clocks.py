"""Clocks that jump: who is silent, and whether the wall clock may be believed."""

from __future__ import annotations

from bus.clocks import Calm, Watch

HOUR = 3_600.0
YEAR = 365 * 24 * HOUR


class Hands:
    """A wall clock and a steady one, turned by hand."""

    def __init__(self) -> None:
        self.steady = 1_000.0
        self.wall = 1.8e9

    def wait(self, seconds: float) -> None:
        self.steady += seconds
        self.wall += seconds


def test_silence_is_counted_from_the_first_look_at_the_same_value():
    hands = Hands()
    watch = Watch(lambda: hands.steady)
    assert watch.look({"a": 1}) == {"a": 0.0}
    hands.wait(5)
    assert watch.look({"a": 1, "b": 7}) == {"a": 5.0, "b": 0.0}
    hands.wait(5)
    assert watch.look({"a": 2, "b": 7}) == {"a": 0.0, "b": 5.0}


def test_a_value_that_went_and_came_back_is_new():
    hands = Hands()
    watch = Watch(lambda: hands.steady)
    watch.look({"a": 1})
    watch.look({})
    hands.wait(5)
    assert watch.look({"a": 1}) == {"a": 0.0}


def calm(hands: Hands) -> Calm:
    return Calm(settle=600, tolerance=5, wall=lambda: hands.wall, steady=lambda: hands.steady)


def test_a_clock_is_believed_only_after_a_while():
    hands = Hands()
    clock = calm(hands)
    assert not clock.look()
    hands.wait(599)
    assert not clock.look()
    hands.wait(1)
    assert clock.look()


def test_a_jump_in_either_direction_ends_the_trust_for_as_long():
    for jump in (-YEAR, -HOUR, HOUR, YEAR):
        hands = Hands()
        clock = calm(hands)
        hands.wait(700)
        assert clock.look()
        hands.wall += jump
        assert not clock.look()
        hands.wait(599)
        assert not clock.look()
        hands.wait(2)
        assert clock.look()


def test_a_small_correction_is_no_jump():
    hands = Hands()
    clock = calm(hands)
    hands.wait(700)
    hands.wall += 3
    assert clock.look()
