"""The pages of uploads and of staged files: who sees what, what is downloaded, what is given up."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client, RequestFactory
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from cleanup.admin import downloads
from cleanup.models import AuditEntry, StagedFile, Upload, UploadState
from cleanup.staging import uploads
from cleanup.staging.content import Incoming, stage_bytes
from cleanup.staging.uploads import Uploader
from tests.integration.console_rows import people as make_people
from tests.integration.test_console_lists import FEW, complaints, shown, small_looks
from tests.retention import ANNA, Staging

pytestmark = pytest.mark.django_db

AGENT = Uploader(name="key:agent-7", may_upload=True, kind="key")
DATA = b"some notes, and a few more\n"


@pytest.fixture
def people() -> dict[str, User]:
    return make_people()


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    return Staging(tmp_path, "incoming")


def client_of(person: User) -> Client:
    client = Client()
    client.force_login(person)
    return client


def page(client: Client, name: str, *given: Any, **query: str) -> str:
    reply = client.get(reverse(f"admin:{name}", args=given), query)
    assert reply.status_code == 200
    return str(reply.content.decode()).replace("\u00a0", " ")


def staged(staging: Staging, name: str = "notes.txt", data: bytes = DATA, **words: Any) -> StagedFile:
    return stage_bytes(staging.area, data, Incoming(name=name, uploader=AGENT.name, **words), ANNA)


def begun(staging: Staging, name: str = "long.txt") -> Upload:
    """An upload of which the first half is there."""
    made = uploads.create(area=staging.area.name, name=name, size=20, uploader=AGENT)
    return uploads.write_part(made.pk, AGENT, 0, [b"0123456789"])


async def body_of(answer: Any) -> bytes:
    return b"".join([piece async for piece in answer.streaming_content])


# Uploads ----------------------------------------------------------------------------------------------------


def test_the_box_is_for_those_who_may_upload_and_names_the_areas_that_take_files(people, staging):
    off = Staging(staging.root.parent, "closed")
    type(off.area).objects.filter(pk=off.area.pk).update(enabled=False)
    for name in ("operator", "admin"):
        html = page(client_of(people[name]), "cleanup_upload_changelist")
        assert 'data-upload="/files/"' in html
        assert '<option value="incoming">' in html
        assert '<option value="closed">' not in html
    assert "data-upload=" not in page(client_of(people["viewer"]), "cleanup_upload_changelist")
    nobody = client_of(people["nobody"])
    assert nobody.get(reverse("admin:cleanup_upload_changelist")).status_code == 403


def test_an_upload_shows_how_far_it_is_and_follows_its_topic(people, staging):
    upload = begun(staging)
    client = client_of(people["viewer"])
    assert "10 B of 20 B" in page(client, "cleanup_upload_changelist")
    html = page(client, "cleanup_upload_change", upload.pk)
    assert f'data-progress="upload:{upload.pk}"' in html
    assert "10 of 20" in html
    assert "key:agent-7" in html
    assert "Give up" not in html


def test_a_finished_upload_leads_to_its_file_and_a_refused_one_says_why(people, staging):
    client, done = client_of(people["viewer"]), begun(staging)
    uploads.write_part(done.pk, AGENT, 10, [b"0123456789"])
    file = StagedFile.objects.get(name="long.txt")
    html = page(client, "cleanup_upload_change", done.pk)
    assert reverse("admin:cleanup_stagedfile_change", args=[file.pk]) in html
    assert "data-progress" not in html
    bad = uploads.create(area="incoming", name="picture.png", size=4, uploader=AGENT)
    with pytest.raises(ValueError, match="PNG"):
        uploads.write_part(bad.pk, AGENT, 0, [b"text"])
    assert "Refused: a .png file begins with" in page(client, "cleanup_upload_change", bad.pk)


def test_an_operator_gives_an_upload_up_after_being_asked(people, staging):
    upload, client = begun(staging), client_of(people["operator"])
    address = reverse("admin:cleanup_upload_do", args=["give_up"])
    asked = client.get(address, {"ids": str(upload.pk)})
    assert "1 upload of 20" in asked.content.decode().replace("\u00a0", " ")
    upload.refresh_from_db()
    assert upload.state == UploadState.OPEN, "asking changes nothing"
    said = client.post(address, {"ids": str(upload.pk)}, follow=True).content.decode()
    assert "Given up: 1 upload." in said
    upload.refresh_from_db()
    assert upload.state == UploadState.TERMINATED
    assert AuditEntry.objects.get(action="upload_terminated").actor == "operator"
    again = client.post(address, {"ids": str(upload.pk)}).content.decode()
    assert "it cannot be given up" in again


def test_a_viewer_gives_nothing_up(people, staging):
    upload = begun(staging)
    address = reverse("admin:cleanup_upload_do", args=["give_up"])
    assert client_of(people["viewer"]).post(address, {"ids": str(upload.pk)}).status_code == 403
    upload.refresh_from_db()
    assert upload.state == UploadState.OPEN


def test_an_upload_is_found_by_its_id_and_by_a_part_of_its_name(people, staging):
    first, second = begun(staging, "first.txt"), begun(staging, "second.txt")
    User.objects.create_superuser("root")
    client = client_of(people["viewer"])
    by_id = [row.pk for row in shown(client, "cleanup_upload", q=str(first.pk)).result_list]
    by_name = [row.pk for row in shown(client, "cleanup_upload", q="cond").result_list]
    assert (by_id, by_name) == ([first.pk], [second.pk])


# Files ------------------------------------------------------------------------------------------------------


def test_a_file_says_what_it_was_called_who_has_the_same_bytes_and_what_was_made_of_it(people, staging):
    first, second = staged(staging), staged(staging, "copy of notes.txt")
    made = staged(staging, "summary.txt", b"short", origin=first.pk)
    client = client_of(people["viewer"])
    html = page(client, "cleanup_stagedfile_change", first.pk)
    assert "2 living rows refer to them" in html
    for row in (second, made):
        assert reverse("admin:cleanup_stagedfile_change", args=[row.pk]) in html
    assert first.sha256 in html
    below = page(client, "cleanup_stagedfile_change", made.pk)
    assert reverse("admin:cleanup_stagedfile_change", args=[first.pk]) in below
    listed = page(client, "cleanup_stagedfile_changelist")
    assert "copy of notes.txt" in listed
    assert first.sha256[:12] in listed


def test_a_file_is_found_by_the_beginning_of_its_hash_and_by_its_name(staging):
    User.objects.create_superuser("root")
    first, second = staged(staging), staged(staging, "copy.txt")
    other = staged(staging, "other.txt", b"other")
    for term, wanted in (
        (first.sha256[:8], {first.pk, second.pk}), (other.sha256, {other.pk}), ("OPY", {second.pk}),
        ("0" * 12, set()),
    ):  # fmt: skip
        found = {row.pk for row in shown(Client(), "cleanup_stagedfile", q=term).result_list}
        assert found == wanted, term


@pytest.mark.parametrize("role", ["operator", "admin"])
def test_a_download_is_an_attachment_that_no_browser_runs(people, staging, role):
    row = staged(staging, "Über <b>.html", b"<script>alert(1)</script>")
    answer = client_of(people[role]).get(reverse("admin:cleanup_stagedfile_download", args=[row.pk]))
    assert answer.status_code == 200
    assert answer["Content-Type"] == "application/octet-stream"
    assert answer["Content-Disposition"].startswith("attachment; filename*=utf-8''%C3%9Cber")
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert answer["Content-Length"] == "25"
    assert asyncio.run(body_of(answer)) == b"<script>alert(1)</script>"


def test_who_may_only_look_downloads_nothing(people, staging):
    row = staged(staging)
    address = reverse("admin:cleanup_stagedfile_download", args=[row.pk])
    for name in ("viewer", "nobody"):
        assert client_of(people[name]).get(address).status_code == 403
    assert address not in page(client_of(people["viewer"]), "cleanup_stagedfile_change", row.pk)
    assert address in page(client_of(people["operator"]), "cleanup_stagedfile_change", row.pk)


def test_a_file_that_is_gone_or_a_link_is_not_downloaded(people, staging, tmp_path):
    row, client = staged(staging), client_of(people["operator"])
    secret = tmp_path / "secret"
    secret.write_text("not for you")
    file = staging.root / row.path
    file.unlink()
    address = reverse("admin:cleanup_stagedfile_download", args=[row.pk])
    said = client.get(address, follow=True)
    assert "The file is not there any more" in said.content.decode()
    file.symlink_to(secret)
    answer = client.get(address)
    assert answer.status_code == 302
    assert client.get(reverse("admin:cleanup_stagedfile_download", args=["9" * 30])).status_code == 404


def test_a_slow_reader_has_no_more_than_a_little_waiting_in_the_server(staging):
    row = staged(staging, data=b"x" * (5 * downloads.PIECE))
    request, owed = RequestFactory().get("/"), 0
    request.scope = {"extensions": {"bus.stream": {"pending_bytes": lambda: owed}}}

    async def read() -> int:
        nonlocal owed
        answer = downloads.download(request, row)
        pieces = aiter(answer.streaming_content)
        seen = len(await anext(pieces))
        owed = downloads.MOST_OWED + 1
        waiting = asyncio.ensure_future(anext(pieces))
        done, _ = await asyncio.wait({waiting}, timeout=0.2)
        assert not done, "nothing is read while the reader is behind"
        owed = 0
        seen += len(await waiting)
        seen += sum([len(piece) async for piece in pieces])
        answer.close()
        return seen

    assert asyncio.run(read()) == 5 * downloads.PIECE


def test_the_command_copies_a_file_out_and_overwrites_nothing(staging, tmp_path):
    row, copy = staged(staging), tmp_path / "copy.txt"
    call_command("cleanup", "files", "get", str(row.pk), "--to", str(copy))
    assert copy.read_bytes() == DATA
    with pytest.raises(CommandError, match="nothing is overwritten"):
        call_command("cleanup", "files", "get", str(row.pk), "--to", str(copy))
    with pytest.raises(CommandError, match="there is no staged file"):
        call_command("cleanup", "files", "get", str(row.pk + 1), "--to", str(tmp_path / "other.txt"))
    (staging.root / row.path).unlink()
    with pytest.raises(CommandError, match="not there any more"):
        call_command("cleanup", "files", "get", str(row.pk), "--to", str(tmp_path / "other.txt"))
    assert not (tmp_path / "other.txt").exists()


# Lists ------------------------------------------------------------------------------------------------------


def many(staging: Staging) -> None:
    """Uploads as they are after months: most are over, a few open, one by somebody who is rare."""
    now, states = timezone.now(), list(UploadState)
    rows = []
    for number in range(6_000):
        state = states[number % 6] if number % 100 < 6 else UploadState.DONE
        rows.append(Upload(
            pk=uuid4(), area=staging.area, name=f"upload-{number}.txt", size=10, state=state,
            uploader="key:rare" if number == 77 else f"key:agent-{number % 3}",
            expires_at=now - timedelta(minutes=number),
        ))  # fmt: skip
    Upload.objects.bulk_create(rows, batch_size=500)
    for number, row in enumerate(rows):
        row.created_at = now - timedelta(minutes=number)
    Upload.objects.bulk_update(rows, ["created_at"], batch_size=500)
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            # They lie as they came, oldest first: the planner goes by that, too.
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
            cursor.execute("CLUSTER cleanup_upload USING cleanup_upload_newest")
            cursor.execute("ANALYZE cleanup_upload")


def test_no_page_of_the_uploads_reads_or_sorts_or_counts_their_table(staging, monkeypatch):
    User.objects.create_superuser("root")
    many(staging)
    small_looks(monkeypatch, Upload)
    asked: list[dict[str, str]] = [
        {}, {"state": "open"}, {"state": "done"}, {"state": "failed", "area": str(staging.area.pk)},
        {"area": str(staging.area.pk)}, {"uploader": "key:agent-1"}, {"uploader": "key:rare"},
        {"q": "upload-77"}, {"q": "nowhere"}, {"q": str(uuid4())}, {"o": "5", "state": "open"},
    ]  # fmt: skip
    found: list[str] = []
    for query in asked:
        first = shown(Client(), "cleanup_upload", **query)
        for place in ({}, {"after": first.next_page}, {"before": "end"}):
            with CaptureQueriesContext(connection) as statements:
                shown(Client(), "cleanup_upload", **query, **place)
            found += [
                f"{query} {place}: {complaint}\n{statement['sql']}"
                for statement in statements
                for complaint in complaints(statement["sql"], ["cleanup_upload"])
            ]
    assert FEW < 6_000
    assert not found, "\n\n".join(found[:3])


def test_all_uploads_are_on_some_page_in_order(staging):
    User.objects.create_superuser("root")
    many(staging)
    Upload.objects.filter(pk__in=list(Upload.objects.values_list("pk", flat=True)[:5_850])).delete()
    for query, order in (({}, "-created_at"), ({"state": "done"}, "-expires_at")):
        seen: list[Any] = []
        place: dict[str, str] = {}
        while True:
            part = shown(Client(), "cleanup_upload", **query, **place)
            seen += [row.pk for row in part.result_list]
            if not part.next_page:
                break
            place = {"after": part.next_page}
        wanted = Upload.objects.filter(**query).order_by(order, "-pk").values_list("pk", flat=True)
        assert seen == list(wanted)
