"""Sources in the console and at the shell: who may do what, and that both do the same."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.test import Client
from django.urls import reverse

from cleanup.models import AuditEntry, Source, SourceState, StagedFile
from cleanup.staging import sources
from tests.integration.fetched import make_due, notes, refreshed
from tests.retention import ANNA, DAY, Staging
from tests.web import Web

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("nearby", "refusals_unlogged")]

LIST = "admin:cleanup_source_changelist"
PAGE = "admin:cleanup_source_change"
ADD = "admin:cleanup_source_add"


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    return Staging(tmp_path, "incoming")


@pytest.fixture
def source(web: Web, staging: Staging) -> Source:
    return notes(web, staging)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What workers are woken for."""
    found: list[tuple[str, ...]] = []
    monkeypatch.setattr(sources, "send", lambda *message: found.append(message))
    return found


def client_of(person: User) -> Client:
    client = Client()
    client.force_login(person)
    return client


def shown(person: User, name: str, *args: Any) -> str:
    reply = client_of(person).get(reverse(name, args=args))
    assert reply.status_code == 200
    return str(reply.content.decode())


def do(person: User, verb: str, source: Source, **answers: str) -> Any:
    url = reverse("admin:cleanup_source_do", args=[verb])
    reply = client_of(person).post(url, {"ids": str(source.pk), **answers}, follow=True)
    source.refresh_from_db(from_queryset=Source.all_objects.all())
    return reply


def added(person: User, **fields: Any) -> Any:
    return client_of(person).post(reverse(ADD), {"interval": "1d", **fields}, follow=True)


def run(*words: str) -> dict[str, Any]:
    out = StringIO()
    try:
        call_command("cleanup", *words, "--json", stdout=out)
    except SystemExit as end:
        return {"code": end.code, **json.loads(out.getvalue())}
    return {"code": 0, **json.loads(out.getvalue())}


# The console


def test_a_viewer_sees_sources_and_their_versions_and_may_do_nothing(people, source, web):
    refreshed(source)
    web.answers["/notes.txt"] = lambda visit: visit.reply(status=500)
    refreshed(source)
    listed, page = shown(people["viewer"], LIST), shown(people["viewer"], PAGE, source.pk)
    assert "failing" in listed
    assert source.url in listed
    assert "500" in page
    assert "notes.txt" in page
    assert "Refresh now" not in page
    for verb in ("refresh", "disable", "enable", "edit", "remove", "restore"):
        assert do(people["viewer"], verb, source).status_code == 403
    assert client_of(people["viewer"]).get(reverse(ADD)).status_code == 403


def test_an_operator_refreshes_and_disables_and_no_more(
    people, source, sent, django_capture_on_commit_callbacks
):
    with django_capture_on_commit_callbacks(execute=True):
        reply = do(people["operator"], "refresh", source)
    assert "A worker asks now: notes." in reply.content.decode()
    assert sent == [(sources.TASK, str(source.pk))]
    assert source.state == SourceState.QUEUED
    entry = AuditEntry.objects.get(action="source_refresh_asked")
    assert (entry.actor, entry.actor_kind) == ("operator", "user")
    do(people["operator"], "disable", source)
    assert not source.enabled
    for verb in ("enable", "edit", "remove", "restore"):
        assert do(people["operator"], verb, source).status_code == 403
    assert client_of(people["operator"]).get(reverse(ADD)).status_code == 403


def test_an_admin_adds_changes_removes_and_restores(people, staging, web):
    web.serve("/notes.txt", b"first\n")
    added(people["admin"], name="notes", url=web.url(), area=staging.area.pk, interval="1d12h")
    source = Source.objects.get()
    assert (source.name, source.interval, source.created_by) == ("notes", 1.5 * DAY, "admin")
    do(people["admin"], "edit", source, url=web.url("/other.txt"), interval="2d")
    assert (source.url, source.interval) == (web.url("/other.txt"), 2 * DAY)
    do(people["admin"], "remove", source)
    assert source.deleted_at is not None
    assert "removed" in shown(people["admin"], LIST)
    do(people["admin"], "restore", source)
    assert source.deleted_at is None
    do(people["admin"], "disable", source)
    do(people["admin"], "enable", source)
    actions = AuditEntry.objects.filter(action__startswith="source_").order_by("seq")
    assert list(actions.values_list("action", "actor").distinct()) == [
        (f"source_{word}", "admin")
        for word in ("added", "changed", "removed", "restored", "disabled", "enabled")
    ]


@pytest.mark.parametrize("url", ["http://10.0.0.1/", "ftp://a.example/", "http://u:p@a.example/", "nonsense"])
def test_what_may_not_be_fetched_is_an_error_of_the_form(people, staging, url):
    reply = added(people["admin"], name="notes", url=url, area=staging.area.pk)
    assert reply.status_code == 200
    assert "errornote" in reply.content.decode() or "errorlist" in reply.content.decode()
    assert not Source.all_objects.exists()


