"""What cleanup counts, read from SQL when somebody asks.

Totals are kept in rows, so that they are true whichever process did the work and whichever has died since.
Registering the collector does not touch the database. An area whose disk cannot be asked has no ratio, rather
than a wrong one.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from django.db.models import Count, Max, Min, OuterRef, Subquery, Sum
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cleanup.models import (
    ACTIVE_STATES,
    AuditCheckpoint,
    AuditHead,
    CleanupItem,
    CleanupRun,
    CleanupTotal,
    ItemState,
    StagingArea,
    Upload,
    UploadState,
    VerifierTotal,
)
from cleanup.operations import usage
from cleanup.stores.orphans import counts
from cleanup.stores.sql import database_now


class CleanupCollector(Collector):
    """Figures of the whole site, from SQL."""

    def describe(self) -> list[Metric]:
        """Return nothing: registering must not touch the database."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield every family, each from one query."""
        now = database_now()
        yield from _totals()
        yield _answers()
        yield _runs()
        yield _residue()
        yield _items()
        yield from _trash(now)
        yield _used()
        yield _forecast(now)
        yield from _audit()
        yield _orphans()
        yield _uploads()


def _totals() -> Iterator[Metric]:
    labels = ["area", "policy"]
    files = CounterMetricFamily("staging_files_deleted", "Files purged for good.", labels=labels)
    freed = CounterMetricFamily("staging_bytes_freed", "Bytes freed by purging.", labels=labels)
    trashed = CounterMetricFamily("staging_files_trashed", "Files moved to the trash.", labels=labels)
    restored = CounterMetricFamily(
        "staging_files_restored", "Files brought back from the trash.", labels=labels
    )
    for total in CleanupTotal.objects.all():
        key = [total.area, total.policy]
        files.add_metric(key, total.files_purged)
        freed.add_metric(key, total.bytes_purged)
        trashed.add_metric(key, total.files_trashed)
        restored.add_metric(key, total.files_restored)
    yield from (files, freed, trashed, restored)


def _answers() -> Metric:
    family = CounterMetricFamily(
        "cleanup_verifier_answers", "What verifiers said about files.", labels=["verifier", "answer"]
    )
    for verifier, answer, count in VerifierTotal.objects.values_list("verifier", "answer", "count"):
        family.add_metric([verifier, answer], count)
    return family


def _runs() -> Metric:
    family = CounterMetricFamily("cleanup_runs", "Runs that are over, by how they ended.", labels=["outcome"])
    over = CleanupRun.objects.exclude(state__in=ACTIVE_STATES).order_by()
    for state, count in over.values_list("state").annotate(Count("pk")):
        family.add_metric([state], count)
    return family


def _residue() -> Metric:
    """The residue of each policy's last run that counted one; absent for a policy that never did."""
    family = GaugeMetricFamily(
        "cleanup_residue_files", "Eligible files that the last run left without a reason.", labels=["policy"]
    )
    counted = CleanupRun.objects.filter(residue__isnull=False)
    newest = counted.filter(policy_version__policy=OuterRef("policy_version__policy")).order_by("-created_at")
    last = counted.filter(pk=Subquery(newest.values("pk")[:1])).order_by()
    for policy, residue in last.values_list("policy_version__policy__name", "residue"):
        family.add_metric([policy], float(residue or 0))
    return family


def _items() -> Metric:
    family = GaugeMetricFamily("cleanup_items", "Items by where they stand.", labels=["state"])
    counts = dict(CleanupItem.objects.order_by().values_list("state").annotate(Count("pk")))
    for state in ItemState.values:
        family.add_metric([state], counts.get(state, 0))
    return family


def _trash(now: datetime) -> Iterator[Metric]:
    size = GaugeMetricFamily("cleanup_trash_bytes", "Bytes in the trash.", labels=["area"])
    oldest = GaugeMetricFamily(
        "cleanup_oldest_trash_seconds", "Age of the oldest file in the trash.", labels=["area"]
    )
    in_trash = CleanupItem.objects.filter(state=ItemState.TRASHED).order_by().values("area")
    figures = {row["area"]: row for row in in_trash.annotate(total=Sum("size"), first=Min("trashed_at"))}
    for area in StagingArea.objects.all():
        row = figures.get(area.pk)
        size.add_metric([area.name], float(row["total"] or 0) if row else 0)
        if row and row["first"] is not None:
            oldest.add_metric([area.name], max((now - row["first"]).total_seconds(), 0))
    yield from (size, oldest)


def _orphans() -> Metric:
    """What the last scan of each area saw; absent for an area that was never scanned."""
    family = GaugeMetricFamily(
        "cleanup_orphans",
        "Orphans at the last scan: files without a row, rows without a file.",
        labels=["area", "kind"],
    )
    for area, kind, count in counts():
        family.add_metric([area, kind], count)
    return family


def _uploads() -> Metric:
    family = GaugeMetricFamily("staging_uploads", "Uploads by where they stand.", labels=["state"])
    counts = dict(Upload.objects.order_by().values_list("state").annotate(Count("pk")))
    for state in UploadState.values:
        family.add_metric([state], counts.get(state, 0))
    return family


def _used() -> Metric:
    family = GaugeMetricFamily(
        "cleanup_area_used_ratio", "Share of the area's disk that is in use, 0 to 1.", labels=["area"]
    )
    areas = {area.pk: area for area in StagingArea.objects.filter(enabled=True)}
    for key, disk in usage.disks(areas.values()).items():
        family.add_metric([areas[key].name], disk.percent / 100)
    return family


def _audit() -> Iterator[Metric]:
    """When the chain was read last; absent until it was read once."""
    read = GaugeMetricFamily(
        "cleanup_audit_last_verified_timestamp", "When the whole audit was read last, in seconds since 1970."
    )
    sound = GaugeMetricFamily("cleanup_audit_sound", "1: it was sound then. 0: it was tampered with.")
    unsealed = GaugeMetricFamily("cleanup_audit_unsealed_entries", "Entries that no checkpoint seals yet.")
    head = AuditHead.objects.filter(pk=1).first()
    if head is not None and head.verified_at is not None:
        read.add_metric([], head.verified_at.timestamp())
        sound.add_metric([], float(bool(head.verified_sound)))
    sealed = AuditCheckpoint.objects.aggregate(last=Max("last_seq"))["last"] or 0
    unsealed.add_metric([], max((head.seq if head else 0) - sealed, 0))
    yield from (read, sound, unsealed)


def _forecast(now: datetime) -> Metric:
    """Absent for an area whose disk does not clearly fill up, or of which too little is known."""
    family = GaugeMetricFamily(
        "cleanup_forecast_full_seconds",
        "Time until the area's disk is full, as it went lately.",
        labels=["area"],
    )
    coming = usage.forecasts(now)
    for area in StagingArea.objects.filter(pk__in=coming):
        family.add_metric([area.name], coming[area.pk])
    return family
