"""The reading of the whole audit that somebody asks for: who asked, how far it is, what it found.

The reading itself is `auditing`'s. A short chain is read at once; for a long one a worker is woken, which
goes on slice by slice and tells the bus. What was found stays in the head's row until the next reading is
through, so that a chain that was tampered with is red until somebody has read it again and found it sound.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cleanup.engine.audit import ChainReport
from cleanup.models import AuditCheckpoint, AuditHead
from cleanup.operations.runs import send
from cleanup.stores import Actor
from cleanup.stores.feed import tell

#: Entries that are read while somebody waits for the page: about a second.
AT_ONCE = 50_000
#: Where a reading tells how far it is.
TOPIC = "cleanup:audit:verify"
#: Seconds between two events of one reading.
_EVERY = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What is known of the audit as a whole."""

    #: Number of the last entry.
    last: int = 0
    #: When it was read last, and whether it was sound; None: never.
    at: datetime | None = None
    sound: bool | None = None
    #: What that reading found: `entries`, `checkpoints`, `up_to`, `first_bad_seq`, `kind`, `notes`.
    report: dict[str, Any]
    #: Why the last one could not be done; empty: it could.
    trouble: str = ""
    #: Whether one is under way, for whom, and through how much of the chain it is.
    reading: bool = False
    asked_by: str = ""
    percent: int = 0


def standing() -> Standing:
    """Look up what is known; one row and one step along an index."""
    head = AuditHead.objects.filter(pk=1).first()
    if head is None:
        return Standing(report={})
    report = dict(head.verified_report or {})
    last = AuditCheckpoint.objects.order_by("-number").values_list("number", flat=True).first() or 0
    begun = (head.verifying or 1) - 1
    return Standing(
        last=head.seq, at=head.verified_at, sound=head.verified_sound, trouble=report.pop("trouble", ""),
        report=report, reading=head.verifying is not None, asked_by=head.asked_by,
        percent=min(100 * begun // last, 99) if last else 0,
    )  # fmt: skip


def is_short() -> bool:
    """Whether the chain can be read while somebody waits."""
    seq = AuditHead.objects.filter(pk=1).values_list("seq", flat=True).first() or 0
    return seq <= AT_ONCE


def ask(actor: Actor) -> bool:
    """Have a worker read the whole audit from its first entry; False if somebody has asked already.

    A reading by the clock that is under way begins anew: who asks wants to know how it is now.
    """
    head = AuditHead.objects.filter(pk=1, seq__gt=0)
    if not head.filter(asked_by="").update(verifying=1, asked_by=actor.name[:150]):
        return False
    send("cleanup.tasks.audit")
    return True


def is_awaited() -> bool:
    """Whether somebody has asked for a reading that is not through."""
    return AuditHead.objects.filter(pk=1, verifying__isnull=False).exclude(asked_by="").exists()


def teller() -> Callable[[int], None] | None:
    """What tells the bus how far the reading is that somebody asked for; None if nobody did."""
    if not is_awaited():
        return None
    total = AuditHead.objects.values_list("seq", flat=True).get(pk=1)
    told = 0.0

    def on_progress(seq: int) -> None:
        nonlocal told
        if time.monotonic() - told >= _EVERY:
            told = time.monotonic()
            tell(TOPIC, "audit.progress", {"state": "reading", "done": seq, "total": total, "message": ""})

    return on_progress


def note(report: ChainReport, now: datetime) -> None:
    """Keep what a reading has found."""
    head = AuditHead.objects.filter(pk=1)
    last = head.values_list("seq", flat=True).first() or 0
    found = {
        "entries": report.entries, "checkpoints": report.checkpoints, "up_to": last, "kind": report.kind,
        "first_bad_seq": report.first_bad_seq, "checkpoint": report.checkpoint, "notes": list(report.notes),
    }  # fmt: skip
    head.update(
        verified_at=now, verified_sound=report.sound, verifying=None, asked_by="", verified_report=found
    )
    tell(
        TOPIC, "audit.finished",
        {"state": "done" if report.sound else "failed", "done": last, "total": last, "message": said(found)},
    )  # fmt: skip


def give_up(trouble: str) -> None:
    """Keep why a reading that somebody asked for could not be done; what was found before stays."""
    head = AuditHead.objects.filter(pk=1).exclude(asked_by="")
    for row in head:
        report = {**(row.verified_report or {}), "trouble": trouble}
        head.update(asked_by="", verifying=None, verified_report=report)
        tell(TOPIC, "audit.finished", {"state": "failed", "done": 0, "total": row.seq, "message": trouble})


def said(report: dict[str, Any]) -> str:
    """What a reading has found, in one sentence."""
    bad = report.get("first_bad_seq")
    if bad is None:
        return f"Sound: every hash and every link is right, up to entry {report.get('up_to', 0):,}."
    return f"TAMPERED at entry {bad:,}: {report.get('kind')}."
