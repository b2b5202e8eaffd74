"""Orphans and staged files in the console: both ways, page by page; looking and registering by a person."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import Client
from django.urls import reverse

from cleanup import operations
from cleanup.engine.orphans import Sighting, encode_sightings
from cleanup.models import AuditEntry, OrphanBatch, StagedFile
from cleanup.operations.looking import ask_look, last_look, register_files
from cleanup.stores.orphans import page, stored
from cleanup.tasks import look_for_orphans
from tests.retention import ANNA, Staging, write

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("refusals_unlogged")]

LIST = "admin:cleanup_orphanbatch_changelist"


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    """Thirty files, each with its row."""
    made = Staging(tmp_path, "staged")
    StagedFile.objects.bulk_create(StagedFile(area=made.area, path=path) for path in made.fill(30))
    return made


def client_of(person: User) -> Client:
    client = Client()
    client.force_login(person)
    return client


def page_of(client: Client, name: str, **query: Any) -> str:
    reply = client.get(reverse(name), query)
    assert reply.status_code == 200, reply.status_code
    return str(reply.content.decode())


def looked(staging: Staging) -> None:
    look_for_orphans(str(staging.area.pk), "anna", "user")


def do(person: User, model: str, name: str, pk: Any, **answers: str) -> str:
    url = reverse(f"admin:cleanup_{model}_do", args=[name])
    return str(client_of(person).post(url, {"ids": str(pk), **answers}, follow=True).content.decode())


def test_a_person_has_a_worker_look_and_sees_what_it_found(people, staging):
    write(staging.root / "stray", "12345")
    StagedFile.objects.create(area=staging.area, path="missing")
    do(people["operator"], "stagingarea", "look", staging.area.pk)
    waiting = last_look(staging.area)
    assert waiting is not None
    assert (waiting.actor, waiting.is_waiting) == ("operator", True)
    client = client_of(people["viewer"])
    assert "asked for a look" in page_of(client, LIST)
    looked(staging)
    shown = page_of(client, LIST)
    assert "asked for a look" not in shown
    assert "1 file without a row" in shown
    assert "stray" in shown
    assert "5\u00a0B" in shown
    assert "seen once, counts in 23 h" in shown
    assert "missing" in page_of(client, LIST, area=staging.area.pk, kind="row")
    assert AuditEntry.objects.get(action="orphans_looked").actor == "anna"


def test_a_look_that_finds_too_many_is_refused_in_words(people, staging):
    StagedFile.all_objects.filter(path__startswith="d0/")._raw_delete("default")
    write(staging.root / "stray")
    looked(staging)
    assert "The last look was refused" in page_of(client_of(people["viewer"]), LIST)
    assert not OrphanBatch.objects.exists()


@pytest.mark.sqlite_only
def test_a_disabled_area_is_not_looked_at(people, staging):
    operations.set_enabled(staging.area, False, ANNA)
    assert "enable it first" in do(people["operator"], "stagingarea", "look", staging.area.pk)
    with pytest.raises(operations.OperationRefused):
        ask_look(staging.area, ANNA)
    assert last_look(staging.area) is None


def filled(staging: Staging, *sizes: int) -> list[str]:
    now, names, number = datetime.now(UTC), list[str](), 0
    for batch, size in enumerate(sizes):
        part = [Sighting(f"f{number + at:05}", (1, 2, 3), now) for at in range(size)]
        number += size
        names += [one.path for one in part]
        OrphanBatch.objects.create(
            area=staging.area, kind="file", number=batch, items=size, total=99_999, seen_at=now,
            body=encode_sightings(part),
        )  # fmt: skip
    return names


@pytest.mark.sqlite_only
@pytest.mark.parametrize("sizes", [(), (0,), (7,), (10,), (10, 10), (12, 3), (4, 30, 4), (25,)])
def test_pages_show_every_orphan_once_and_in_order(staging, sizes):
    names, found, place = filled(staging, *sizes), list[str](), (0, 0)
    for _ in range(50):
        part, following = page(staging.area.pk, "file", batch=place[0], start=place[1], size=10)
        found += [one.path for one in part]
        assert len(part) <= 10
        if following is None:
            break
        assert part
        place = following
    assert found == names == [one.path for one in stored(staging.area.pk, "file")]


@pytest.mark.sqlite_only
def test_the_next_page_is_a_link(people, staging):
    filled(staging, 150)
    client = client_of(people["viewer"])
    first = page_of(client, LIST, area=staging.area.pk)
    assert "f00099" in first
    assert "f00100" not in first
    assert "batch=0&amp;at=100" in first
    second = page_of(client, LIST, area=staging.area.pk, batch=0, at=100)
    assert "f00149" in second
    assert "f00099" not in second
    assert "The last one is above" in second


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    "query", [{"area": "x"}, {"area": "9" * 40}, {"batch": "-1", "at": "٣"}, {"batch": "9" * 30, "at": "0"}]
)
def test_nonsense_in_the_address_shows_the_beginning(people, staging, query):
    filled(staging, 3)
    assert "f00000" in page_of(client_of(people["viewer"]), LIST, **query)


def test_files_are_registered_by_a_person_if_they_are_what_was_seen(people, staging):
    for name in ("in/a", "in/b", "out"):
        write(staging.root / name)
    looked(staging)
    (staging.root / "in/b").write_text("another file by now")
    shown = do(people["operator"], "stagingarea", "register", staging.area.pk, pattern="in/**")
    assert "1 file is known" in shown
    row = StagedFile.objects.get(path="in/a")
    assert (row.uploader, row.size) == ("operator", 7)
    assert not StagedFile.objects.filter(path__in=["in/b", "out"]).exists()
    assert AuditEntry.objects.get(action="file_registered").path == "in/a"
    assert register_files(staging.area, "in/**", ANNA) == [], "the second time there is nothing to do"
    assert "registered since" in page_of(client_of(people["viewer"]), LIST)
    assert "no file that was seen" in do(
        people["operator"], "stagingarea", "register", staging.area.pk, pattern="nowhere"
    )


@pytest.mark.sqlite_only
def test_the_command_queues_and_registers(staging):
    write(staging.root / "stray")
    looked(staging)
    said = io.StringIO()
    call_command("cleanup", "orphans", "staged", "--register", "**", "--dry-run", "--json", stdout=said)
    assert json.loads(said.getvalue())["registered"] == ["stray"]
    assert not StagedFile.objects.filter(path="stray").exists()
    call_command("cleanup", "orphans", "staged", "--queue", "--json", stdout=io.StringIO())
    look = last_look(staging.area)
    assert look is not None
    assert look.is_waiting


@pytest.mark.sqlite_only
def test_what_a_viewer_sees_offers_nothing(people, staging):
    write(staging.root / "stray")
    looked(staging)
    staging.policy("strays", rule="orphan")
    viewer, operator = (page_of(client_of(people[name]), LIST) for name in ("viewer", "operator"))
    for offer in ("Look now", "Register as known", "Run strays", ">Hold<"):
        assert offer not in viewer
        assert offer in operator
    assert client_of(people["nobody"]).get(reverse(LIST)).status_code == 403


def test_staged_files_are_found_and_their_rows_restored(people, staging):
    StagedFile.objects.create(area=staging.area, path="mine", uploader="ben", task_id="t7")
    gone = StagedFile.objects.get(path="d0/f0")
    gone.delete()
    client, name = client_of(people["viewer"]), "admin:cleanup_stagedfile_changelist"
    assert "mine" in page_of(client, name, task="t7")
    assert "d1/f1" not in page_of(client, name, task="t7")
    assert "mine" in page_of(client, name, uploader="ben")
    assert "d1/f1" not in page_of(client, name, state="gone")
    assert "d0/f0" in page_of(client, name, state="gone")
    assert "d0/f0" not in page_of(client, name, state="living", q="f0")
    assert "1 row lives again" in do(people["operator"], "stagedfile", "restore_row", gone.pk)
    gone.refresh_from_db()
    assert gone.deleted_at is None
    assert AuditEntry.objects.get(action="row_restored").actor == "operator"


def test_a_row_is_retired_with_a_reason_and_its_page_offers_the_way_back(people, staging):
    row = StagedFile.objects.get(path="d0/f0")
    assert "Retired: 1 row." in do(people["operator"], "stagedfile", "retire_row", row.pk, reason="twice")
    row.refresh_from_db()
    assert (row.deleted_at is None, row.delete_reason) == (False, "retired by operator: twice")
    assert (staging.root / "d0" / "f0").exists()
    entry = AuditEntry.objects.get(action="row_soft_deleted")
    assert (entry.actor, entry.reason) == ("operator", "twice")
    client = client_of(people["operator"])
    address = reverse("admin:cleanup_stagedfile_change", args=[row.pk])
    shown = client.get(address).content.decode()
    assert "Restore row" in shown
    assert "Retire row" not in shown
    asked = reverse("admin:cleanup_stagedfile_do", args=["retire_row"])
    assert client_of(people["viewer"]).get(asked, {"ids": row.pk}).status_code == 403
