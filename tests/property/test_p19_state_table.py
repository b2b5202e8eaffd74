"""P19: whatever step a crash comes at, one recovery ends it: an exhaustive walk through the table of states.

Everything that can become of an item in `trashworld` is explored with the real table, and nothing may be
wrong in any world at rest. Then every entry of the table is changed in turn to every other word, and the same
explorer has to find it. A changed entry that makes no difference in any world, or another one that is as
true, is listed with its reason.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import product

import pytest

from cleanup.engine import states
from cleanup.engine.states import TRANSITIONS, Decision, InTrash, ItemState, Observation, Source, recover
from tests.property.trashworld import CALLERS, OPEN, World, complaint, flows, meddle, observe, starts

Cell = tuple[ItemState | None, Observation]
Entry = tuple[ItemState | None, InTrash, Source | None]

S, D = ItemState, Decision


class Explorer:
    """Walks through every world there is, starting and crashing everything everywhere."""

    def __init__(self) -> None:
        self.complaints: list[tuple[World, World, str]] = []
        self.moves: set[tuple[ItemState, ItemState]] = set()
        #: The worlds in which recovery looked up an entry of the table.
        self.cells: dict[Cell, set[World]] = defaultdict(set)
        self._resting: set[World] = set()
        self._crashed: set[World] = set()
        self._left: list[World] = []

    def explore(self) -> Explorer:
        for world in starts():
            self._rest(world)
        while self._left:
            world = self._left.pop()
            for here in (world, *meddle(world)):
                self._visit(here)
        return self

    def _rest(self, world: World) -> None:
        if world not in self._resting:
            self._resting.add(world)
            self._left.append(world)

    def _visit(self, world: World) -> None:
        self._rest(world)
        for walk in flows(world):
            self._follow(world, list(walk))
        if world.row in CALLERS and world.row not in OPEN:
            self._recover(world)

    def _follow(self, begin: World, steps: list[World]) -> None:
        """Let a walk go to its end, and crash it after each step."""
        before = begin
        for number, world in enumerate(steps):
            if before.row is not world.row and before.row is not None and world.row is not None:
                self.moves.add((before.row, world.row))
            if number < len(steps) - 1:
                for here in (world, *meddle(world)):
                    self._crash(here)
            before = world
        if steps:
            self._judge(begin, steps[-1])

    def _crash(self, world: World) -> None:
        if world not in self._crashed:
            self._crashed.add(world)
            self._recover(world)

    def _recover(self, world: World) -> None:
        seen = observe(world)
        self.cells[world.row, seen].add(world)
        for walk in CALLERS[world.row](world, recover(world.row, seen)):
            self._follow(world, list(walk))

    def _judge(self, begin: World, end: World) -> None:
        if words := complaint(begin, end):
            self.complaints.append((begin, end, words))
        else:
            self._rest(end)


@pytest.fixture(scope="module")
def explored() -> Explorer:
    return Explorer().explore()


def test_whatever_happens_one_recovery_leaves_nothing_lost_stuck_untrue_or_twice(explored: Explorer) -> None:
    assert explored.complaints[:3] == []
    assert len(explored._crashed) > 150


def test_the_table_of_moves_holds_what_the_life_of_a_file_needs_and_nothing_else(explored: Explorer) -> None:
    """So that any entry more or less is found."""
    assert {(old, new) for old, allowed in TRANSITIONS.items() for new in allowed} == explored.moves


#: Words that the explorer cannot tell from the table's, with what makes them as true.
AS_TRUE: dict[Entry, tuple[set[Decision], str]] = {
    **{
        (S.RESTORING, InTrash.OTHER, source): (
            {D.RESTORE_ON},
            "a person who restores the error afterwards gets the stray back in the same way",
        )
        for source in Source
    },
    (S.INTENT, InTrash.NO, Source.GONE): ({D.RETRY, D.FINISH}, "the mover finds by itself that it is gone"),
    (S.INTENT, InTrash.NO, Source.OTHER): ({D.RETRY, D.FINISH}, "the mover leaves another file alone"),
    (S.INTENT, InTrash.NO, Source.PART): (
        {D.CHANGED},
        "the mover moves no part: it says changed, or vanished",
    ),
    (S.RESTORING, InTrash.NO, Source.OTHER): ({D.RESTORE_ON}, "the engine finds an empty trash by itself"),
    (S.RESTORING, InTrash.NO, Source.PART): (
        {D.RESTORE_ON, D.RESTORED, D.LOST},
        "a part came back and is gone again, so that each is half of the truth",
    ),
    (S.ERROR, InTrash.WHOLE, None): ({D.FINISH}, "what is whole could be purged; that is left to a person"),
}


def entries() -> dict[Entry, Decision]:
    """Every entry of the tables: the state, what is in the trash, and what is at the source if it counts."""
    by_both = {S.INTENT: states._INTENT, S.RESTORING: states._RESTORING}
    found: dict[Entry, Decision] = {(None, trash, None): word for trash, word in states._ADOPTION.items()}
    for state, table in by_both.items():
        found |= {(state, trash, source): table[trash][source] for trash, source in product(InTrash, Source)}
    for state, by_trash in states._BY_TRASH.items():
        found |= {(state, trash, None): word for trash, word in by_trash.items()}
    return found


def worlds_of(explored: Explorer, entry: Entry) -> set[World]:
    state, trash, source = entry
    cells = explored.cells.items()
    matching = [
        worlds
        for (row, seen), worlds in cells
        if row is state and seen.trash is trash and source in (None, seen.source)
    ]
    return set().union(*matching)


def ways(state: ItemState | None, word: Decision, worlds: set[World]) -> list[list[list[World]]]:
    """What the caller does on `word`, in each of the worlds."""
    return [[list(walk) for walk in CALLERS[state](world, word)] for world in sorted(worlds, key=str)]


def is_found(state: ItemState | None, wrong: Decision, worlds: set[World]) -> bool:
    """Whether `wrong` in the place of the table's word makes the explorer complain."""
    ends = [(world, list(walk)[-1]) for world in worlds for walk in CALLERS[state](world, wrong)]
    return any(complaint(world, end) for world, end in ends)


def test_every_wrong_word_in_the_tables_is_found(explored: Explorer) -> None:
    """Found, or the very same in every world that leads there, or as true for the reason given above."""
    survivors: dict[Entry, set[Decision]] = defaultdict(set)
    found = 0
    for entry, right in entries().items():
        state, worlds = entry[0], worlds_of(explored, entry)
        assert worlds, f"nothing leads to {entry}"
        as_now = ways(state, right, worlds)
        for wrong in set(Decision) - {right}:
            if is_found(state, wrong, worlds):
                found += 1
            elif ways(state, wrong, worlds) != as_now:
                survivors[entry].add(wrong)
    assert survivors == {entry: words for entry, (words, _) in AS_TRUE.items()}
    assert found > 300
