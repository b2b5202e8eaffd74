"""A caller of the engine that keeps its rows in a file and can be killed anywhere.

A verb does what an adapter must do: commit the intent, act, commit the outcome. `recover_rows` is the other
half, run by whoever comes after the crash. The rows are one JSON file, replaced atomically.

`python -m tests.unit.cleanup_engine.crasher serve` carries out one verb for each line of JSON on standard
input, in a fork with a fault armed, and answers with how the fork ended. With a file of such lines instead
of `serve` it does the same for a tracer that kills every fork at its `LIMIT`th call of one kind; a job that
is to die at its nth makes as many such calls before, in vain.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import UUID, uuid4

import msgspec

from cleanup.engine import faults
from cleanup.engine.area import AreaHandle
from cleanup.engine.discard import discard, discard_leftovers, expired, shelve
from cleanup.engine.errors import ManifestInvalid
from cleanup.engine.kernel import rename_new
from cleanup.engine.plan import decode_items, encode_items
from cleanup.engine.scan import Skips
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


def discard_all(garden: Garden, area: AreaHandle, rows: Rows) -> None:
    """What ResultCleanupDaemon does, which keeps no rows: finish what is left over, then what has expired."""
    for _ in discard_leftovers(area, header().policy, now=NOW, on_bad=lambda batch, why: None):
        pass
    if found := expired(area, EXPIRY, now=NOW, on_kept=Skips()).candidates:
        at_once = msgspec.structs.replace(header(), purge_after=NOW)
        discard(area, shelve(area, found, header=at_once))


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


VERBS = {"run": run, "purge": purge_all, "restore": restore_all, "discard": discard_all}


#: Calls by the name that a tracer knows, each made without any effect.
CALLS = {
    "fsync": lambda: os.fsync(0),
    "write": lambda: os.write(1, b""),
    "rename": lambda: os.rename("/nowhere", "/nothing"),
    "renameat2": lambda: rename_new(-1, b"nowhere", -1, b"nothing"),
    "unlinkat": lambda: os.unlink("nowhere", dir_fd=-1),
    "mkdirat": lambda: os.mkdir("nowhere", dir_fd=-1),
}
#: More calls of one kind than any verb makes.
LIMIT = 60


def carry_out(job: dict[str, str]) -> None:
    """Carry out one verb, with its fault armed from here on."""
    if "call" in job:
        for _ in range(LIMIT - int(job["at"])):
            with suppress(OSError):
                CALLS[job["call"]]()
    garden, rows = Garden(Path(job["root"]), UUID(job["uuid"])), Rows(Path(job["rows"]))
    with garden.open() as area, area.lock():
        faults._armed = faults.Armed(job["fault"]) if job["fault"] else None
        VERBS[job["verb"]](garden, area, rows)


def _forked(job: dict[str, str]) -> int:
    """Start `job` in a fork; what goes wrong there besides injected faults is told on standard error."""
    child = os.fork()
    if child:
        return child
    code = 3
    try:
        carry_out(job)
        code = 0
    except OSError as error:
        if "injected" not in str(error):
            raise
        code = 1
    finally:
        if code == 3:
            traceback.print_exc()
        os._exit(code)


def main() -> None:
    if sys.argv[1] == "serve":
        for line in sys.stdin:
            _, status = os.waitpid(_forked(json.loads(line)), 0)
            sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
            sys.stdout.flush()
        return
    codes = [
        os.waitstatus_to_exitcode(os.waitpid(_forked(json.loads(line)), 0)[1])
        for line in Path(sys.argv[1]).read_text().splitlines()
    ]
    Path(sys.argv[1]).write_text(json.dumps(codes))


COMMAND = [sys.executable, "-m", "tests.unit.cleanup_engine.crasher"]
ROOT = Path(__file__).parents[3]


def job(garden: Garden, rows: Path, verb: str, fault: str = "", **traced: object) -> str:
    """One verb as one line; `traced` says at which `call` and `at` which of them a tracer is to kill it."""
    told = {"root": str(garden.root), "uuid": str(garden.uuid), "rows": str(rows)}
    return json.dumps({**told, "verb": verb, "fault": fault, **traced})


class Crasher:
    """A process that carries out verbs in forks of its own."""

    def __enter__(self) -> Crasher:
        self._process = subprocess.Popen(
            [*COMMAND, "serve"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=100)

    def crash(self, garden: Garden, rows: Path, verb: str, fault: str) -> int:
        """Carry out `verb` with `fault` armed; 0, 1 for an injected error, or minus the signal."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(job(garden, rows, verb, fault) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        assert code != 3, f"{verb} with {fault or 'no fault'} went wrong: see above"
        return code


if __name__ == "__main__":
    main()
