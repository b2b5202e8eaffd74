"""`manage.py schedule`: what the buttons on the page Periodic tasks do, from a shell."""

from __future__ import annotations

import json
from io import StringIO

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from django_celery_beat.models import PeriodicTask, PeriodicTasks
from redis import Redis

from tests.integration.console_rows import schedule_rows

pytestmark = [pytest.mark.django_db, pytest.mark.sqlite_only]
NAME = "cleanup: tick"


@pytest.fixture(autouse=True)
def _rows() -> None:
    schedule_rows()


def said(*words: str) -> str:
    out = StringIO()
    call_command("schedule", *words, stdout=out)
    return out.getvalue()


def test_the_list_says_what_is_on_and_when_it_ran() -> None:
    assert "on   cleanup: tick  every 30 seconds, last run never" in said("list")
    [row] = [json.loads(line) for line in said("list", "--json").splitlines()]
    assert (row["name"], row["on"], row["last_run_at"]) == (NAME, True, None)


def test_a_task_is_switched_off_and_on_and_beat_is_told() -> None:
    for verb, enabled in (("off", False), ("on", True)):
        before = PeriodicTasks.last_change()
        assert said(verb, NAME) == f"{verb}: {NAME}\n"
        assert PeriodicTask.objects.get().enabled is enabled
        assert PeriodicTasks.last_change() != before


def test_a_task_that_is_run_reaches_the_broker() -> None:
    with Redis.from_url(settings.CELERY_BROKER_URL) as broker:
        broker.delete("celery")
        said("run", NAME)
        sent = [message for message in broker.lrange("celery", 0, -1) if b"cleanup.tasks.tick" in message]
        broker.delete("celery")
    assert len(sent) == 1


@pytest.mark.parametrize("verb", ["run", "on", "off"])
def test_a_name_that_nobody_has_is_told(verb: str) -> None:
    with pytest.raises(CommandError, match="no periodic task is called 'nothing'") as refusal:
        said(verb, "nothing")
    assert refusal.value.returncode == 1


def test_words_of_a_task_that_are_not_json_are_refused() -> None:
    PeriodicTask.objects.update(args="[broken")
    with pytest.raises(CommandError) as refusal:
        said("run", NAME)
    assert refusal.value.returncode == 2