def test_a_refusal_is_shown_and_nothing_is_done(people, source):
    sources.queue(source, ANNA)
    Source.objects.filter(pk=source.pk).update(state=SourceState.ACTIVE, lease_until="2100-01-01T00:00:00Z")
    assert "being asked already" in do(people["operator"], "refresh", source).content.decode()
    assert (
        "is a URL without"
        in do(people["admin"], "edit", source, url="http://a b/", interval="1d").content.decode()
    )


def test_the_page_of_a_source_that_is_being_asked_follows_its_task(people, source):
    sources.queue(source, ANNA)
    Source.objects.filter(pk=source.pk).update(state=SourceState.ACTIVE)
    source.refresh_from_db()
    assert f'data-progress="task:{source.task_id}"' in shown(people["viewer"], PAGE, source.pk)


def test_looking_changes_nothing(people, source):
    before = Source.all_objects.values().get()
    for verb in ("refresh", "disable", "edit", "remove"):
        url = reverse("admin:cleanup_source_do", args=[verb])
        assert client_of(people["admin"]).get(url, {"ids": str(source.pk)}).status_code == 200
    assert Source.all_objects.values().get() == before


# The shell


def test_the_commands_do_what_the_buttons_do(staging, web):
    web.serve("/notes.txt", b"first\n")
    made = run("sources", "add", "notes", web.url(), "--area", "incoming", "--interval", "2d")
    assert (made["source"], made["interval_seconds"]) == ("notes", 172_800)
    (done,) = run("sources", "refresh", "notes")["refreshed"]
    assert (done["source"], done["outcome"], done["version"]) == ("notes", "new", 1)
    assert run("sources", "change", "notes", "--interval", "3d")["interval_seconds"] == 259_200
    assert run("sources", "disable", "notes")["enabled"] is False
    assert run("sources", "enable", "notes")["enabled"] is True
    assert run("sources", "remove", "notes")["removed"] is True
    assert run("sources", "list")["sources"] == []
    assert [row["source"] for row in run("sources", "list", "--removed")["sources"]] == ["notes"]
    assert run("sources", "restore", "notes")["removed"] is False
    entry = AuditEntry.objects.get(action="source_refreshed")
    assert entry.actor_kind == "command"


def test_all_that_are_due_are_asked_and_a_failure_is_said_by_the_exit_code(source, web):
    other = sources.add("other", web.url("/other.txt"), source.area, ANNA)
    for one in (source, other):
        make_due(one)
    done = run("sources", "refresh", "--due")
    assert done["code"] == 1
    assert {row["source"]: row["outcome"] for row in done["refreshed"]} == {"notes": "new", "other": "failed"}
    assert run("sources", "refresh", "--due")["refreshed"] == []


def test_a_refresh_is_queued_for_a_worker(source, sent, django_capture_on_commit_callbacks):
    with django_capture_on_commit_callbacks(execute=True):
        assert run("sources", "refresh", "notes", "--queue")["queued"] == 1
    assert sent == [(sources.TASK, str(source.pk))]
    assert not StagedFile.objects.exists()


@pytest.mark.parametrize(
    "words",
    [
        ("sources", "add", "more", "http://a.example/", "--area", "incoming"),
        ("sources", "change", "notes", "--interval", "3d"),
        ("sources", "refresh", "notes"),
        ("sources", "refresh", "--due"),
        ("sources", "disable", "notes"),
        ("sources", "remove", "notes"),
    ],
)
def test_a_dry_run_changes_nothing_and_asks_nobody(source, web, words):
    before, entries = list(Source.all_objects.values()), AuditEntry.objects.count()
    assert run(*words, "--dry-run")["dry_run"] is True
    assert list(Source.all_objects.values()) == before
    assert AuditEntry.objects.count() == entries
    assert web.seen == []


@pytest.mark.parametrize(
    "words",
    [
        ("sources", "refresh"),
        ("sources", "refresh", "notes", "--due"),
        ("sources", "refresh", "nobody"),
        ("sources", "change", "notes"),
        ("sources", "add", "notes", "http://a.example/", "--area", "incoming"),
        ("sources", "add", "more", "http://127.0.0.1.evil\\@x/", "--area", "incoming"),
        ("sources", "add", "more", "http://a.example/", "--area", "nowhere"),
        ("sources", "restore", "notes"),
    ],
)
def test_what_cannot_be_done_is_refused(source, words):
    with pytest.raises(CommandError) as refusal:
        call_command("cleanup", *words)
    assert refusal.value.returncode == 2
