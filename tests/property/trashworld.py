"""A small world of one item: its row, the names at its place, what the trash holds, and who meddles.

Every flow (trash, restore, purge, adopt, check) is a walk of atomic steps, as the engine and the operations
take them; after any step the process may die, somebody may change a name, and a recovery follows, which may
die too. The world knows the two secrets that rows do not: which bytes still exist, and whether a purge was
due. `complaint` says what is wrong with a world in which everything has come to rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

from cleanup.engine.items import Member
from cleanup.engine.observe import _in_trash, _source
from cleanup.engine.states import Decision, ItemState, Observation

S, D = ItemState, Decision

#: Members of the item by inode, and files of somebody else.
OWN = (1, 2)
ARRIVED, AT_SOURCE, LAID_IN_TRASH = 7, 8, 9

Names = tuple[int, ...]
Recover = Callable[[ItemState | None, Observation], Decision]


class World(NamedTuple):
    """0 in a name: it is free."""

    row: ItemState | None
    source: Names
    trash: Names
    #: What people removed or replaced, wherever it was.
    gone: frozenset[int] = frozenset()
    #: What the engine unlinked.
    unlinked: frozenset[int] = frozenset()
    #: A purge was due, and ordered.
    due: bool = False
    #: It was in the trash, and its row said so.
    stored: bool = False
    #: Somebody has done something; a second act would not meet another state of the table.
    acted: bool = False

    def put(self, where: str, at: int, inode: int) -> World:
        """The world with one name changed."""
        names = list(getattr(self, where))
        names[at] = inode
        return self._replace(**{where: tuple(names)})

    @property
    def own(self) -> Names:
        """The members there are."""
        return OWN[: len(self.source)]


Walk = Iterator[World]


def observe(world: World) -> Observation:
    """What the engine's own eyes see."""
    members = [Member(b"%d" % inode, 1, inode, inode, inode) for inode in world.own]

    def stats(names: Names) -> list[Any]:
        return [SimpleNamespace(st_ino=i, st_size=i, st_mtime_ns=i) if i else None for i in names]

    return Observation(
        source=_source(members, stats(world.source)), trash=_in_trash(members, stats(world.trash))
    )


# What the engine does, step by step. The last world of a walk has the outcome in its row.


def move(world: World, *, by_link: bool = False, raced: int | None = None) -> Walk:
    """Move all members, or put back what has come.

    The member `raced` is replaced at the very moment of the rename, so that another file arrives.
    """
    for at, inode in enumerate(world.own):
        if world.trash[at] not in (0, inode):
            yield from _put_back(world, S.CHANGED)
            return
    for at, inode in enumerate(world.own):
        if world.trash[at]:
            continue
        if world.source[at] != inode:
            vanished = not world.source[at] and at == 0 and not any(world.trash)
            yield from _put_back(world, S.VANISHED if vanished else S.CHANGED)
            return
        if at == raced:
            world = world.put("source", at, 0).put("trash", at, ARRIVED)
            world = world._replace(gone=world.gone | {inode})
            yield world
            yield from _put_back(world, S.CHANGED)
            return
        if by_link:
            world = world.put("trash", at, inode)
            yield world
        world = world.put("source", at, 0).put("trash", at, inode)
        yield world
    yield world._replace(row=S.TRASHED, stored=True)


def _put_back(world: World, outcome: ItemState) -> Walk:
    for at in reversed(range(len(world.own))):
        if world.trash[at] and not world.source[at]:
            world = world.put("source", at, world.trash[at]).put("trash", at, 0)
            yield world
    yield world._replace(row=S.ERROR if any(world.trash) else outcome)


def restore(world: World, *, before: ItemState | None) -> Walk:
    """Bring back what is in the trash, the last member first, unless a name is taken.

    `before` is the row that it goes back to then; None, as after a crash: what is true.
    """
    waiting = [at for at, inode in enumerate(world.trash) if inode]
    if any(world.source[at] not in (0, world.trash[at]) for at in waiting):
        for at, inode in enumerate(world.own):
            if not world.trash[at] and world.source[at] == inode:  # an attempt before a crash had brought it
                world = world.put("source", at, 0).put("trash", at, inode)
                yield world
        found = S.TRASHED if world.trash == world.own else S.ERROR
        yield world._replace(row=before or found)
        return
    for at in reversed(waiting):
        world = world.put("source", at, world.trash[at]).put("trash", at, 0)
        yield world
    back = waiting or any(world.source[at] == inode for at, inode in enumerate(world.own))
    yield world._replace(row=S.RESTORED if back else S.LOST)


