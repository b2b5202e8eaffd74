"""Reading the whole audit: every entry, every checkpoint, the head, and the copy outside the database.

The chain is read once, stretch by stretch, in constant memory, while others go on writing. A checkpoint is
judged before the entries that it seals, and compared with its line in the file outside; a stretch whose
entries were removed needs a signed leave, and its segment is read if it is at hand. What comes after the last
checkpoint is read up to the head. The first flaw ends the reading; a write that a crash cut short is a note.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cleanup.engine.audit import GENESIS, AuditEntry, ChainReport, Kind, verify_chain
from cleanup.engine.checkpointlog import Outside
from cleanup.engine.checkpoints import Checkpoint, Flaw, flaw_of_checkpoint, flaw_of_stretch, is_leave
from cleanup.engine.errors import AuditInvalid, AuditUnavailable
from cleanup.engine.segments import check_segment, file_sha256
from cleanup.engine.signing import KeyRing


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A checkpoint as the database keeps it."""

    checkpoint: Checkpoint
    #: The exported file and its SHA-256; empty: never exported.
    segment: str = ""
    segment_sha256: str = ""
    #: Whether its entries were removed.
    pruned: bool = False


class Source(Protocol):
    """Where the chain is. Every call sees what is committed at that moment."""

    def head(self) -> tuple[int, str] | None:
        """Return the number and hash of the last entry, as the head says."""
        ...

    def entries(self, *, after: int | None, up_to: int | None) -> Iterator[AuditEntry]:
        """Yield entries in order; without `after` even those below 1, which no chain has."""
        ...

    def checkpoint(self, number: int) -> Kept | None:
        """Return one checkpoint."""
        ...

    def numbers(self) -> tuple[int, int] | None:
        """Return the least and the greatest number of a checkpoint, None if there is none."""
        ...

    def beyond_head(self) -> int | None:
        """Return the least number of an entry beyond the head, both read at the same moment."""
        ...


