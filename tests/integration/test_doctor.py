"""What the checks of an installation find, and what they say to do about it."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
from django.core.management import call_command
from django.utils import timezone
from django_celery_beat.models import IntervalSchedule, PeriodicTask

from cleanup.operations import Actor, add_area
from tests.servers import Valkey, free_port
from xnai_site import checkup

pytestmark = pytest.mark.django_db


@pytest.fixture
def tick() -> PeriodicTask:
    every = IntervalSchedule.objects.create(every=30, period="seconds")
    return PeriodicTask.objects.create(name="tick", task="cleanup.tasks.tick", interval=every)


def age(tick: PeriodicTask, seconds: int) -> None:
    PeriodicTask.objects.filter(pk=tick.pk).update(last_run_at=timezone.now() - timedelta(seconds=seconds))


def test_a_beat_that_ticks_is_alive_and_one_that_is_silent_is_not(tick: PeriodicTask):
    age(tick, 20)
    assert checkup.beat().state == checkup.OK
    age(tick, 120)
    assert checkup.beat().state == checkup.FAILED
    assert "celery -A xnai_site beat" in checkup.beat().mend


def test_a_beat_that_has_just_started_is_not_reported(tick: PeriodicTask):
    assert checkup.beat().detail == "has just started, no tick yet"
    PeriodicTask.objects.update(date_changed=timezone.now() - timedelta(minutes=5))
    assert checkup.beat().state == checkup.FAILED


def test_an_area_without_its_marker_is_found(tmp_path: Path):
    add_area("lab", tmp_path, Actor.system("test"))
    assert checkup.staging().state == checkup.OK
    (tmp_path / ".staging-area").unlink()
    finding = checkup.staging()
    assert finding.state == checkup.FAILED
    assert f"lab: {tmp_path} is missing or has no marker" in finding.detail


def test_a_redis_that_is_not_there_is_found_and_its_password_not_told(settings):
    settings.REDIS_URL = f"redis://:hunter2@127.0.0.1:{free_port()}/0"
    findings = [checkup.redis_server(), checkup.worker()]
    assert [finding.state for finding in findings] == [checkup.FAILED, checkup.FAILED]
    assert all("hunter2" not in finding.detail for finding in findings)


def test_a_frozen_redis_is_found_within_seconds(settings, own_valkey: Valkey):
    settings.REDIS_URL = own_valkey.url
    own_valkey.freeze()
    try:
        assert checkup.redis_server().state == checkup.FAILED
    finally:
        own_valkey.thaw()


def test_a_package_that_differs_from_its_pin_is_found(tmp_path: Path, settings):
    settings.BASE_DIR = tmp_path
    (tmp_path / "requirements.txt").write_text(
        "django==1.0  # old\nno-such-package==1.0\nmissing-too==1.0 ; python_version < '3'\n"
    )
    finding = checkup.packages()
    assert finding.state == checkup.FAILED
    assert "(wanted 1.0), no-such-package missing" in finding.detail
    assert "missing-too" not in finding.detail


def test_a_readable_secret_key_is_found(tmp_path: Path, settings):
    settings.VAR_DIR = tmp_path
    (tmp_path / "secret_key").write_text("secret")
    (tmp_path / "secret_key").chmod(0o644)
    assert checkup.state_folder().state == checkup.FAILED
    (tmp_path / "secret_key").chmod(0o600)
    assert checkup.state_folder().state == checkup.OK


def test_the_command_prints_every_finding_and_fails_when_one_has(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        call_command("doctor", "--json")
    report = json.loads(capsys.readouterr().out)
    assert ended.value.code == 1  # no worker runs here
    assert report["sound"] is False
    assert report["findings"][0]["name"] == "python"
    assert all(entry["mend"] for entry in report["findings"] if entry["name"] == "worker")


def test_a_volatile_log_is_a_warning(settings):
    assert checkup.log().state == checkup.OK
    settings.BUS = {**settings.BUS, "VOLATILE": True}
    finding = checkup.log()
    assert finding.state == checkup.WARNING
    assert "BUS_VOLATILE" in finding.mend
    assert checkup.log in checkup.ALL
    assert checkup.log in checkup.RUNNING_SITE
