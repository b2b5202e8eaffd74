"""The audit file of the engine alone: what is about to be done, what was done, and what a crash left open.

Before files of a batch are moved, brought back or purged an entry ``…_intent`` is on disk; after it, in one
write, an entry for every file and at last ``…_settled``. A batch with the first and without the last was
interrupted, and `Journal.open_batches` names it. Nothing else is remembered anywhere: where the files are is
what the trash's manifests say.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import msgspec

from cleanup.engine.audit import AuditEntry, AuditRecord
from cleanup.engine.auditlog import JsonlAuditSink
from cleanup.engine.errors import AuditInvalid

Verb = Literal["trash", "restore", "purge"]

_decoder = msgspec.json.Decoder(AuditEntry)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

#: Entries that are more than the record of one file; only these are looked for.
_MARKS = (b'_intent"', b'_settled"', b'"run_done"')


class OpenBatch(msgspec.Struct, frozen=True, kw_only=True):
    """A batch that was begun and not settled."""

    verb: Verb
    batch: str
    policy: str | None
    #: (trash id, escaped path, bytes) of every item of which nothing more is written down.
    items: tuple[tuple[str, str, int], ...]


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one file."""

    action: str  #: ``trashed``, ``restored``, ``purged``, or the word for why it was not
    item: str  #: trash id
    path: str
    size: int = 0
    reason: str | None = None
    detail: str = ""


class Journal:
    """Writes the audit of one actor, for one area at a time."""

    def __init__(self, path: Path, *, actor: str, run: str, now: datetime) -> None:
        """Name the file; it is made by the first entry.

        Args:
            path: of the file; its folder exists.
            actor: who acts, as the system knows them.
            run: by which the entries of one command belong together.
            now: the time of all entries.
        """
        self.path = path
        self.run = run
        self._sink = JsonlAuditSink(path)
        self._actor = actor
        self._at_us = (now - _EPOCH) // timedelta(microseconds=1)

    def note(
        self, action: str, *, area: str | None = None, policy: str | None = None, **evidence: Any
    ) -> None:
        """Write one entry about a command as a whole."""
        self._sink.write([self._record(action, area=area, policy=policy, evidence=evidence)])

    def begin(
        self,
        verb: Verb,
        batch: str,
        items: Sequence[tuple[str, str, int]],
        *,
        area: str,
        policy: str | None = None,
    ) -> None:
        """Write down what is about to be done to a batch; it is on disk when this returns."""
        evidence = {"batch": batch, "items": [list(item) for item in items]}
        self._sink.write([self._record(f"{verb}_intent", area=area, policy=policy, evidence=evidence)])

    def settle(
        self, verb: Verb, batch: str, steps: Sequence[Step], *, area: str, policy: str | None = None
    ) -> None:
        """Write down what was done to a batch, file by file, and that nothing of it is open."""
        records = [
            self._record(
                step.action,
                area=area,
                policy=policy,
                item=step.item,
                path=step.path,
                size=step.size,
                reason=step.reason,
                evidence={"detail": step.detail} if step.detail else {},
            )
            for step in steps
        ]
        last = self._record(f"{verb}_settled", area=area, policy=policy, evidence={"batch": batch})
        self._sink.write([*records, last])

    def _record(self, action: str, *, policy: str | None, **fields: Any) -> AuditRecord:
        return AuditRecord(
            at_us=self._at_us,
            actor=self._actor,
            actor_kind="command",
            action=action,
            run=self.run,
            policy_version=policy,
            **fields,
        )

    def open_batches(self, area: str) -> list[OpenBatch]:
        """Return what was begun in an area and never settled, oldest first.

        Raises:
            AuditInvalid: a line of the file is not an audit entry.
        """
        found: dict[tuple[str, str], AuditEntry] = {}
        for entry in self._marks(area):
            verb, _, end = entry.action.rpartition("_")
            if end == "intent":
                found[verb, entry.evidence["batch"]] = entry
            elif end == "settled":
                found.pop((verb, entry.evidence["batch"]), None)
        noted = self._items_since(min(entry.seq for entry in found.values())) if found else frozenset()
        return [_open_batch(verb, entry, noted) for (verb, _), entry in found.items()]

    def history(self, area: str, policy: str) -> list[int]:
        """Return how many files each run of a policy has trashed, oldest first.

        Raises:
            AuditInvalid: as `open_batches`.
        """
        done = (one for one in self._marks(area) if one.action == "run_done" and one.policy_version == policy)
        return [int(entry.evidence["files"]) for entry in done]

    def _marks(self, area: str) -> Iterator[AuditEntry]:
        """Yield the entries about whole batches and runs; the many about single files are not decoded."""
        for line in self._lines():
            if any(mark in line for mark in _MARKS):
                entry = _decode(line)
                if entry.area == area:
                    yield entry

    def _items_since(self, seq: int) -> frozenset[str]:
        """Return the items of which an entry later than `seq` tells."""
        later = (entry for entry in map(_decode, self._lines()) if entry.seq > seq)
        return frozenset(entry.item for entry in later if entry.item is not None)

    def _lines(self) -> Iterator[bytes]:
        """Yield every whole line of the file."""
        try:
            with self.path.open("rb") as file:
                yield from (line for line in file if line.endswith(b"\n"))
        except FileNotFoundError:
            return


def _decode(line: bytes) -> AuditEntry:
    try:
        return _decoder.decode(line)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise AuditInvalid(f"a line of the audit file is not an audit entry: {error}") from error


def _open_batch(verb: str, entry: AuditEntry, noted: frozenset[str]) -> OpenBatch:
    items = [item for item in entry.evidence["items"] if item[0] not in noted]
    fields = {"verb": verb, "batch": entry.evidence["batch"], "policy": entry.policy_version, "items": items}
    try:
        return msgspec.convert(fields, OpenBatch)
    except msgspec.ValidationError as error:
        raise AuditInvalid(f"entry {entry.seq} of the audit file names no batch: {error}") from error
