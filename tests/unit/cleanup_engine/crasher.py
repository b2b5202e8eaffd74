"""A caller of the engine that keeps its rows in a file and can be killed anywhere.

`python -m tests.unit.cleanup_engine.crasher ROOT UUID ROWS VERB` does what an adapter must do: commit the
intent, act, commit the outcome. `recover_rows` is the other half, run by whoever comes after the crash. The
rows are one JSON file, replaced atomically.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import msgspec

from cleanup.engine.area import AreaHandle
from cleanup.engine.errors import ManifestInvalid
from cleanup.engine.plan import decode_items, encode_items
from cleanup.engine.shelf import batch_of
from cleanup.engine.states import TRANSITIONS, Decision, ItemState, can_move, recover
from cleanup.engine.trash import move, observe, prepare, purge, purge_batch, reopen, restore, trash_ids
from tests.unit.cleanup_engine.kit import AGE, EXPIRY, NOW, Garden, header

S, D = ItemState, Decision

#: Old files that are no results: those go by the other policy.
PLAIN = msgspec.structs.replace(AGE, exclude=("*.result.json.lz4", "*.metadata.json"))

OUTCOMES = {
    "trashed": S.TRASHED,
    "changed": S.CHANGED,
    "vanished": S.VANISHED,
    "locked": S.SKIPPED,
    "error": S.ERROR,
}


class Rows:
    """State and plan of every item, by trash id."""

    def __init__(self, path: Path) -> None:
        self.path = path
        content = json.loads(path.read_text()) if path.exists() else {}
        self.states = {trash_id: ItemState(state) for trash_id, (state, _) in content.items()}
        self.items = {
            trash_id: decode_items(bytes.fromhex(item))[0] for trash_id, (_, item) in content.items()
        }

    def put(self, states: dict[str, ItemState]) -> None:
        """Commit `states`; refuse what the table of transitions does not know."""
        for trash_id, state in states.items():
            old = self.states.get(trash_id)
            assert old is None or old is state or can_move(old, state), (trash_id, old, state)
            self.states[trash_id] = state
        content = {i: (state, encode_items([self.items[i]]).hex()) for i, state in self.states.items()}
        draft = self.path.with_suffix(".new")
        with draft.open("w") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.path)

    def having(self, state: ItemState) -> list[str]:
        return [trash_id for trash_id, found in self.states.items() if found is state]


def run(garden: Garden, area: AreaHandle, rows: Rows) -> None:
    items = [*garden.plan(area, PLAIN).items, *garden.plan(area, EXPIRY).items]
    ids = trash_ids(uuid4(), len(items), day=NOW.date())
    rows.items.update(zip(ids, items, strict=True))
    rows.put(dict.fromkeys(ids, S.INTENT))
    moved = move(area, prepare(area, items, ids=ids, header=header()))
    rows.put({one.trash_id: OUTCOMES[one.outcome] for one in moved})


def purge_all(garden: Garden, area: AreaHandle, rows: Rows) -> None:
    ids = rows.having(S.TRASHED)
    rows.put(dict.fromkeys(ids, S.PURGE_INTENT))
    outcomes = {"purged": S.PURGED, "lost": S.LOST, "error": S.ERROR}
    rows.put({one.trash_id: outcomes[one.outcome] for one in purge_batch(area, ids)})


def restore_all(garden: Garden, area: AreaHandle, rows: Rows) -> None:
    outcomes = {"restored": S.RESTORED, "conflict": S.TRASHED, "lost": S.LOST, "error": S.ERROR}
    for trash_id in rows.having(S.TRASHED):
        rows.put({trash_id: S.RESTORING})
        rows.put({trash_id: outcomes[restore(area, trash_id).outcome]})


def decisions(area: AreaHandle, rows: Rows) -> Iterator[tuple[str, Decision]]:
    for trash_id, state in list(rows.states.items()):
        if TRANSITIONS[state] and state is not S.PLANNED:
            yield trash_id, recover(state, observe(area, rows.items[trash_id], trash_id))


def recover_rows(area: AreaHandle, rows: Rows) -> None:
    """Bring rows and disk together again, once."""
    for trash_id, decision in list(decisions(area, rows)):
        rows.put({trash_id: _carry_out(area, rows, trash_id, decision)})


def _carry_out(area: AreaHandle, rows: Rows, trash_id: str, decision: Decision) -> ItemState:
    settled = {
        D.NOTHING: rows.states[trash_id],
        D.FINISH: S.TRASHED,
        D.VANISHED: S.VANISHED,
        D.CHANGED: S.CHANGED,
        D.LOST: S.LOST,
        D.RESTORED: S.RESTORED,
        D.PURGED: S.PURGED,
        D.ERROR: S.ERROR,
    }
    if decision is D.RETRY:
        return _move_on(area, trash_id)
    if decision is D.RESTORE_ON:
        return S.RESTORED if restore(area, trash_id).outcome == "restored" else S.TRASHED
    if decision is D.PURGE_ON:
        return S.PURGED if purge(area, trash_id).outcome in ("purged", "lost") else S.ERROR
    return settled[decision]


def _move_on(area: AreaHandle, trash_id: str) -> ItemState:
    try:
        prepared = reopen(area, batch_of(trash_id))
    except ManifestInvalid:
        return S.PLANNED  # nothing of the batch ever moved
    if trash_id not in prepared.items:
        return S.PLANNED
    return next(OUTCOMES[one.outcome] for one in move(area, prepared) if one.trash_id == trash_id)


VERBS = {"run": run, "purge": purge_all, "restore": restore_all}


def main() -> None:
    root, uuid, path, verb = sys.argv[1:]
    garden, rows = Garden(Path(root), UUID(uuid)), Rows(Path(path))
    with garden.open() as area, area.lock():
        VERBS[verb](garden, area, rows)


if __name__ == "__main__":
    main()