@dataclass(slots=True, kw_only=True)
class Inspection:
    """One reading, which may be done in slices: `run` goes on where it stopped."""

    source: Source
    #: Reads the file outside, again each time it is called.
    outside: Callable[[], Outside]
    #: None: no checkpoint was ever made.
    ring: KeyRing | None
    #: Where exported segments are, if somebody has them.
    segments: Path | None = None
    #: Called with the number of the last entry that was read.
    on_progress: Callable[[int], None] | None = None

    #: The checkpoint to be read next, and the one before it.
    number: int = 1
    _after: Checkpoint | None = None
    _found: Outside = field(default_factory=Outside)
    _entries: int = 0
    _notes: list[str] = field(default_factory=list)

    def start(self, number: int = 1) -> None:
        """Read the file outside; begin at checkpoint `number`, or at the first if that is not possible."""
        self._found = self.outside()
        self._after = self._found.checkpoints.get(number - 1)
        self.number = number if self._after else 1

    def run(self, stop: Callable[[], bool] = lambda: False) -> ChainReport | None:
        """Read on; return the report, or None if `stop` came first."""
        flaw = self._flaw_of_numbers()
        while flaw is None:
            kept = self._kept()
            line = self._line(kept)
            if kept is None and line is None:
                flaw = self._flaw_of_lost_rows()
                return self._report(flaw) if flaw else self._tail()
            flaw = self._flaw_of_next(kept, line)
            if flaw is None and stop():
                return None
        return self._report(flaw)

    # One checkpoint ---------------------------------------------------------------------------------------

    @property
    def _seq(self) -> int:
        return self._after.last_seq if self._after else 0

    def _kept(self) -> Kept | None:
        return self.source.checkpoint(self.number)

    def _line(self, kept: Kept | None) -> Checkpoint | None:
        """The line outside. It was written before its row was committed, perhaps after we read the file."""
        line = self._found.checkpoints.get(self.number)
        if line is None and kept is not None:
            self._found = self.outside()
            line = self._found.checkpoints.get(self.number)
        return line

    def _flaw_of_numbers(self) -> Flaw | None:
        numbers = self.source.numbers()
        if numbers is not None and numbers[0] < 1:
            return Flaw(seq=1, kind="checkpoint")
        return None

    def _flaw_of_lost_rows(self) -> Flaw | None:
        """No row and no line of this number: then there is none of a higher one either."""
        if self._found.disorder is not None:
            return self._here("outside")
        numbers = self.source.numbers()
        # A row that was committed a moment ago has all its predecessors, which came before it.
        if numbers is not None and numbers[1] >= self.number and self._kept() is None:
            return self._here("checkpoint")
        return None

    def _flaw_of_next(self, kept: Kept | None, line: Checkpoint | None) -> Flaw | None:
        """Judge checkpoint and stretch; step behind them if they are good."""
        checkpoint = kept.checkpoint if kept else line
        if checkpoint is None or self.ring is None:
            raise AuditInvalid("there are checkpoints, but no public key")
        kind = flaw_of_checkpoint(checkpoint, after=self._after, ring=self.ring)
        if kind is None and kept is None:
            kind = self._kind_of_unfinished()
        elif kind is None and line != checkpoint:
            kind = "outside"
        flaw = self._here(kind) if kind else self._flaw_of_entries(checkpoint, kept)
        if flaw is None:
            self._after, self.number = checkpoint, self.number + 1
        return flaw

    def _kind_of_unfinished(self) -> Kind | None:
        """A line without a row: a crash came between the two, if it is the last one."""
        self._found = self.outside()
        if self.number + 1 in self._found.checkpoints and self._kept() is None:
            return "checkpoint"
        self._notes.append(
            f"checkpoint {self.number} is in the file outside the database only: whoever made it was "
            "interrupted; the next one puts it right"
        )
        return None

    def _flaw_of_entries(self, checkpoint: Checkpoint, kept: Kept | None) -> Flaw | None:
        if kept is not None and kept.pruned:
            return self._flaw_of_pruned(kept)
        prev_hash = self._after.head_hash if self._after else GENESIS
        flaw = flaw_of_stretch(self._stretch(checkpoint), checkpoint, prev_hash=prev_hash)
        if flaw is None:
            self._count(checkpoint)
            return None
        again = self._kept()
        if again is not None and again.pruned:  # they were removed while we read
            return self._flaw_of_pruned(again)
        return flaw

    def _stretch(self, checkpoint: Checkpoint) -> Iterator[AuditEntry]:
        return self.source.entries(after=self._seq or None, up_to=checkpoint.last_seq)

    def _count(self, checkpoint: Checkpoint) -> None:
        self._entries += checkpoint.size
        if self.on_progress is not None:
            self.on_progress(checkpoint.last_seq)

    # A stretch whose entries were removed -----------------------------------------------------------------

    def _flaw_of_pruned(self, kept: Kept) -> Flaw | None:
        number = kept.checkpoint.number
        if number not in self._found.pruned:
            self._found = self.outside()
        leave = self._found.pruned.get(number)
        if leave is None or self.ring is None or not is_leave(leave, ring=self.ring):
            return self._here("pruned")
        if (leave.segment, leave.segment_sha256) != (kept.segment, kept.segment_sha256):
            return self._here("pruned")
        stray = next(self._stretch(kept.checkpoint), None)
        if stray is not None:
            return Flaw(seq=stray.seq, kind="pruned")
        return self._flaw_of_segment(kept)

    def _flaw_of_segment(self, kept: Kept) -> Flaw | None:
        checkpoint = kept.checkpoint
        what = f"stretch {checkpoint.first_seq}-{checkpoint.last_seq} was pruned"
        path = self.segments / kept.segment if self.segments else None
        if path is None or not path.is_file():
            self._notes.append(f"{what}; its segment {kept.segment} is not at hand")
            return None
        try:
            sealed, flaw = check_segment(path)
        except AuditUnavailable as error:
            self._notes.append(f"{what}; its segment cannot be read: {error}")
            return None
        except AuditInvalid:
            return self._here("segment")
        if flaw is not None or sealed != checkpoint or file_sha256(path) != kept.segment_sha256:
            return Flaw(seq=flaw.seq if flaw else checkpoint.first_seq, kind="segment")
        self._count(checkpoint)
        return None

    # The end ----------------------------------------------------------------------------------------------

    def _here(self, kind: Kind) -> Flaw:
        return Flaw(seq=self._seq + 1, kind=kind)

    def _report(self, flaw: Flaw) -> ChainReport:
        by_entry = flaw.kind in ("gap", "hash", "link", "head")
        return ChainReport(
            sound=False, entries=self._entries + flaw.entries, first_bad_seq=flaw.seq, kind=flaw.kind,
            checkpoint=None if by_entry else self.number, checkpoints=self.number - 1,
            notes=tuple(self._notes),
        )  # fmt: skip

    def _tail(self) -> ChainReport:
        """Read what no checkpoint seals, up to the head of this moment, and look beyond it."""
        start = (self._seq, self._after.head_hash) if self._after else (0, GENESIS)
        head = self.source.head()
        report = verify_chain(
            self.source.entries(after=self._seq or None, up_to=head[0] if head else None),
            head=head or (0, GENESIS), start=start,
        )  # fmt: skip
        if not report.sound:
            flaw = Flaw(seq=report.first_bad_seq or 1, kind=report.kind or "head", entries=report.entries)
            return self._report(flaw)
        beyond = self.source.beyond_head()
        if beyond is not None:
            return self._report(Flaw(seq=beyond, kind="head", entries=report.entries))
        if self._found.torn:
            self._notes.append(f"{self._found.torn} lines of the file outside the database are cut short")
        return ChainReport(
            sound=True, entries=self._entries + report.entries, checkpoints=self.number - 1,
            notes=tuple(self._notes),
        )  # fmt: skip
