"""Orphans of an area: looked for, remembered, and handed on once they were seen twice.

    look       the files and the registry are compared; nothing is written
    sight      the same, and what was seen is kept as the sightings of this moment; every run begins with it
    confirmed  files that were orphans at two sightings, far enough apart: candidates of the rule `orphan`
    retire     rows that were, as the last step of a run: soft-deleted, with audit entries

A look that finds too many orphans is refused and remembers nothing. Files that a person has just brought back
are no candidates, and `registered` is asked again when they are about to be moved: a row may have come.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import transaction

from cleanup.conf import conf
from cleanup.engine.area import AreaHandle
from cleanup.engine.audit import AuditRecord
from cleanup.engine.errors import PolicyInvalid
from cleanup.engine.listing import Beat, Listing, Looker
from cleanup.engine.names import escape, is_below, patterns, unescape
from cleanup.engine.orphans import Comparison, Sighting, refusal
from cleanup.engine.policy import Candidate, Policy, Stat
from cleanup.engine.reasons import Reason
from cleanup.engine.scan import OnSkip
from cleanup.models import CleanupItem, CleanupRun, ItemState, StagedFile, StagingArea
from cleanup.operations.areas import active_holds, held_by
from cleanup.operations.outcomes import OperationRefused
from cleanup.operations.runs import actor_of
from cleanup.stores import Actor, DatabaseAuditSink, record
from cleanup.stores.items import version_label
from cleanup.stores.leases import advance
from cleanup.stores.orphans import Pile, replace, scanned, stored
from cleanup.stores.registry import FILE_MISSING, keys_of, living_pages, registered, revive
from cleanup.stores.sql import IN_LIST, chunks, database_now

__all__ = ["Confirmed", "Look", "TooManyOrphans", "confirmed", "look", "registered", "retire", "sight"]


class TooManyOrphans(OperationRefused):
    """Most likely the registry or the mount is wrong."""

    code = "too_many_orphans"


@dataclass(slots=True, kw_only=True)
class Look:
    """What one comparison of an area with its registry has found."""

    #: In the area, and in the registry.
    files: int
    rows: int
    #: Files without a row, and rows without a file, each since its first sighting.
    without_row: Pile
    without_file: Pile

    def facts(self) -> dict[str, int]:
        """The figures, for the row of a run."""
        return {
            "files": self.files, "rows": self.rows,
            "orphan_files": self.without_row.count, "orphan_rows": self.without_file.count,
        }  # fmt: skip


def look(handle: AreaHandle, area_id: int, *, now: datetime, beat: Beat | None = None) -> Look:
    """Compare an area's files with its registry. Nothing is written.

    A million files against a million rows take two seconds, and the memory of the names in one directory.

    Args:
        handle: of the area.
        area_id: of its row.
        now: since when what is met for the first time is an orphan.
        beat: called every few thousand files with their number; what it raises ends the look.

    Raises:
        TooManyOrphans: most likely they are none.
        OSError: the area cannot be read.
    """
    listing = Listing(handle, beat=beat)
    comparison = Comparison(listing, living_pages(area_id))
    without_row, without_file = Pile(area_id, "file"), Pile(area_id, "row")
    gone = list[str]()
    with Looker(handle) as looker:
        for unknown, missing in comparison.parts():
            without_row.add([*_seen_files(looker, unknown, now)])
            gone += [path for path in missing if not listing.hides(path)]
            if len(gone) >= IN_LIST:
                without_file.add([*_seen_rows(area_id, gone, now)])
                gone = []
        without_file.add([*_seen_rows(area_id, gone, now)])
    found = Look(
        files=comparison.files, rows=comparison.rows, without_row=without_row, without_file=without_file
    )
    _refuse_too_many(found)
    without_row.close(total=found.files)
    without_file.close(total=found.rows)
    return found


def _refuse_too_many(found: Look) -> None:
    why = refusal(
        files=found.files, rows=found.rows,
        without_row=found.without_row.count, without_file=found.without_file.count,
    )  # fmt: skip
    if why is not None:
        raise TooManyOrphans(why)


def _seen_files(looker: Looker, paths: Iterable[str], now: datetime) -> Iterator[Sighting]:
    for path in paths:
        try:
            found = looker.stat(unescape(path))
        except OSError:
            continue
        yield Sighting(path, (found.inode, found.size, found.mtime_ns), now)


def _seen_rows(area_id: int, paths: Sequence[str], now: datetime) -> Iterator[Sighting]:
    """Yield the rows of missing files; one whose path no file can have says nothing about files."""
    for path, pk in keys_of(area_id, [path for path in paths if _is_plain(path)]):
        yield Sighting(path, (pk,), now)


def _is_plain(path: str) -> bool:
    try:
        return is_below(unescape(path)) and escape(unescape(path)) == path
    except PolicyInvalid:
        return False


def sight(
    handle: AreaHandle, area: StagingArea, *, now: datetime, actor: Actor, beat: Beat | None = None
) -> Look:
    """Look, and keep what was seen in place of what the scan before saw.

    Rows that were soft-deleted because their file was missing come back to life where it is there again.

    Raises:
        TooManyOrphans, OSError: as `look`; what the scan before saw is kept.
    """
    found = look(handle, area.pk, now=now, beat=beat)
    if StagedFile.all_objects.filter(area=area, delete_reason=FILE_MISSING).exists() and _revive(
        area, found.without_row, actor, now
    ):
        found = look(handle, area.pk, now=now, beat=beat)
    replace(area.pk, [found.without_row, found.without_file], now=now)
    return found


def _revive(area: StagingArea, without_row: Iterable[Sighting], actor: Actor, now: datetime) -> int:
    with transaction.atomic():
        revived = sum(revive(area.pk, [one.path for one in part]) for part in chunks(without_row))
        if revived:
            entry = record(actor, "rows_revived", now=now, area=area.name, evidence={"rows": revived})
            DatabaseAuditSink().write([entry])
    return revived


@dataclass(slots=True, kw_only=True)
class Confirmed:
    """The files of an area that were seen twice without a row, as candidates. Iterate over it once."""

    #: Files in the area, orphans or not: what a brake on their share compares with.
    files: int
    #: At `now`, sorted.
    sightings: Iterable[Sighting]
    now: datetime
    handle: AreaHandle
    area_id: int
    policy: Policy
    on_skip: OnSkip | None = None

    def __iter__(self) -> Iterator[Candidate]:
        """Yield those that are still the file that was seen, ascending."""
        gap = conf().orphan_sighting_gap
        lately = _restored_since(self.area_id, self.now - max(gap, self.policy.age or timedelta(0)))
        with Looker(self.handle, births="b" in self.policy.age_by) as looker:
            for one in self.sightings:
                path = unescape(one.path)
                if not one.confirmed(now=self.now, gap=gap):
                    self._skip(path, Reason.SEEN_ONCE, f"since {one.first_seen.isoformat()}")
                elif one.identity[0] in lately:
                    self._skip(path, Reason.RESTORED_LATELY)
                elif (found := self._as_seen(looker, path, one)) is not None:
                    yield Candidate(path, found)

    def _as_seen(self, looker: Looker, path: bytes, one: Sighting) -> Stat | None:
        """Look again: None if it is another file by now, or a mount point."""
        try:
            found = looker.stat(path)
        except OSError:
            return None
        same = (found.inode, found.size, found.mtime_ns) == one.identity
        return found if same and found.device == self.handle.device else None

    def _skip(self, path: bytes, reason: Reason, detail: str = "") -> None:
        if self.on_skip is not None:
            self.on_skip(path, reason, detail)


def confirmed(
    handle: AreaHandle,
    area_id: int,
    policy: Policy,
    *,
    now: datetime,
    on_skip: OnSkip | None = None,
    beat: Beat | None = None,
) -> Confirmed:
    """Return the files that have no row now and had none at a sighting long enough ago. Nothing is written.

    If `sight` was called with the same `now`, what it has stored is used; else there is a look.

    Args:
        handle: of the area.
        area_id: of its row.
        policy: with the least age, which is also how long a restored file is left alone.
        now: the moment of the plan.
        on_skip: told of orphans that are no candidates yet.
        beat: as for `look`.

    Raises:
        TooManyOrphans, OSError: as `look`.
    """
    kept = scanned(area_id, "file")
    if kept is not None and kept.seen_at == now:
        files, sightings = kept.total, stored(area_id, "file")
    else:
        found = look(handle, area_id, now=now, beat=beat)
        files, sightings = found.files, iter(found.without_row)
    return Confirmed(
        files=files, sightings=sightings, now=now, handle=handle, area_id=area_id, policy=policy,
        on_skip=on_skip,
    )  # fmt: skip


def _restored_since(area_id: int, since: datetime) -> set[int]:
    """The inodes of files that were brought back from the trash: whatever name they have now."""
    rows = CleanupItem.objects.filter(area_id=area_id, state=ItemState.RESTORED, changed_at__gt=since)
    members = rows.order_by().values_list("members", flat=True).iterator(chunk_size=1_000)
    return {member["inode"] for one in members for member in one}


# Rows without a file


def due_rows(area_id: int, policy: Policy, *, now: datetime) -> Iterator[Sighting]:
    """Yield the rows whose file was missing at both sightings and that the policy is about."""
    kept = scanned(area_id, "row")
    if kept is None:
        return
    gap, now = conf().orphan_sighting_gap, min(now, kept.seen_at)
    including = patterns(policy.include) if policy.include else None
    excluding = patterns(policy.exclude, subtree=True)
    for one in stored(area_id, "row"):
        if not one.confirmed(now=now, gap=gap) or excluding.match(one.path) is not None:
            continue
        if including is None or including.match(one.path) is not None:
            yield one


def retire(run: CleanupRun, handle: AreaHandle, policy: Policy, *, token: int, beat: Beat) -> dict[str, int]:
    """Soft-delete the rows whose file is missing, batch by batch, each with its audit entry; count them.

    A row is looked at again first: it goes only if its file is still missing, it is older than the policy's
    age, and no hold is on its path. More rows than the policy's brake allows are left to a person.

    Raises:
        LeaseLost: the run has passed to another worker; what was committed stays so.
        RunStopped: as `beat` raises it, between two batches.
    """
    area, now = run.tree(), database_now()
    due = list(due_rows(area.pk, policy, now=now))
    if policy.max_files is not None and len(due) > policy.max_files:
        return {"rows_retired": 0, "rows_above_brake": len(due)}
    retired = 0
    for part in chunks(due, conf().batch_size):
        beat(run.planned_files)
        retired += _retire_part(run, handle, policy, part, token=token, now=now)
    return {"rows_retired": retired, "rows_left": len(due) - retired}


def _retire_part(
    run: CleanupRun,
    handle: AreaHandle,
    policy: Policy,
    part: Sequence[Sighting],
    *,
    token: int,
    now: datetime,
) -> int:
    area = run.tree()
    with Looker(handle) as looker, transaction.atomic():
        advance(run.pk, token, now=now)
        holds = active_holds(area.pk, now=now)
        gone = [one for one in part if looker.is_gone(unescape(one.path)) and not held_by(holds, [one.path])]
        rows = _lock_rows(area.pk, gone, before=now - (policy.age or timedelta(0)))
        StagedFile.objects.filter(pk__in=[row.pk for row in rows]).update(
            deleted_at=now, purge_after=now + policy.grace_period, delete_reason=FILE_MISSING
        )
        DatabaseAuditSink().write([_retired_entry(run, row, now) for row in rows])
    return len(rows)


def _lock_rows(area_id: int, sightings: Sequence[Sighting], *, before: datetime) -> list[StagedFile]:
    """Lock the living rows of sightings that are as they were seen, and were made `before`."""
    paths = {one.identity[0]: one.path for one in sightings}
    found = list[StagedFile]()
    for part in chunks(paths):
        rows = StagedFile.objects.select_for_update().filter(
            pk__in=part, area_id=area_id, created_at__lte=before
        )
        found += [row for row in rows.order_by("pk") if paths[row.pk] == row.path]
    return found


def _retired_entry(run: CleanupRun, row: StagedFile, now: datetime) -> AuditRecord:
    return record(
        actor_of(run), "row_soft_deleted", now=now, run=run.pk, item=f"cleanup.StagedFile/{row.pk}",
        area=run.scope, path=row.path, size=row.size, policy_version=version_label(run.policy_version),
        reason=str(Reason.ORPHANED), evidence={"why": FILE_MISSING},
    )  # fmt: skip
