"""Checks of cleanup: areas and their disks, the audit and its key, verifiers, plans that wait for a person.

None of them walks a tree or reads the audit itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from django.db import DatabaseError
from django.db.models import Max

from bus.cells import span
from cleanup import operations
from cleanup.conf import conf
from cleanup.engine.area import marker_uuid
from cleanup.engine.errors import AreaRefused, AuditInvalid, AuditUnavailable
from cleanup.engine.signing import load_signer, read_ring, ring_file
from cleanup.models import AuditCheckpoint, AuditEntry, AuditHead, CleanupRun, RunState, StagingArea
from cleanup.operations import usage
from cleanup.operations.auditing import INTERVAL, READ_EVERY
from cleanup.stores.sql import database_now
from xnai_site.checkup.finding import FAILED, OK, Finding, failed, first_line, number, ok, warning

#: What is due by the clock may be late by so much before it is told.
_SLACK = timedelta(hours=1)
#: Below this share of free inodes a disk is as good as full, however many bytes are free.
_LEAST_INODES_PERCENT = 5


def staging() -> Finding:
    """Every enabled area must be there and carry its own marker."""
    try:
        areas = list(StagingArea.objects.filter(enabled=True))
    except DatabaseError as error:
        return Finding(name="staging", state=FAILED, detail=first_line(error))
    wrong = [text for area in areas if (text := _area_trouble(area))]
    if wrong:
        return Finding(
            name="staging",
            state=FAILED,
            detail="; ".join(wrong),
            mend="Mount or restore the tree, or register it anew with `manage.py cleanup areas add`. "
            "Until then nothing in it is touched.",
        )
    return Finding(name="staging", state=OK, detail=f"{len(areas)} areas carry their markers")


def _area_trouble(area: StagingArea) -> str:
    try:
        found = marker_uuid(area.path)
    except AreaRefused as error:
        return f"{area.name}: {error}"
    if found is None:
        return f"{area.name}: {area.path} is missing or has no marker"
    return "" if found == str(area.uuid) else f"{area.name}: {area.path} carries the marker of another area"


def trash_folders() -> Finding:
    """A trash on another disk than its area could not be filled by renaming."""
    try:
        wrong = [text for area in _enabled() if (text := _trash_trouble(area))]
    except DatabaseError as error:
        return failed("trash folders", first_line(error))
    if wrong:
        return failed(
            "trash folders",
            "; ".join(wrong),
            "Unmount what is mounted over `.trash`, or give this user the right to write there.",
        )
    return ok("trash folders", "on the disks of their areas")


def _enabled() -> Iterable[StagingArea]:
    return StagingArea.objects.filter(enabled=True)


def _trash_trouble(area: StagingArea) -> str:
    trash = os.path.join(area.path, ".trash")
    try:
        here, there = os.stat(area.path), os.lstat(trash)
    except OSError:
        return ""  # no trash yet, or no area, of which `staging` speaks
    if here.st_dev != there.st_dev:
        return f"{area.name}: {trash} is on another disk"
    return "" if os.access(trash, os.W_OK | os.X_OK) else f"{area.name}: {trash} cannot be written"


def area_disks() -> Finding:
    """Disks of areas above their high mark, or out of inodes."""
    try:
        areas = [*_enabled()]
    except DatabaseError as error:
        return failed("disks of areas", first_line(error))
    full = [text for area in areas if (text := _fullness(area))]
    if full:
        return warning(
            "disks of areas",
            "; ".join(full),
            "`manage.py cleanup report` says what there is; a policy of the rule watermark, or a shorter age "
            "or grace period, gives space back.",
        )
    return ok("disks of areas", "below their high marks")


def _fullness(area: StagingArea) -> str:
    try:
        disk, figures = usage.disk_of(area), os.statvfs(area.path)
    except (OSError, AreaRefused):
        return ""  # `staging` says so
    if disk.percent > area.high_watermark:
        return f"{area.name}: {disk.percent:.0f} % in use, the high mark is {area.high_watermark} %"
    if figures.f_files and figures.f_favail * 100 < figures.f_files * _LEAST_INODES_PERCENT:
        return f"{area.name}: {figures.f_favail:,} inodes are left on its disk"
    return ""


# The audit --------------------------------------------------------------------------------------------------


def audit() -> Finding:
    """Whether the chain was read lately and found sound, and whether its end is sealed."""
    try:
        head, now = AuditHead.objects.filter(pk=1).first(), database_now()
        if head is None or not head.seq:
            return ok("audit", "no entries yet")
        return _read(head, now) or _sealed(head, now)
    except DatabaseError as error:
        return failed("audit", first_line(error))


def _read(head: AuditHead, now: datetime) -> Finding | None:
    """What is wrong with the last reading."""
    at, mend = (
        head.verified_at,
        "Press Verify on the page of the audit, or run `manage.py cleanup audit verify`.",
    )
    if at is not None and head.verified_sound is False:
        return failed(
            "audit",
            f"tampered with: not what was written, as found {span(now - at)} ago",
            "Run `manage.py cleanup audit verify` to see where. Keep the database and the file of "
            "checkpoints as they are, and compare them with a copy from elsewhere: docs/audit.md.",
        )
    if at is None:
        return _never_read(head, now, mend)
    if now - at > READ_EVERY + _SLACK:
        return warning("audit", f"not verified for {span(now - at)}", mend)
    return None


def _never_read(head: AuditHead, now: datetime, mend: str) -> Finding:
    """A worker reads a chain for the first time a minute after it begins: before that nothing is late."""
    first = AuditEntry.objects.order_by("seq").values_list("at_us", flat=True).first()
    age = timedelta(0) if first is None else now - datetime.fromtimestamp(first / 1e6, UTC)
    entries = number(head.seq, "entry", "entries")
    if age > _SLACK:
        return warning("audit", f"{entries}, never verified", mend)
    return ok("audit", f"{entries}, the oldest {span(age)} old: a worker verifies them within minutes")


def _sealed(head: AuditHead, now: datetime) -> Finding:
    last = AuditCheckpoint.objects.aggregate(last=Max("last_seq"))["last"] or 0
    first = AuditEntry.objects.filter(seq=last + 1).values_list("at_us", flat=True).first()
    waits = timedelta(0) if first is None else now - datetime.fromtimestamp(first / 1e6, UTC)
    if waits > INTERVAL + _SLACK:
        return warning(
            "audit",
            f"{number(head.seq - last, 'entry', 'entries')} unsealed for {span(waits)}",
            "Does a worker run, and can it write the key and the file of checkpoints? `manage.py cleanup "
            "audit checkpoint` seals them now, or says why not.",
        )
    read = "" if head.verified_at is None else f", verified {span(now - head.verified_at)} ago"
    return ok("audit", f"{number(head.seq, 'entry', 'entries')}{read}")


def signing_key() -> Finding:
    """Whether what signs checkpoints is here, whole, and among the keys that are trusted."""
    name, path = "signing key", conf().audit_key_file
    try:
        used = AuditCheckpoint.objects.exclude(key_id="").exists()
    except DatabaseError as error:
        return failed(name, first_line(error))
    if not used:
        return ok(name, "drawn with the first checkpoint")
    try:
        ring, signer = read_ring(ring_file(path)), load_signer(path)
    except (AuditUnavailable, AuditInvalid) as error:
        return failed(
            name,
            first_line(error),
            f"Bring {path} and {ring_file(path).name} back from a copy; only if the key is lost for good, "
            "`manage.py cleanup audit keys` makes the next one.",
        )
    if signer.key_id not in {key.key_id for key in ring.keys}:
        return failed(name, f"{path} is not among the trusted keys", "Bring both files back from one copy.")
    return ok(name, f"{signer.key_id}, {number(len(ring.keys), 'trusted key')}")


# What a person has to look at -------------------------------------------------------------------------------


def canaries() -> Finding:
    """Whether every verifier that policies use answered its canaries rightly when it was asked last."""
    try:
        wrong = operations.failed_checks()
    except DatabaseError as error:
        return failed("verifiers", first_line(error))
    if wrong:
        said = "; ".join(f"{check.verifier}: {check.detail or 'not as it must be'}" for check in wrong[:3])
        return failed(
            "verifiers",
            f"canary failed: {said}{' …' if len(wrong) > 3 else ''}",
            "Until they answer rightly, nothing that they must agree to is trashed. Mend whom they ask, then "
            "Test now, or `manage.py cleanup verifiers test`.",
        )
    return ok("verifiers", "their canaries were answered rightly, or none was asked yet")


def approvals() -> Finding:
    """Plans above a brake wait for a person."""
    try:
        waiting = CleanupRun.objects.filter(state=RunState.AWAITING_APPROVAL)
        names = [*waiting.order_by("created_at").values_list("policy_version__policy__name", flat=True)[:4]]
    except DatabaseError as error:
        return failed("plans", first_line(error))
    if not names:
        return ok("plans", "none waits for approval")
    shown = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
    return warning(
        "plans",
        f"{'a plan waits' if len(names) == 1 else 'plans wait'} for approval: {shown}",
        "Look at what it would move, then approve or reject it: `manage.py cleanup approve RUN --files N`.",
    )
