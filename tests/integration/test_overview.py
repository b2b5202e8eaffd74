"""The first page of the console: what it says, to whom, how fast it asks, and its lamps."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.db.models import F
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from django_celery_beat.models import IntervalSchedule, PeriodicTask

from bus import history, pulses
from bus.models import BusSample, Pulse, ServerInstance
from bus.publishing import publish
from cleanup import operations
from cleanup.models import AuditEntry, AuditHead, CleanupItem, CleanupRun, DailyTotal, VerifierCheck
from cleanup.operations import auditing, measuring
from tests.auditing import unguarded
from tests.integration import console_rows as given
from tests.retention import Staging, fill_up
from xnai_site import checkup, stock

pytestmark = pytest.mark.django_db


@pytest.fixture
def viewer(people: dict[str, User]) -> Client:
    client = Client()
    client.force_login(people["viewer"])
    return client


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    return Staging(tmp_path)


def page(client: Client) -> str:
    reply = client.get(reverse("admin:index"))
    assert reply.status_code == 200
    return " ".join(reply.content.decode().split())


def tones(client: Client) -> dict[str, str]:
    """Every lamp of the page, in order, and its tone."""
    found = re.findall(r'<li class="o-lamp" data-lamp="(\w+)" data-name="([^"]+)"', page(client))
    return {name: tone for tone, name in found}


def figure(shown: str, name: str) -> str:
    found = re.search(rf'data-figure="{name}".*?<a[^>]*>(.*?)</a><p>(.*?)</p>', shown)
    assert found is not None, name
    return f"{found[1]} | {found[2]}"


def beat_goes_on(since: timedelta) -> None:
    """Beat has begun so long ago, and has just sent something."""
    every, _ = IntervalSchedule.objects.get_or_create(every=5, period="seconds")
    fields = {"task": "bus.tasks.reap_connections", "interval": every, "last_run_at": timezone.now()}
    PeriodicTask.objects.update_or_create(name="reap", defaults=fields)
    pulses.beat_began("here")
    Pulse.objects.filter(kind=pulses.BEAT).update(started_at=timezone.now() - since)


def last_task(worker: str, ago: timedelta) -> None:
    at = timezone.now() - ago
    Pulse.objects.update_or_create(
        kind=pulses.WORKER, name=worker, defaults={"at": at, "started_at": at - timedelta(hours=1)}
    )


# The page


@pytest.mark.sqlite_only
def test_a_newcomer_is_told_what_to_do_next(viewer: Client):
    shown = page(viewer)
    for words in (
        "No area is registered",
        "No run yet",
        "The trash is empty",
        "No file was moved to the trash",
    ):
        assert words in shown
    assert figure(shown, "trash") == "0 B | nothing waits to be purged"
    assert figure(shown, "orphans") == "— | no area was scanned"


@pytest.mark.sqlite_only
def test_figures_say_what_there_is(viewer: Client, tmp_path: Path):
    given.everything(tmp_path)
    shown = page(viewer)
    assert figure(shown, "connections") == "1 | 1 of 1 agent online"
    assert figure(shown, "tasks").startswith("1 |")
    assert figure(shown, "trash") == "28 B | 4 files, can be restored"
    assert figure(shown, "waiting") == "1 | nothing moves until you decide"
    said = int(re.search(r"\| (\d+) in the last minute", figure(shown, "events"))[1])
    assert said >= 4
    assert "trashed: 4 files, 28 B" in shown


@pytest.mark.sqlite_only
def test_an_area_shows_what_it_holds_against_its_disk(viewer: Client, staging: Staging):
    staging.fill(3)
    staging.policy()
    assert "is counted by a worker within a minute" in page(viewer)
    measuring.measure_area(staging.area, now=datetime.now(UTC))
    fill_up(staging.area, rate=10**9)
    shown = page(viewer)
    for part in ("live <b>0 files, 0 B", "eligible <b>3 files, 21 B", "held <b>0 files"):
        assert part in shown
    assert "full in" in shown
    assert "marks 80 % and 90 %" in shown
    assert re.search(r'data-kind="eligible" style="width: \d', shown)


@pytest.mark.sqlite_only
def test_an_area_that_is_away_is_said_in_its_place(viewer: Client, staging: Staging):
    staging.root.rename(staging.root.with_name("elsewhere"))
    assert "cannot be read: No such file or directory" in page(viewer)


def test_the_calendar_leads_to_the_trash_of_a_day(viewer: Client, staging: Staging):
    staging.fill(3)
    staging.run(staging.policy())
    today = timezone.localdate()
    items = staging.items()
    for pk, days in zip(items, (-3, 2, 60), strict=True):
        CleanupItem.objects.filter(pk=pk).update(purge_after=timezone.now() + timedelta(days=days))
    shown = page(viewer)
    # What is overdue counts for today, what is far away is summed below.
    for day in (today, today + timedelta(days=2)):
        assert f"{reverse('admin:cleanup_cleanupitem_changelist')}?purge_day={day.isoformat()}" in shown
    assert "Later: 1 file, 7 B" in shown


def test_days_count_files_and_bytes_of_all_areas(viewer: Client):
    today = timezone.localdate()
    for area in ("a", "b"):
        DailyTotal.objects.create(area=area, day=today, files_trashed=2, bytes_trashed=500, files_restored=1)
    DailyTotal.objects.create(area="a", day=today - timedelta(days=stock.DAYS_BACK), files_purged=9)
    days = stock.days(timezone.now())
    assert len(days) == stock.DAYS_BACK
    assert [bar["text"] for bar in days[-1]["bars"]] == [
        "4\u00a0files, 1.0\u00a0kB",
        "none",
        "2\u00a0files, 0\u00a0B",
    ]
    assert [bar["files"] for bar in days[-1]["bars"]] == [100, 0, 50]
    assert all(bar["text"] == "none" for day in days[:-1] for bar in day["bars"])


def test_a_big_trash_is_not_summed_while_somebody_waits(
    viewer: Client, staging: Staging, monkeypatch: pytest.MonkeyPatch
):
    staging.fill(3)
    staging.run(staging.policy())
    monkeypatch.setattr(measuring, "SMALL", 2)
    at = datetime.now(UTC) - timedelta(seconds=40)
    measuring.measure_trash(staging.area, now=at)
    with CaptureQueriesContext(connection) as queries:
        shown = page(viewer)
    assert re.search(r"3 files, can be restored, as of 4\d s ago", figure(shown, "trash"))
    sums = [
        entry["sql"] for entry in queries if "SUM(" in entry["sql"] and "cleanup_cleanupitem" in entry["sql"]
    ]
    assert sums == []


@pytest.mark.sqlite_only
def test_the_page_asks_few_questions_however_much_there_is(viewer: Client, tmp_path: Path):
    given.everything(tmp_path)
    with CaptureQueriesContext(connection) as few:
        page(viewer)
    for number in range(6):
        other = Staging(tmp_path, f"more-{number}")
        measuring.measure_area(other.area, now=datetime.now(UTC))
        given.connection(f"agent-{number}")
    with CaptureQueriesContext(connection) as many:
        page(viewer)
    assert len(many) <= len(few)
    assert len(many) < 60


@pytest.mark.sqlite_only
def test_the_parts_are_those_of_the_page_and_for_those_who_may_see_it(people, viewer: Client, tmp_path: Path):
    given.everything(tmp_path)
    shown = viewer.get(reverse("overview-parts")).content.decode()
    assert set(re.findall(r'data-part="(\w+)"', shown)) == {
        "lamps", "figures", "disks", "days", "calendar", "runs",
    }  # fmt: skip
    assert "<html" not in shown
    assert Client().get(reverse("overview-parts")).status_code == 302
    nobody = Client()
    nobody.force_login(people["nobody"])
    assert "data-lamp" not in nobody.get(reverse("overview-parts")).content.decode()
    assert nobody.get(reverse("overview-history")).status_code == 403
    assert viewer.post(reverse("overview-parts")).status_code == 405


# History


def sample(back: int, **fields: Any) -> None:
    at = timezone.now().replace(second=0, microsecond=0) - timedelta(minutes=back)
    BusSample.objects.create(at=at, agents=0, **{"connections": 0, "last_event": None, **fields})


def test_history_has_a_rate_between_two_samples_and_a_gap_where_none_was_noted(viewer: Client):
    for back, event in ((40, 0), (39, 120), (10, 900), (9, 930)):
        sample(back, connections=back, last_event=event)
    points = viewer.get(reverse("overview-history"), {"back": "1h"}).json()["points"]
    assert [point[1:] for point in points] == [[40, None], [39, 2], [None, None], [10, 0.45], [9, 0.5]]


@pytest.mark.sqlite_only
def test_a_day_is_thinned_to_means(viewer: Client):
    for back in range(1, 1_400):
        sample(back, connections=7, last_event=10**6 - 60 * back)
    answer = viewer.get(reverse("overview-history"), {"back": "24h"}).json()
    assert 270 <= len(answer["points"]) <= 300
    assert {point[1] for point in answer["points"]} == {7}
    assert {point[2] for point in answer["points"]} <= {1, None}


def test_a_minute_is_noted_once_and_forgotten_after_a_week():
    given.connection()
    publish("broadcast", "agent.message", {"text": "hello"})
    sample(8 * 24 * 60)
    now = timezone.now()
    history.note(now)
    history.note(now)
    row = BusSample.objects.get()
    assert (row.connections, row.agents, row.at.second) == (1, 1, 0)
    assert row.last_event is not None


# Lamps


@pytest.mark.sqlite_only
def test_red_lamps_come_first_and_each_leads_somewhere(viewer: Client, tmp_path: Path):
    given.everything(tmp_path)
    found = tones(viewer)
    assert list(found) == sorted(found, key=lambda name: ("bad", "warn", "good").index(found[name]))
    assert set(found) == {check().name for check in checkup.LAMPS}
    shown = page(viewer)
    for url in re.findall(r'<li class="o-lamp".*?<a href="([^"]+)"', shown):
        assert viewer.get(url).status_code == 200, url
    waiting = CleanupRun.objects.get(state="awaiting_approval")
    assert f'href="{reverse("admin:cleanup_cleanuprun_change", args=[waiting.pk])}"><strong>Plans' in shown


def test_when_nothing_is_wrong_one_line_says_so(viewer: Client, staging: Staging):
    beat_goes_on(timedelta(hours=1))
    last_task("worker@here", timedelta(seconds=3))
    staging.area.high_watermark = 100
    staging.area.save()
    operations.verify_audit()
    shown = page(viewer)
    assert "All is well: 10 checks, nothing needs you." in shown
    assert set(tones(viewer).values()) == {"good"}


@pytest.mark.sqlite_only
def test_a_worker_that_begins_nothing_while_beat_goes_on_is_missed(viewer: Client, settings):
    beat_goes_on(timedelta(hours=1))
    last_task("worker@here", timedelta(seconds=80))
    assert tones(viewer)["worker"] == "good"
    last_task("worker@here", timedelta(seconds=100))
    assert tones(viewer)["worker"] == "bad"
    assert "no worker has begun a task for 1 min 4" in page(viewer)
    assert checkup.worker in checkup.RUNNING_SITE
    assert checkup.worker in checkup.ALL
    settings.SILENCE = timedelta(seconds=120)
    assert tones(viewer)["worker"] == "good"


@pytest.mark.sqlite_only
def test_a_worker_is_given_time_after_beat_has_begun():
    last_task("worker@here", timedelta(hours=8))
    beat_goes_on(timedelta(seconds=20))
    assert checkup.worker().detail == "beat has just started, no task begun yet"
    beat_goes_on(timedelta(seconds=100))
    assert checkup.worker().state == checkup.FAILED


@pytest.mark.sqlite_only
def test_a_silent_beat_is_not_blamed_on_the_worker(viewer: Client):
    beat_goes_on(timedelta(hours=1))
    PeriodicTask.objects.update(last_run_at=timezone.now() - timedelta(minutes=5))
    last_task("worker@here", timedelta(minutes=5))
    found = tones(viewer)
    assert (found["beat"], found["worker"]) == ("bad", "warn")
    assert "beat is silent, so there was nothing to do since" in page(viewer)


@pytest.mark.sqlite_only
def test_one_silent_worker_of_two_is_told_and_one_that_said_goodbye_is_not():
    beat_goes_on(timedelta(hours=1))
    last_task("worker@here", timedelta(seconds=3))
    last_task("worker@there", timedelta(minutes=5))
    finding = checkup.worker()
    assert finding.state == checkup.WARNING
    assert "nothing heard of worker@there" in finding.detail
    pulses.worker_ended("worker@there")
    assert checkup.worker().state == checkup.OK


def test_a_worker_notes_the_time_of_each_task_it_begins():
    pulses.worker_began("worker@new")
    first = Pulse.objects.get()
    assert (first.kind, first.name) == (pulses.WORKER, "worker@new")
    Pulse.objects.update(at=first.at - timedelta(hours=1))
    pulses.worker_began("worker@new")  # not twice within two seconds
    assert Pulse.objects.get().at == first.at - timedelta(hours=1)
    pulses._noted.clear()
    pulses.worker_began("worker@new")
    again = Pulse.objects.get()
    assert again.at >= first.at
    assert again.started_at == first.started_at


@contextmanager
def older_by(length: timedelta) -> Iterator[None]:
    """As if the first entry of the audit had been made so much earlier."""
    first, shift = AuditEntry.objects.order_by("seq")[:1].values("pk"), length // timedelta(microseconds=1)
    with unguarded():
        AuditEntry.objects.filter(pk__in=first).update(at_us=F("at_us") - shift)
    try:
        yield
    finally:
        with unguarded():
            AuditEntry.objects.filter(pk__in=first).update(at_us=F("at_us") + shift)


def test_the_lamp_of_the_audit(viewer: Client, staging: Staging):
    assert tones(viewer)["audit"] == "good", "the chain has just begun: a worker reads it within minutes"
    assert "a worker verifies them within minutes" in page(viewer)
    with older_by(timedelta(hours=2)):
        assert tones(viewer)["audit"] == "warn"
        assert "never verified" in page(viewer)
    operations.verify_audit()
    assert tones(viewer)["audit"] == "good"
    AuditHead.objects.update(verified_at=timezone.now() - timedelta(hours=30))
    assert tones(viewer)["audit"] == "warn"
    assert "not verified for 1 d 6 h" in page(viewer)
    with unguarded():
        AuditEntry.objects.filter(seq=1).update(actor="mallory")
    operations.verify_audit()
    assert tones(viewer)["audit"] == "bad"
    assert "tampered with" in page(viewer)


@pytest.mark.sqlite_only
def test_entries_that_nobody_seals_are_told(staging: Staging):
    operations.verify_audit()
    with unguarded():
        AuditEntry.objects.update(at_us=int((timezone.now() - timedelta(hours=3)).timestamp() * 1e6))
    finding = checkup.audit()
    assert finding.state == checkup.WARNING
    assert re.search(r"1 entry unsealed for [23] h", finding.detail)


def test_a_sealed_audit_is_fine_and_its_key_is_looked_at(staging: Staging, settings, tmp_path: Path):
    settings.CLEANUP = {
        **settings.CLEANUP,
        "AUDIT_KEY_FILE": tmp_path / "audit_key",
        "AUDIT_LOG_FILE": tmp_path / "checkpoints.jsonl",
    }
    assert checkup.signing_key().detail == "drawn with the first checkpoint"
    auditing.cut_checkpoints(force=True)
    operations.verify_audit()
    assert (checkup.audit().state, checkup.signing_key().state) == (checkup.OK, checkup.OK)
    (tmp_path / "audit_key").chmod(0o644)
    assert "open to every user" in checkup.signing_key().detail
    (tmp_path / "audit_key").unlink()
    finding = checkup.signing_key()
    assert finding.state == checkup.FAILED
    assert "from a copy" in finding.mend


def test_a_failed_canary_is_red_until_it_is_answered_rightly(viewer: Client, staging: Staging):
    staging.policy(verifiers=["redis_task"])
    assert tones(viewer)["verifiers"] == "good"
    VerifierCheck.objects.create(
        verifier="redis_task", sound=False, detail="answered PASS for what is not there"
    )
    assert tones(viewer)["verifiers"] == "bad"
    assert "canary failed: redis_task: answered PASS" in page(viewer)
    VerifierCheck.objects.create(verifier="redis_task", sound=True)
    assert tones(viewer)["verifiers"] == "good"


@pytest.mark.sqlite_only
def test_a_layer_that_is_down_is_told_once_a_server_has_had_time(viewer: Client):
    given.connection()
    ServerInstance.objects.update(layer_up=False)
    assert tones(viewer)["servers"] == "good"
    ServerInstance.objects.update(started_at=timezone.now() - timedelta(minutes=1))
    assert tones(viewer)["servers"] == "bad"
    ServerInstance.objects.create(
        name="web-2", hostname="b", pid=1, started_at=timezone.now() - timedelta(hours=1), layer_up=True,
        lease_until=timezone.now() + timedelta(minutes=1),
    )  # fmt: skip
    assert tones(viewer)["servers"] == "warn"


@pytest.mark.sqlite_only
def test_a_disk_above_its_high_mark_and_an_area_that_is_away_are_told(viewer: Client, staging: Staging):
    assert tones(viewer)["staging"] == "good"
    staging.area.high_watermark = 0
    staging.area.save()
    assert tones(viewer)["disks of areas"] == "warn"
    assert "the high mark is 0 %" in page(viewer)
    (staging.root / ".staging-area").unlink()
    assert tones(viewer)["staging"] == "bad"
