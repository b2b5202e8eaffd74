"""Retention of the audit itself: whole stretches are exported, and later their entries are removed.

Export writes one segment for each checkpoint and notes its name and SHA-256 in the checkpoint. Prune reads
the segment again, reads the stretch in the database once more, writes a signed leave into the file outside
the database, and then removes the entries, with an audit entry in the same transaction. The checkpoint stays:
the chain is verified across it. Only the oldest stretches go, one after the other, so what is left has no
holes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from django.db import transaction

from cleanup.conf import conf
from cleanup.engine.audit import GENESIS, ChainReport
from cleanup.engine.checkpointlog import Appender, CheckpointLog, Outside
from cleanup.engine.checkpoints import (
    Checkpoint,
    Pruned,
    flaw_of_checkpoint,
    flaw_of_seal,
    flaw_of_stretch,
    is_leave,
    sign_pruned,
)
from cleanup.engine.errors import AuditInvalid
from cleanup.engine.inspection import Kept
from cleanup.engine.segments import check_segment, file_sha256, segment_name, write_segment
from cleanup.engine.signing import KeyRing, Signer, load_signer, read_ring
from cleanup.models import AuditCheckpoint
from cleanup.operations.auditing import checkpoint_log, public_keys
from cleanup.operations.outcomes import OperationRefused
from cleanup.stores import Actor, DatabaseAuditSink, entries, record
from cleanup.stores.audit import micros
from cleanup.stores.checkpoints import kept, remove_entries, set_segment
from cleanup.stores.sql import database_now


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """One segment that was written, or would be."""

    checkpoint: Checkpoint
    name: str
    sha256: str = ""


@dataclass(slots=True, kw_only=True)
class PruneReport:
    """Which checkpoints lost their entries, or would, and why the next one kept them."""

    checkpoints: list[Checkpoint] = field(default_factory=list)
    entries: int = 0
    #: Why it ended before the last checkpoint; empty: it did not.
    ended: str = ""


def export_audit(
    folder: Path,
    actor: Actor,
    *,
    up_to: int | None = None,
    before: datetime | None = None,
    again: bool = False,
    dry_run: bool = False,
) -> list[Exported]:
    """Write the segments of all sealed stretches that have none yet into `folder`.

    Args:
        folder: it must exist; a file of the same name is replaced.
        actor: who exports.
        up_to: leave out stretches that end beyond this entry.
        before: leave out checkpoints that were made at or after this moment.
        again: also write those that were exported before and still have their entries.
        dry_run: say what would be written.

    Raises:
        OperationRefused: the folder is none.
        AuditInvalid: a stretch is not as it was sealed; those before it are exported.
        AuditUnavailable: a segment cannot be written.
    """
    _refuse_no_folder(folder)
    wanted = [
        found.checkpoint for found in _kept()
        if not found.pruned and (again or not found.segment)
        and (up_to is None or found.checkpoint.last_seq <= up_to)
        and (before is None or found.checkpoint.at_us < micros(before))
    ]  # fmt: skip
    if dry_run:
        return [Exported(checkpoint=one, name=segment_name(one)) for one in wanted]
    return [_export(one, folder, actor) for one in wanted]


def verify_segment(path: Path, *, keys: Path | None = None, log: Path | None = None) -> ChainReport:
    """Check one segment alone: its entries, its root and its signature, and that it is known outside.

    Raises:
        AuditUnavailable: the segment, the keys or the file outside the database cannot be read.
    """
    ring = read_ring(keys) if keys else public_keys()
    outside = (CheckpointLog(log) if log else checkpoint_log()).read()
    try:
        sealed, flaw = check_segment(path)
    except AuditInvalid as error:
        return ChainReport(sound=False, entries=0, kind="segment", notes=(str(error),))
    kind = flaw_of_seal(sealed, ring=ring)
    if kind is None and outside.checkpoints.get(sealed.number) != sealed:
        kind = "outside"
    if kind is None and flaw is None:
        return ChainReport(sound=True, entries=sealed.size, checkpoints=1)
    return ChainReport(
        sound=False, entries=flaw.entries if flaw else 0, kind=kind or (flaw.kind if flaw else None),
        first_bad_seq=flaw.seq if flaw else sealed.first_seq, checkpoint=sealed.number,
    )  # fmt: skip


def _refuse_no_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise OperationRefused(f"{folder} is no folder")


def _kept() -> Iterator[Kept]:
    for row in AuditCheckpoint.objects.order_by("number").iterator():
        yield kept(row)


def _export(checkpoint: Checkpoint, folder: Path, actor: Actor) -> Exported:
    found = entries(after=checkpoint.first_seq - 1, up_to=checkpoint.last_seq)
    sha256, name = write_segment(folder, checkpoint, found), segment_name(checkpoint)
    with transaction.atomic():
        set_segment(checkpoint.number, name=name, sha256=sha256)
        _audit(actor, "audit_exported", checkpoint, name, sha256)
    return Exported(checkpoint=checkpoint, name=name, sha256=sha256)


def _audit(actor: Actor, action: str, checkpoint: Checkpoint, name: str, sha256: str) -> None:
    evidence = {
        "checkpoint": checkpoint.number, "first_seq": checkpoint.first_seq, "last_seq": checkpoint.last_seq,
        "segment": name, "sha256": sha256,
    }  # fmt: skip
    DatabaseAuditSink().write([record(actor, action, now=database_now(), evidence=evidence)])


# A lost file outside ----------------------------------------------------------------------------------------


def rebuild_log(actor: Actor) -> int:
    """Write the file outside the database anew from the rows, when it was lost with its disk; audited.

    It then vouches for nothing that the rows do not say. A copy of the lost file still does.

    Returns:
        How many checkpoints it holds.

    Raises:
        OperationRefused: the file is there.
        AuditInvalid: a row was not sealed with a trusted key; nothing is written.
        AuditUnavailable: the key or the folder cannot be used.
    """
    log, ring, now = checkpoint_log(), public_keys(), database_now()
    if log.path.exists():
        raise OperationRefused(f"{log.path} is there; it is only made anew when it was lost")
    signer, found = load_signer(conf().audit_key_file), list(_kept())
    for one, after in zip(found, [None, *found], strict=False):
        kind = flaw_of_checkpoint(one.checkpoint, after=after.checkpoint if after else None, ring=ring)
        if kind:
            raise AuditInvalid(f"checkpoint {one.checkpoint.number} is not sound ({kind}): verify the audit")
    lines = list(_lines_of(found, at_us=micros(now), signer=signer))
    log.begin(lines)
    DatabaseAuditSink().write(
        [record(actor, "audit_log_rebuilt", now=now, evidence={"checkpoints": len(found)})]
    )
    return len(found)


def _lines_of(found: list[Kept], *, at_us: int, signer: Signer) -> Iterator[Checkpoint | Pruned]:
    for one in found:
        yield one.checkpoint
        if one.pruned:
            yield sign_pruned(
                one.checkpoint, segment=one.segment, sha256=one.segment_sha256, at_us=at_us, signer=signer
            )


# Removing ---------------------------------------------------------------------------------------------------


def prune_audit(
    folder: Path, actor: Actor, *, now: datetime | None = None, dry_run: bool = False
) -> PruneReport:
    """Remove the entries of exported stretches that are older than `CLEANUP["AUDIT_KEEP"]`.

    Args:
        folder: where their segments are; each is read again before its entries go.
        actor: who prunes.
        now: the time, by the database's clock.
        dry_run: read everything, and remove nothing.

    Raises:
        OperationRefused: the audit is kept for ever, or the folder is none.
        AuditInvalid: a segment, a stretch or a checkpoint is not as it was sealed; nothing more is removed.
        AuditUnavailable: the key or the file outside the database cannot be used.
    """
    keep, now = conf().audit_keep, now or database_now()
    if keep is None:
        raise OperationRefused("CLEANUP['AUDIT_KEEP'] is not set: the audit is kept for ever")
    _refuse_no_folder(folder)
    with checkpoint_log().locked() as file:
        pruning = _Pruning(
            folder=folder, actor=actor, now=now, before=micros(now - keep), file=file,
            outside=checkpoint_log().read(), ring=public_keys(), signer=load_signer(conf().audit_key_file),
        )  # fmt: skip
        return pruning.run(dry_run=dry_run)


@dataclass(slots=True, kw_only=True)
class _Pruning:
    """One call of `prune_audit`."""

    folder: Path
    actor: Actor
    now: datetime
    #: Stretches whose checkpoint is younger than this stay.
    before: int
    file: Appender
    outside: Outside
    ring: KeyRing
    signer: Signer
    report: PruneReport = field(default_factory=PruneReport)

    def run(self, *, dry_run: bool) -> PruneReport:
        after: Checkpoint | None = None
        for found in _kept():
            self._refuse_checkpoint(found.checkpoint, after)
            if not found.pruned:
                self.report.ended = self._reason_to_stay(found)
                if self.report.ended:
                    break
                self._refuse_entries(found, after)
                if not dry_run:
                    self._remove(found)
                self.report.checkpoints.append(found.checkpoint)
                self.report.entries += found.checkpoint.size
            after = found.checkpoint
        return self.report

    def _reason_to_stay(self, found: Kept) -> str:
        number = found.checkpoint.number
        if found.checkpoint.at_us >= self.before:
            return f"checkpoint {number} is younger than CLEANUP['AUDIT_KEEP']"
        return "" if found.segment else f"checkpoint {number} was not exported"

    def _refuse_checkpoint(self, checkpoint: Checkpoint, after: Checkpoint | None) -> None:
        kind = flaw_of_checkpoint(checkpoint, after=after, ring=self.ring)
        if kind or self.outside.checkpoints.get(checkpoint.number) != checkpoint:
            raise AuditInvalid(
                f"checkpoint {checkpoint.number} is not sound ({kind or 'outside'}): verify the audit"
            )

    def _refuse_entries(self, found: Kept, after: Checkpoint | None) -> None:
        """What is not sound stays: removing it would remove the proof."""
        checkpoint, path = found.checkpoint, self.folder / found.segment
        sealed, flaw = check_segment(path)
        if flaw or sealed != checkpoint or file_sha256(path) != found.segment_sha256:
            raise AuditInvalid(
                f"{path} is not what was exported: nothing of checkpoint {checkpoint.number} goes"
            )
        stretch = entries(after=checkpoint.first_seq - 1, up_to=checkpoint.last_seq)
        flaw = flaw_of_stretch(stretch, checkpoint, prev_hash=after.head_hash if after else GENESIS)
        if flaw:
            raise AuditInvalid(f"entry {flaw.seq} is not as it was sealed ({flaw.kind}): verify the audit")

    def _remove(self, found: Kept) -> None:
        """The leave first: a leave without a removal does no harm."""
        checkpoint = found.checkpoint
        leave = self.outside.pruned.get(checkpoint.number)
        same = leave is not None and (leave.segment, leave.segment_sha256) == (
            found.segment, found.segment_sha256
        )  # fmt: skip
        if leave is None or not same or not is_leave(leave, ring=self.ring):
            self.file.append(sign_pruned(
                checkpoint, segment=found.segment, sha256=found.segment_sha256, at_us=micros(self.now),
                signer=self.signer,
            ))  # fmt: skip
        with transaction.atomic():
            remove_entries(checkpoint, now=self.now)
            _audit(self.actor, "audit_pruned", checkpoint, found.segment, found.segment_sha256)
