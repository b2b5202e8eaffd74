"""The audit as a whole: sealing it by checkpoints, reading it, proving one entry, changing the key.

Checkpoints are cut by one process at a time, under the lock of the file outside the database. The line there
is on disk before its row is committed; a line without a row is what a crash in between leaves, and the next
cut takes it over as it is. A reading changes nothing but the note of when the chain was read and whether it
was sound. `segments` beside this module exports and prunes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from django.db import transaction
from django.db.models import Q

from cleanup.conf import conf
from cleanup.engine.audit import GENESIS, ChainReport
from cleanup.engine.checkpointlog import Appender, CheckpointLog, Outside
from cleanup.engine.checkpoints import STRETCH, Checkpoint, flaw_of_checkpoint, seal_checkpoint
from cleanup.engine.errors import AuditInvalid, AuditUnavailable
from cleanup.engine.inspection import Inspection
from cleanup.engine.merkle import merkle_path, merkle_root
from cleanup.engine.signing import (
    KeyRing,
    PublicKey,
    Signer,
    load_signer,
    make_signer,
    read_ring,
    renew_signer,
    ring_file,
)
from cleanup.models import AuditCheckpoint, AuditEntry, AuditHead
from cleanup.operations import reading
from cleanup.operations.outcomes import NotFound
from cleanup.stores import Actor, DatabaseAuditSink, entries, record
from cleanup.stores.audit import micros
from cleanup.stores.checkpoints import DatabaseSource, insert_checkpoint, kept, last_checkpoint, links
from cleanup.stores.sql import database_now

logger = logging.getLogger(__name__)

#: Entries wait for their checkpoint no longer than this.
INTERVAL = timedelta(hours=1)

#: The whole chain is read again after this.
READ_EVERY = timedelta(hours=24)

#: Checkpoints that one call cuts at most: a million entries, some seconds.
_AT_ONCE = 100


# Sealing ----------------------------------------------------------------------------------------------------


def checkpoint_log() -> CheckpointLog:
    """The file outside the database."""
    return CheckpointLog(conf().audit_log_file)


def public_keys() -> KeyRing:
    """The keys that are trusted. Raises `AuditUnavailable` before the first checkpoint was cut."""
    return read_ring(ring_file(conf().audit_key_file))


def cut_checkpoints(
    now: datetime | None = None, *, force: bool = False, stretch: int = STRETCH
) -> list[Checkpoint]:
    """Seal what is due: whole stretches at once, a rest when its first entry has waited for an hour.

    Args:
        now: the time, by the database's clock.
        force: seal a rest, too.
        stretch: entries in one checkpoint at most.

    Raises:
        AuditUnavailable: the key or the file outside the database cannot be used.
        AuditInvalid: the chain or its checkpoints are not sound where the next one would begin.
    """
    now = now or database_now()
    last = last_checkpoint()
    if not _is_due(last, now, force=force, stretch=stretch):
        return []
    with checkpoint_log().locked(make=last is None) as file:
        last = _agree(last_checkpoint(), checkpoint_log().read())
        signer = _signer(last, now)
        cut: list[Checkpoint] = []
        while len(cut) < _AT_ONCE and _is_due(last, now, force=force, stretch=stretch):
            last = _cut(last, now, signer, file, stretch)
            cut.append(last)
    return cut


def _is_due(last: Checkpoint | None, now: datetime, *, force: bool, stretch: int) -> bool:
    head = DatabaseSource().head()
    done = last.last_seq if last else 0
    if head is None or head[0] <= done:
        return False
    if force or head[0] - done >= stretch:
        return True
    waiting = AuditEntry.objects.filter(seq=done + 1).values_list("at_us", flat=True).first()
    # A clock that was ahead for a while must not put checkpoints off: hence the distance.
    return waiting is None or abs(micros(now) - waiting) >= INTERVAL / timedelta(microseconds=1)


def _agree(last: Checkpoint | None, outside: Outside) -> Checkpoint | None:
    """Compare the ends of rows and file; take over a line whose row a crash has prevented."""
    line, number = outside.last, last.number if last else 0
    if line is None or outside.disorder is not None:
        if line is None and last is None:
            return None
        raise AuditInvalid(f"{conf().audit_log_file} is not what was written there: verify the audit")
    if line.number == number and line == last:
        return last
    if line.number != number + 1 or outside.checkpoints.get(number) != last:
        raise AuditInvalid(
            f"{conf().audit_log_file} ends at checkpoint {line.number}, the database at {number}: "
            "verify the audit"
        )
    flaw = flaw_of_checkpoint(line, after=last, ring=public_keys())
    if flaw or merkle_root(_stretch_after(last, line.last_seq, line.size)) != line.merkle_root:
        raise AuditInvalid(f"checkpoint {line.number} seals other entries: verify the audit")
    insert_checkpoint(line)
    return line


def _stretch_after(last: Checkpoint | None, up_to: int, limit: int) -> list[str]:
    """Hashes of the entries that follow a checkpoint. What does not link is never sealed."""
    seq, prev_hash = (last.last_seq, last.head_hash) if last else (0, GENESIS)
    hashes = []
    for number, link, own in links(after=seq, up_to=up_to, limit=limit):
        if number != seq + 1 or link != prev_hash:
            raise AuditInvalid(f"entry {seq + 1} does not follow the one before it: verify the audit")
        seq, prev_hash = number, own
        hashes.append(own)
    if not hashes:
        raise AuditInvalid(f"entry {seq + 1} is missing: verify the audit")
    return hashes


def _cut(last: Checkpoint | None, now: datetime, signer: Signer, file: Appender, stretch: int) -> Checkpoint:
    head = DatabaseSource().head()
    hashes = _stretch_after(last, head[0] if head else 0, stretch)
    try:
        checkpoint = seal_checkpoint(hashes, after=last, at_us=micros(now), signer=signer)
    except ValueError as error:
        raise AuditInvalid("an entry's hash is none: verify the audit") from error
    with transaction.atomic():
        insert_checkpoint(checkpoint)
        file.append(checkpoint)
    return checkpoint


def _signer(last: Checkpoint | None, now: datetime) -> Signer:
    """The private key; it is made for the first checkpoint, and never again."""
    path = conf().audit_key_file
    return make_signer(path, at_us=micros(now)) if last is None else load_signer(path)


def unsealed() -> int:
    """How many entries no checkpoint seals yet."""
    head, last = DatabaseSource().head(), last_checkpoint()
    return (head[0] if head else 0) - (last.last_seq if last else 0)


def renew_key(actor: Actor) -> PublicKey:
    """Retire the key that signs for a new one, and audit that."""
    now = database_now()
    with checkpoint_log().locked():
        public, _ = renew_signer(conf().audit_key_file, at_us=micros(now))
        evidence = {"key": public.key_id, "previous": public.previous, "public_key": public.public_key}
        DatabaseAuditSink().write([record(actor, "audit_key_renewed", now=now, evidence=evidence)])
    return public


# Reading ----------------------------------------------------------------------------------------------------


def verify_audit(
    *,
    on_progress: Callable[[int], None] | None = None,
    log: Path | None = None,
    keys: Path | None = None,
    segments: Path | None = None,
) -> ChainReport:
    """Read the whole audit and report the first flaw; others may write meanwhile.

    Args:
        on_progress: called with the number of the last entry that was read.
        log: another copy of the file outside the database.
        keys: another copy of the public keys.
        segments: folder of exported segments, to read those of pruned stretches, too.

    Raises:
        AuditUnavailable: it cannot be checked: a file or the keys are out of reach.
    """
    inspection = _inspection(log=log, keys=keys, segments=segments, on_progress=on_progress)
    inspection.start()
    report = inspection.run()
    if report is None:
        raise AssertionError("nobody stops this reading")
    _note(report)
    return report


def _inspection(
    *,
    log: Path | None = None,
    keys: Path | None = None,
    segments: Path | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Inspection:
    for given in (log, keys, segments):
        # What somebody names and is not there proves nothing: the audit would seem sound without it.
        if given is not None and not given.exists():
            raise AuditUnavailable(f"there is no {given}")
    source = DatabaseSource()
    file = CheckpointLog(log) if log else checkpoint_log()
    ring_path = keys or ring_file(conf().audit_key_file)
    # The key is made after the file: with a key there must be a file, even if all rows are gone.
    expected = source.numbers() is not None or ring_path.exists()
    outside = file.read(expected=expected)
    ring = read_ring(ring_path) if expected or outside.last else None
    return Inspection(
        source=source, outside=lambda: file.read(expected=expected), ring=ring, segments=segments,
        on_progress=on_progress,
    )  # fmt: skip


def _note(report: ChainReport) -> None:
    reading.note(report, database_now())


def read_slice(length: timedelta, now: datetime | None = None) -> ChainReport | None:
    """Go on with the nightly reading, or begin it when it is due; return its report once it is through.

    Any number of callers at once do no harm: one of them moves the mark on, the others' work counts nothing.
    """
    now = now or database_now()
    head = AuditHead.objects.filter(pk=1)
    due = Q(verified_at__isnull=True) | Q(verified_at__lt=now - READ_EVERY)
    head.filter(due, verifying__isnull=True, seq__gt=0).update(verifying=1)
    begun = head.values_list("verifying", flat=True).first()
    if begun is None:
        return None
    inspection = _inspection(on_progress=reading.teller())
    until = time.monotonic() + length.total_seconds()
    inspection.start(begun)
    report = inspection.run(lambda: time.monotonic() >= until)
    if not head.filter(verifying=begun).update(verifying=inspection.number):
        return None
    if report is not None:
        _note(report)
        if not report.sound:
            logger.error("the audit was tampered with: entry %s, %s", report.first_bad_seq, report.kind)
    return report


@dataclass(frozen=True, slots=True, kw_only=True)
class Tended:
    """What was done for the audit by the clock."""

    sealed: int = 0
    report: ChainReport | None = None
    #: Why it could not be sealed or read.
    trouble: str = ""


def tend(length: timedelta) -> Tended:
    """Seal what is due and go on with the reading for `length`; trouble is said and logged.

    What cannot be sealed may well be tampered with: a reading that somebody waits for goes on nevertheless.
    """
    sealed = 0
    try:
        sealed = len(cut_checkpoints())
    except (AuditInvalid, AuditUnavailable) as error:
        logger.warning("the audit could not be sealed or read: %s", error)
        if not reading.is_awaited():
            return Tended(trouble=str(error))
    try:
        return Tended(sealed=sealed, report=read_slice(length))
    except (AuditInvalid, AuditUnavailable) as error:
        logger.warning("the audit could not be sealed or read: %s", error)
        reading.give_up(str(error))
        return Tended(sealed=sealed, trouble=str(error))


# Proving ----------------------------------------------------------------------------------------------------


def prove(seq: int) -> dict[str, Any]:
    """Return what shows that entry `seq` is sealed, to somebody who has a public key and no database.

    Raises:
        NotFound: there is no such entry, or no checkpoint seals it yet, or it was pruned.
    """
    entry = next(entries(after=seq - 1, up_to=seq), None)
    if entry is None:
        raise NotFound(f"there is no entry {seq}; if it was pruned, its segment proves it")
    checkpoint = _sealing(seq)
    hashes = [own for _, _, own in links(after=checkpoint.first_seq - 1, up_to=checkpoint.last_seq,
                                         limit=checkpoint.size)]  # fmt: skip
    index = seq - checkpoint.first_seq
    if len(hashes) != checkpoint.size or merkle_root(hashes) != checkpoint.merkle_root:
        raise AuditInvalid(f"checkpoint {checkpoint.number} seals other entries: verify the audit")
    return {
        "entry": entry.fields(),
        "checkpoint": msgspec.to_builtins(checkpoint),
        "index": index,
        "path": merkle_path(hashes, index),
    }


def _sealing(seq: int) -> Checkpoint:
    row = AuditCheckpoint.objects.filter(first_seq__lte=seq, last_seq__gte=seq).first()
    if row is None:
        raise NotFound(f"entry {seq} is not sealed yet: `cleanup audit checkpoint` does it now")
    return kept(row).checkpoint