def purge(world: World) -> Walk:
    """Unlink what is in the trash and still ours."""
    if any(inode not in (0, own) for inode, own in zip(world.trash, world.own, strict=True)):
        yield world._replace(row=S.ERROR)
        return
    present = [at for at, inode in enumerate(world.trash) if inode]
    for at in present:
        world = world.put("trash", at, 0)._replace(unlinked=world.unlinked | {world.own[at]})
        yield world
    yield world._replace(row=S.PURGED if present else S.LOST)


# What the operations do after a crash, by state. A word that a caller does not know it takes for ERROR.


def finish_move(world: World, decision: Decision) -> Iterator[Walk]:
    """Yield each way in which recovery may end an interrupted move."""
    if decision not in (D.RETRY, D.FINISH):
        row = {D.VANISHED: S.VANISHED, D.CHANGED: S.CHANGED}.get(decision, S.ERROR)
        yield iter([world._replace(row=row)])
        return
    yield move(world)
    if not any(world.trash):
        # It has not been touched: the run may have been stopped, a hold or a lock may keep it.
        for row in (S.PLANNED, S.HELD, S.SKIPPED):
            yield iter([world._replace(row=row)])


def finish_restore(world: World, decision: Decision) -> Iterator[Walk]:
    """Yield the one way in which recovery ends an interrupted restore."""
    rows = {D.RESTORED: S.RESTORED, D.LOST: S.LOST}
    if decision is D.RESTORE_ON:
        yield restore(world, before=None)
    else:
        yield iter([world._replace(row=rows.get(decision, S.ERROR))])


def finish_purge(world: World, decision: Decision) -> Iterator[Walk]:
    """Yield the one way in which recovery ends an interrupted purge."""
    if decision is D.PURGE_ON:
        yield purge(world)
    else:
        yield iter([world._replace(row=S.PURGED if decision is D.PURGED else S.ERROR)])


def check_row(world: World, decision: Decision) -> Iterator[Walk]:
    """Yield what the look through the trash makes of a row that should be in it, or should not."""
    rows = {D.FINISH: S.TRASHED, D.LOST: S.LOST, D.ERROR: S.ERROR}
    row = rows.get(decision)
    yield iter([world if row is None or row is world.row else world._replace(row=row)])


def adopt(world: World, decision: Decision) -> Iterator[Walk]:
    """Yield what becomes of a manifest without a row."""
    rows = {D.ADOPT: S.TRASHED, D.ADOPT_ERROR: S.ERROR}
    yield iter([world._replace(row=rows.get(decision))])


CALLERS = {
    S.INTENT: finish_move,
    S.RESTORING: finish_restore,
    S.PURGE_INTENT: finish_purge,
    S.TRASHED: check_row,
    S.LOST: check_row,
    S.ERROR: check_row,
    None: adopt,
}


def meddle(world: World) -> Iterator[World]:
    """Yield the worlds that one act of somebody else makes of this one; once, and what was lost is found."""
    for at, inode in enumerate(world.own):
        if world.row is S.LOST and world.trash[at] == 0 and inode in world.gone:
            found = world._replace(gone=world.gone - {inode})
            yield found.put("trash", at, inode)
            yield world.put("trash", at, LAID_IN_TRASH)
        if not world.acted:
            yield from (changed._replace(acted=True) for changed in _change(world, at, inode))


def _change(world: World, at: int, inode: int) -> Iterator[World]:
    twice = world.source[at] == world.trash[at]
    without = world if twice else world._replace(gone=world.gone | {inode})
    if world.source[at] == 0:
        yield world.put("source", at, AT_SOURCE)
    if world.source[at] == inode:
        yield without.put("source", at, 0)
        yield without.put("source", at, AT_SOURCE)
    if world.source[at] == 0 and world.trash[at] == inode:
        yield world.put("source", at, inode)  # a second name for it
    if world.trash[at] == inode:
        yield without.put("trash", at, 0)
        yield without.put("trash", at, LAID_IN_TRASH)


def starts() -> Iterator[World]:
    """Yield an item of one and of two members, planned, or in the trash, or without a row."""
    for count in (1, 2):
        own, free = OWN[:count], (0,) * count
        yield World(S.PLANNED, own, free)
        yield World(S.TRASHED, free, own, stored=True)
        yield World(None, free, own, stored=True)


