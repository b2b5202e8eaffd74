"""What the checks of an installation find, and what they say to do about it."""

from __future__ import annotations

import json
import os
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connection
from django.utils import timezone
from django_celery_beat.models import IntervalSchedule, PeriodicTask
from redis import Redis

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


def test_every_check_has_another_name_and_mends_what_has_failed():
    findings = [check() for check in checkup.ALL]
    names = [finding.name for finding in findings]
    assert len(names) == len(set(names))
    assert [finding.name for finding in findings if finding.state != checkup.OK and not finding.mend] == []


def test_the_database_keeps_what_it_has_committed():
    finding = checkup.durability()
    assert finding.state == checkup.OK, finding.detail
    assert checkup.clocks().state == checkup.OK


@pytest.mark.sqlite_only
@pytest.mark.django_db(transaction=True)
def test_a_database_that_does_not_sync_is_found():
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA synchronous=OFF")
        finding = checkup.durability()
        cursor.execute("PRAGMA synchronous=FULL")
    assert finding.state == checkup.FAILED
    assert "a commit may be lost" in finding.detail


def test_a_commit_that_does_not_wait_is_found():
    if connection.vendor != "postgresql":
        pytest.skip("SQLite has no such setting")
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL synchronous_commit = off")
    finding = checkup.durability()
    assert finding.state == checkup.FAILED
    assert "synchronous_commit is off" in finding.detail


@pytest.mark.sqlite_only
def test_a_redis_that_throws_keys_away_is_found(settings, own_valkey: Valkey):
    settings.REDIS_URL = own_valkey.url
    assert checkup.redis_memory().state == checkup.OK
    with Redis.from_url(own_valkey.url) as server:
        server.config_set("maxmemory", "64mb")
        server.config_set("maxmemory-policy", "allkeys-lru")
        assert "allkeys-lru" in checkup.redis_memory().detail
        server.config_set("maxmemory-policy", "noeviction")
        assert checkup.redis_memory().state == checkup.OK
        server.config_set("maxmemory", str(server.info("memory")["used_memory"]))
        assert checkup.redis_memory().state == checkup.WARNING


@pytest.mark.sqlite_only
def test_static_files_that_were_not_collected_or_are_old_are_found(settings, tmp_path: Path):
    settings.STATIC_ROOT = tmp_path
    assert "collectstatic" in checkup.static_files().mend
    shutil.copytree(settings.BASE_DIR / "bus" / "static" / "bus", tmp_path / "bus")
    assert checkup.static_files().state == checkup.OK
    (tmp_path / "bus" / "console.css").write_text("/* of yesterday */")
    finding = checkup.static_files()
    assert finding.state == checkup.FAILED
    assert "first bus/console.css" in finding.detail


@pytest.mark.sqlite_only
def test_a_state_folder_that_everybody_may_write_is_found(tmp_path: Path, settings):
    settings.VAR_DIR = tmp_path
    assert checkup.state_folder().state == checkup.OK
    tmp_path.chmod(0o777)
    assert f"chmod o-w {tmp_path}" in checkup.state_folder().mend
    settings.CLEANUP = {**settings.CLEANUP, "AUDIT_KEY_FILE": tmp_path / "audit_key"}
    (tmp_path / "audit_key").touch(0o644)
    assert "audit_key can be read by other users" in checkup.state_folder().detail


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    ("changes", "state", "words"),
    [
        ({}, checkup.OK, "localhost"),
        ({"DEBUG": True}, checkup.WARNING, "DEBUG is on"),
        ({"DEBUG": True, "PRODUCTION": True}, checkup.FAILED, "where others can reach"),
        ({"DEBUG": True, "ALLOWED_HOSTS": ["xnai.example"]}, checkup.FAILED, "where others can reach"),
        ({"ALLOWED_HOSTS": ["*"]}, checkup.WARNING, "every name"),
        ({"PRODUCTION": True, "ALLOWED_HOSTS": ["xnai.example"]}, checkup.WARNING, "no TLS"),
        (
            {"PRODUCTION": True, "ALLOWED_HOSTS": ["xnai.example"], "BEHIND_TLS": True},
            checkup.OK,
            "xnai.example",
        ),
    ],
)
def test_what_strangers_could_see_is_found(settings, changes: dict[str, Any], state: str, words: str):
    for name, value in {"DEBUG": False, "ALLOWED_HOSTS": ["localhost"], **changes}.items():
        setattr(settings, name, value)
    finding = checkup.exposure()
    assert (finding.state, words in finding.detail) == (state, True), finding.detail


@pytest.mark.parametrize(
    "secret", ["short", "a" * 60, "django-insecure-" + "abcdefghijklmnopqrstuvwxyz0123456789"]
)
def test_a_secret_that_can_be_guessed_is_found_and_not_told(settings, secret: str):
    settings.SECRET_KEY = secret
    finding = checkup.secrets()
    assert finding.state == checkup.FAILED
    assert secret not in finding.detail + finding.mend


@pytest.mark.sqlite_only
def test_log_ins_that_nobody_counts_are_found(settings):
    assert checkup.logins().detail == "there is no active superuser"
    User.objects.create_superuser("chief")
    assert checkup.logins().state == checkup.OK
    settings.AUTHENTICATION_BACKENDS = ["django.contrib.auth.backends.ModelBackend"]
    assert checkup.logins().state == checkup.FAILED


@pytest.mark.sqlite_only
def test_a_trash_that_cannot_be_written_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    add_area("lab", tmp_path, Actor.system("test"))
    (tmp_path / ".trash").mkdir(exist_ok=True)
    assert checkup.trash_folders().state == checkup.OK
    # Whoever runs the tests may be root, who may write everywhere.
    monkeypatch.setattr(os, "access", lambda *_: False)
    finding = checkup.trash_folders()
    assert finding.state == checkup.FAILED
    assert f"lab: {tmp_path}/.trash cannot be written" in finding.detail
