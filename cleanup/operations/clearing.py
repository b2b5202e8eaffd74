"""May these trashed files be purged? The last questions before bytes are gone, and what becomes of a no.

Holds come first, then the verifiers of the version of the policy that trashed the file, between two looks at
their canaries: both before anything is unlinked. What is kept carries the reason in its row and is asked
about again later, the longer it is overdue the later; a released hold or a saved policy makes that now.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from django.db import transaction

from cleanup.engine.area import AreaHandle
from cleanup.engine.errors import PolicyInvalid, VerifierFailed
from cleanup.engine.plan import ask_together
from cleanup.engine.reasons import Reason
from cleanup.engine.states import ItemState
from cleanup.engine.verify import Answer, Checked, Subject
from cleanup.models import CleanupItem, CleanupRun, StagingArea
from cleanup.operations.areas import active_holds, held_by
from cleanup.operations.outcomes import PurgeReport
from cleanup.operations.policies import policy_of
from cleanup.stores.sql import chunks
from cleanup.stores.waiting import again_at
from cleanup.verifiers import asking

logger = logging.getLogger(__name__)

_DETAIL = 500


@dataclass(slots=True, kw_only=True)
class Cleared:
    """Which items may go, and what the verifiers said about them."""

    free: list[CleanupItem] = field(default_factory=list)
    #: Of those about whom any was asked.
    evidence: dict[UUID, dict[str, str]] = field(default_factory=dict)


class Clearing:
    """The questions of one pass over the trash. A verifier that failed its canaries is not asked again."""

    def __init__(self, *, now: datetime, by_person: bool = False) -> None:
        """Begin a pass at `now`, the moment against which things are due.

        Args:
            now: with a zone.
            by_person: somebody answers for the purge, with a reason: items of which nobody knows by which
                policy they went may go, too. Else they would stay for ever.
        """
        self.now = now
        self._by_person = by_person
        self._distrusted: dict[int, str] = {}

    def clear(
        self, rows: Sequence[CleanupItem], area: StagingArea, handle: AreaHandle, report: PurgeReport
    ) -> Cleared:
        """Return which of `rows` may go, in their order; the others are counted in `report` and put off."""
        by_run: dict[UUID | None, list[CleanupItem]] = defaultdict(list)
        for row in self.not_held(rows, area, report):
            by_run[row.run_id].append(row)
        by_version: dict[int | None, list[CleanupItem]] = defaultdict(list)
        for of_run in by_run.values():
            run = of_run[0].run
            by_version[run.policy_version_id if run is not None else None] += of_run
        # Adopted from the trash after the loss of the database: nobody knows whom to ask.
        adopted = by_version.pop(None, [])
        cleared = Cleared(free=adopted if self._by_person else [])
        if not self._by_person:
            self._keep(report, Reason.UNVERIFIED, [(row, "no run is known") for row in adopted])
        for together in by_version.values():
            self._ask(together, area, handle, report, cleared)
        if len(by_run) > 1 or len(cleared.free) < len(rows):
            passed = {row.id for row in cleared.free}
            cleared.free = [row for row in rows if row.id in passed]
        return cleared

    def not_held(
        self, rows: Sequence[CleanupItem], area: StagingArea, report: PurgeReport
    ) -> list[CleanupItem]:
        """Return those of `rows` that no hold keeps."""
        holds = active_holds(area.pk, now=self.now)
        if not holds:
            return list(rows)
        found = [(row, held_by(holds, [member["path"] for member in row.members])) for row in rows]
        ends = min((one.until for one in holds if one.until is not None), default=None)
        kept = [(row, pattern) for row, pattern in found if pattern is not None]
        self._keep(report, Reason.HELD, kept, until=ends)
        return [row for row, pattern in found if pattern is None]

    def _ask(
        self,
        rows: Sequence[CleanupItem],
        area: StagingArea,
        handle: AreaHandle,
        report: PurgeReport,
        cleared: Cleared,
    ) -> None:
        """Ask about rows of one version of a policy; add those that pass to `cleared`, with the evidence."""
        run = rows[0].run
        if run is None:
            return
        try:
            checked = self._checked(rows, run, area, handle)
        except (PolicyInvalid, VerifierFailed) as error:
            self._distrust(run, error, report)
            self._keep(report, Reason.UNVERIFIED, [(row, str(error)) for row in rows])
            return
        answered = list(zip(rows, checked, strict=True))
        for answer, reason in (
            (Answer.FAIL, Reason.VERIFIER_FAILED),
            (Answer.UNKNOWN, Reason.UNVERIFIED),
        ):
            kept = [(row, _said(one)) for row, one in answered if one.answer is answer]
            self._keep(report, reason, kept)
        passed = [(row, one) for row, one in answered if one.answer is Answer.PASS]
        cleared.free += [row for row, _ in passed]
        cleared.evidence.update({row.id: dict(one.evidence) for row, one in passed if one.evidence})

    def _checked(
        self, rows: Sequence[CleanupItem], run: CleanupRun, area: StagingArea, handle: AreaHandle
    ) -> list[Checked]:
        known = self._distrusted.get(run.policy_version_id)
        if known is not None:
            raise VerifierFailed(known)
        policy = policy_of(run.policy_version)
        if not policy.verifiers:
            return [Checked(Answer.PASS)] * len(rows)
        with asking(policy.verifiers, policy=policy.name, area=handle) as ask:
            return ask_together(ask, [_subjects(row, area) for row in rows])

    def _distrust(self, run: CleanupRun, error: Exception, report: PurgeReport) -> None:
        version = run.policy_version_id
        if version not in self._distrusted:
            self._distrusted[version] = str(error)
            report.errors.append(f"{run.policy_version.policy.name}: {error}")
            logger.warning("nothing of %s is purged: %s", run.policy_version.policy.name, error)

    def _keep(
        self,
        report: PurgeReport,
        reason: Reason,
        kept: Sequence[tuple[CleanupItem, str]],
        *,
        until: datetime | None = None,
    ) -> None:
        """Count kept items, write into their rows why they stay, and put them off."""
        if not kept:
            return
        report.keep(str(reason), sum(len(row.members) for row, _ in kept), sum(row.size for row, _ in kept))
        for row, detail in kept:
            row.detail = f"{reason}: {detail}"[:_DETAIL]
            row.ask_again_at = again_at(self.now, purge_after=row.purge_after, until=until)
        _write([row for row, _ in kept])


def _write(rows: Sequence[CleanupItem]) -> None:
    """Write why rows stay, but for those that somebody has taken out of the trash or is about to."""
    with transaction.atomic():
        free = set[UUID]()
        for part in chunks([row.pk for row in rows]):
            found = CleanupItem.objects.filter(pk__in=part, state=ItemState.TRASHED).order_by()
            # Waiting for who holds some of them could be waiting for each other.
            free.update(found.select_for_update(skip_locked=True).values_list("pk", flat=True))
        still = [row for row in rows if row.pk in free]
        CleanupItem.objects.bulk_update(still, ["detail", "ask_again_at"], batch_size=200)


def _said(checked: Checked) -> str:
    return "; ".join(f"{name} {text}" for name, text in checked.evidence.items())


def _subjects(row: CleanupItem, area: StagingArea) -> list[Subject]:
    """Every member of a bundle is asked about; a result with its metadata is one."""
    files = [(one["path"], one["size"], one["mtime_ns"]) for one in row.members]
    if row.reason == Reason.EXPIRED or len(files) < 2:
        files = [(row.path, row.size, max((mtime_ns for _, _, mtime_ns in files), default=None))]
    return [
        Subject(
            path=path,
            task_id=row.task_id or None,
            size=size,
            area=str(area.uuid),
            mtime_ns=mtime_ns,
            trashed_at=row.trashed_at,
        )
        for path, size, mtime_ns in files
    ]


def count_put_off(rows: Iterable[CleanupItem], report: PurgeReport) -> None:
    """Count items that are put off as kept, by the reason in their rows."""
    for row in rows:
        report.keep(row.detail.partition(":")[0], len(row.members), row.size)