def flows(world: World) -> Iterator[Walk]:
    """Yield what may be begun in this world, each intent with its first step."""
    if world.row is S.PLANNED:
        for row in (S.SKIPPED, S.HELD):
            yield iter([world._replace(row=row)])
        yield from (iter([looked]) for looked in _look(world))
        yield _begin(world, S.INTENT, lambda w: move(w, by_link=True))
        for raced in (None, *range(len(world.own))):
            yield _begin(world, S.INTENT, lambda w, at=raced: move(w, raced=at))
    if world.row is S.TRASHED:
        yield _begin(world._replace(due=True), S.PURGE_INTENT, purge)
    if world.row in (S.TRASHED, S.ERROR):
        before = world.row
        yield _begin(world, S.RESTORING, lambda w: restore(w, before=before))


def _look(world: World) -> Iterator[World]:
    """A caller may look before it intends anything."""
    if world.source != world.own:
        yield world._replace(row=S.CHANGED if any(world.source) else S.VANISHED)
    yield world._replace(row=S.ERROR)


def _begin(world: World, row: ItemState, walk: Callable[[World], Walk]) -> Walk:
    world = world._replace(row=row, stored=row is not S.INTENT)
    yield world
    yield from walk(world)


OPEN = (S.INTENT, S.RESTORING, S.PURGE_INTENT)


def complaint(begin: World, end: World) -> str:
    """Say what is wrong with a world that has come to rest after `begin`; nothing if all is well."""
    for inode in end.own:
        if inode not in (*end.source, *end.trash, *end.gone, *end.unlinked):
            return f"the bytes of {inode} are lost"
    if end.unlinked and not end.due:
        return "purged before its time"
    if end.row is S.TRASHED and begin.row is S.INTENT and set(end.own) & set(end.source) and not end.acted:
        return "two copies"
    if end.row in OPEN:
        return "stuck"
    if not _went_on(begin, end):
        return f"{begin.row} could have gone on"
    if end.row is S.ERROR and begin.row in (S.ERROR, S.PLANNED):
        return ""  # it stays until a person has brought back what there is; or the look was refused
    return "" if TRUTHS[end.row](end) else f"{end.row} is not true"


#: Where what a crash interrupted ends if nobody has interfered. What has not moved may stay after all.
GOALS = {
    S.INTENT: (S.TRASHED, S.PLANNED, S.HELD, S.SKIPPED),
    S.RESTORING: (S.RESTORED,),
    S.PURGE_INTENT: (S.PURGED,),
}


def _went_on(begin: World, end: World) -> bool:
    if begin.row not in GOALS or end.row in GOALS[begin.row]:
        return True
    if begin.row is S.INTENT and set(begin.source) & set(begin.trash) - {0}:
        return True  # a file system without a rename that never overwrites: nobody can say who made it twice
    places = list(zip(begin.source, begin.trash, begin.own, strict=True))
    free = all(inside == 0 or (inside == own and place in (0, own)) for place, inside, own in places)
    can_return = begin.row is S.RESTORING and free and any(begin.trash)
    can_be_put_back = begin.row is S.INTENT and not any(inside and place for place, inside, _ in places)
    could = can_return or (can_be_put_back and end.row is S.ERROR)
    return (begin.acted or bool(begin.gone)) and not could


def _stayed(world: World) -> bool:
    return not world.stored and not any(world.trash)


def _has_come_back(world: World) -> bool:
    """Nothing is in the trash, and what people have left of it is in its place, or what they laid there."""
    kept = set(world.own) - world.gone - world.unlinked
    back = set(world.source) & {*kept, ARRIVED, LAID_IN_TRASH}
    return world.stored and not any(world.trash) and bool(back) and kept <= back


def _is_lost(world: World) -> bool:
    """Nothing is in the trash, and something was taken by others."""
    return world.stored and not any(world.trash) and bool(world.gone)


def _is_error(world: World) -> bool:
    """No other word is true: somebody was at it, or a part came back and is gone again, or it is twice."""
    others = [state for state in TRUTHS if state not in (None, S.ERROR)]
    if set(world.source) & set(world.trash) - {0}:
        return True
    if set(world.source) & set(world.own):
        others = [S.TRASHED, S.PURGED, S.VANISHED, S.CHANGED]
    return not any(TRUTHS[state](world) for state in others)


#: What has to be so for a row to say so.
TRUTHS: dict[ItemState | None, Callable[[World], bool]] = {
    None: lambda world: not any(world.trash),
    S.PLANNED: _stayed,
    S.SKIPPED: _stayed,
    S.HELD: _stayed,
    S.VANISHED: lambda world: _stayed(world) and not world.source[0],
    S.CHANGED: lambda world: _stayed(world) and any(world.source) and world.source != world.own,
    S.TRASHED: lambda world: world.trash == world.own,
    S.PURGED: lambda world: not any(world.trash) and world.due,
    S.RESTORED: _has_come_back,
    S.LOST: _is_lost,
    S.ERROR: _is_error,
}
