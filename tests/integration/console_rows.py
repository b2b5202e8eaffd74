"""Rows for the tests of the console: at least one of everything that it shows, and people of every role."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.apps import apps
from django.contrib.auth.models import Group, User
from django.core import serializers
from django.utils import timezone
from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask

from bus import runs
from bus.access.revocation import revoke
from bus.access.tokens import create_api_key
from bus.models import ActiveConnection, Agent, ApiKey, ConnectionSession, Cursor, ServerInstance, Topic
from bus.publishing import publish
from cleanup import operations
from cleanup.engine.orphans import Sighting, encode_sightings
from cleanup.models import (
    AuditCheckpoint,
    AuditEntry,
    CleanupRun,
    OrderVerb,
    OrphanBatch,
    PolicyPreview,
    RetentionPolicy,
    Source,
    StagedFile,
    Upload,
    UploadState,
    UsageSample,
    VerifierCheck,
)
from cleanup.operations import orders, previews
from cleanup.staging import sources
from cleanup.staging.content import Incoming, stage_bytes
from tests.retention import ANNA, DAY, Staging, write
from xnai_site.roles import ROLES, ensure_roles

#: Apps whose rows a page of the console could change.
WATCHED = ("bus", "cleanup", "auth", "django_celery_beat")


def people() -> dict[str, User]:
    """One person of each role, and one of staff without a role."""
    ensure_roles()
    # Without passwords: they would cost a tenth of a second each, and `force_login` needs none.
    made = {role: User.objects.create_user(role, is_staff=True) for role in ROLES}
    for role, person in made.items():
        person.groups.add(Group.objects.get(name=role))
    made["nobody"] = User.objects.create_user("nobody", is_staff=True)
    return made


def connection(agent: str = "crawler", **fields: Any) -> ActiveConnection:
    """A connection that a living server holds."""
    now = timezone.now()
    server, _ = ServerInstance.objects.get_or_create(
        name="web-1",
        defaults={
            "hostname": "node-a",
            "pid": 7,
            "started_at": now,
            "lease_until": now + DAY,
            "layer_up": True,
        },
    )
    given = {
        "client_id": f"00000000-0000-4000-8000-{ActiveConnection.objects.count():012}",
        "server_instance": server,
        "agent_id": agent,
        "generation": 1,
        "transport": "centrifugo",
        "connected_at": now,
        "last_heartbeat": now,
        "last_activity": now,
        "topics": [f"agent:{agent}", "broadcast"],
    }
    return ActiveConnection.objects.create(**{**given, **fields})


def bus_rows() -> None:
    """One of everything of the bus."""
    row = connection()
    Agent.objects.create(agent_id="crawler", generation=1, connects=1)
    ConnectionSession.objects.create(
        client_id=row.client_id, agent_id="crawler", server_instance="web-1", transport="plain",
        connected_at=row.connected_at, disconnected_at=timezone.now(), code=4501, reason="replaced",
    )  # fmt: skip
    for number in range(3):
        publish("broadcast", "agent.message", {"text": f"hello {number}"})
    publish("agent:crawler", "agent.message", {"text": "work"})
    Cursor.objects.create(consumer="crawler", topic=Topic.objects.get(name="broadcast"), offset=2)
    create_api_key("importer", scopes=["publish"])
    runs.take("task:nightly")
    revoke(user_id="42", note="lost a laptop")


def schedule_rows() -> None:
    """A periodic task with its interval."""
    interval = IntervalSchedule.objects.create(every=30, period="seconds")
    CrontabSchedule.objects.create(minute="0", hour="3")
    PeriodicTask.objects.create(name="cleanup: tick", task="cleanup.tasks.tick", interval=interval)


def cleanup_rows(root: Path) -> Staging:
    """An area with files, a run that is done, one that waits for approval, a hold."""
    staging = Staging(root, "staged")
    staging.fill(4)
    policy = staging.policy("old")
    staging.run(policy)
    staging.fill(3)
    write(staging.root / "young", age=timedelta(hours=1))
    policy.max_files = 1
    operations.save_policy(policy, ANNA)
    staging.run(policy)
    operations.hold(staging.area, "legal/**", None, "asked for", ANNA)
    orders.order(OrderVerb.EXTEND, {"area": "staged"}, actor=ANNA, by=DAY)
    staging_rows(staging)
    preview_row(policy)
    registry_rows(staging)
    source_rows(staging)
    assert set(CleanupRun.objects.values_list("state", flat=True)) == {"done", "awaiting_approval"}
    return staging


def verifier_rows() -> None:
    """A check of a verifier by hand, and one of a run."""
    for asked_by, sound in (("operator", True), ("policy old", False)):
        VerifierCheck.objects.create(
            verifier="redis_task:canary_present=alive",
            sound=sound,
            detail="" if sound else "its canary alive must pass, and it said fail",
            milliseconds=4.2,
            asked_by=asked_by,
        )


def registry_rows(staging: Staging) -> None:
    """A staged file, a row that is soft-deleted, an orphan of each kind, and samples of the disk."""
    row = StagedFile.objects.create(area=staging.area, path="young", size=7, uploader="ben", task_id="t1")
    gone = StagedFile.objects.create(area=staging.area, path="gone", size=7)
    gone.delete()
    now = timezone.now()
    seen = {"file": Sighting("d0/f0", (1, 7, 1), now - 2 * DAY), "row": Sighting("young", (row.pk,), now)}
    for kind, sighting in seen.items():
        OrphanBatch.objects.create(
            area=staging.area, kind=kind, number=0, items=1, total=4, seen_at=now,
            body=encode_sightings([sighting]),
        )  # fmt: skip
    for days in (2, 3):
        at = now.replace(second=0, microsecond=0) - days * DAY
        UsageSample.objects.create(area=staging.area, at=at, used_bytes=days * 10**9, total_bytes=10**10)


def staging_rows(staging: Staging) -> None:
    """The same bytes staged twice, a file that was made of them, and an upload in each state."""
    raw, made = b'{"pages": 3}', b"three pages"
    first, _ = (
        stage_bytes(staging.area, raw, Incoming(name=name, uploader="key:importer", task_id="t2"), ANNA)
        for name in ("report.json", "report of the second quarter.json")
    )
    stage_bytes(staging.area, made, Incoming(name="report.txt", task_id="t2", origin=first.pk), ANNA)
    for number, state in enumerate(UploadState):
        is_done = state == UploadState.DONE
        Upload.objects.create(
            area=staging.area, name=f"{state}.json", size=12, offset=12 if is_done else number, state=state,
            uploader="key:importer", staged_file=first.pk if is_done else None,
            detail="a .json file begins with JSON in UTF-8; this one does not" if state == "failed" else "",
            expires_at=timezone.now() + DAY,
        )  # fmt: skip


def source_rows(staging: Staging) -> None:
    """A source that waits, one that fails, and one that was removed."""
    for name in ("prices", "weather", "former"):
        sources.add(name, f"https://data.example/{name}.csv", staging.area, ANNA)
    Source.objects.filter(name="weather").update(failures=3, last_error="the server answered 503")
    sources.remove(sources.find("former"), ANNA)


def preview_row(policy: RetentionPolicy) -> PolicyPreview:
    """A preview of a draft that would keep its files a day longer."""
    draft = RetentionPolicy.objects.get(pk=policy.pk)
    draft.age = "3d"
    made = previews.order_preview(draft, ANNA, is_draft=True)
    previews.carry_out_preview(made.pk)
    return made


def checkpoint_row() -> None:
    """A checkpoint to look at. Not in `everything`: a check of the audit would rightly find it false."""
    last = AuditEntry.objects.latest("seq")
    AuditCheckpoint.objects.create(
        number=1,
        first_seq=1,
        last_seq=last.seq,
        merkle_root="0" * 64,
        head_hash=last.hash,
        prev_hash="0" * 64,
        at_us=last.at_us,
        hash="1" * 64,
    )


def everything(root: Path) -> Staging:
    """All of the above."""
    bus_rows()
    schedule_rows()
    verifier_rows()
    return cleanup_rows(root)


def rows() -> dict[str, str]:
    """Every row of the watched apps as text, to see whether anything has changed."""
    found = {}
    for app in WATCHED:
        for model in apps.get_app_config(app).get_models():
            label = model._meta.label
            objects = getattr(model, "all_objects", model._default_manager).order_by("pk")
            shown = json.loads(serializers.serialize("json", objects))
            for row in shown:
                # `last_login` and `last_used_at` say that somebody came, not that anything was changed.
                row["fields"].pop("last_login", None)
            found[label] = json.dumps(shown, sort_keys=True)
    return found


def revoked(name: str) -> bool:
    """Whether a key can no longer be used."""
    return ApiKey.objects.get(name=name).revoked_at is not None
