"""The page of the audit: what is known of the whole chain, the reading that a worker does, and the export."""

from __future__ import annotations

import json
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.urls import reverse

from bus.models import Event
from cleanup import operations, tasks
from cleanup.engine.audit import entry_hash
from cleanup.models import AuditEntry, AuditHead
from cleanup.operations import auditing, excerpts, reading
from cleanup.stores import Actor
from tests.auditing import AuditFiles, command
from tests.integration import console_rows as given
from tests.retention import ANNA, Staging
from tests.servers import python

pytestmark = pytest.mark.django_db

SCRIPT = Path(__file__).parents[2] / "docs" / "verify_audit.py"
LIST = "admin:cleanup_auditentry_changelist"
VERIFY = "admin:cleanup_auditentry_do"
EXPORT = "admin:cleanup_auditentry_export"


@pytest.fixture
def client() -> Client:
    client = Client()
    client.force_login(given.people()["viewer"])
    return client


@pytest.fixture
def staging(tmp_path: Path, files: AuditFiles) -> Staging:
    return given.cleanup_rows(tmp_path)


@pytest.fixture
def woken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Wake-ups, which no worker takes here."""
    sent: list[str] = []
    monkeypatch.setattr(reading, "send", sent.append)
    monkeypatch.setattr(tasks, "send", sent.append)
    return sent


@pytest.fixture
def long_chain(monkeypatch: pytest.MonkeyPatch, staging: Staging) -> Staging:
    """A chain that is too long to be read while somebody waits."""
    monkeypatch.setattr(reading, "AT_ONCE", 3)
    return staging


def text_of(reply: Any) -> str:
    assert reply.status_code == 200, reply.status_code
    return str(reply.content.decode())


def page(client: Client) -> str:
    return text_of(client.get(reverse(LIST)))


def verify(client: Client) -> str:
    return text_of(client.post(reverse(VERIFY, args=["verify"]), follow=True))


def tamper(seq: int = 2) -> None:
    if connection.vendor == "postgresql":
        connection.cursor().execute("ALTER TABLE cleanup_auditentry DISABLE TRIGGER USER")
    AuditEntry.objects.filter(seq=seq).update(actor="nobody")


def test_the_page_says_what_is_known_of_the_chain(client, staging):
    assert "not verified yet" in page(client)
    verify(client)
    last = AuditEntry.objects.count()
    assert f"{last:,} entries, every hash and every link is right." in page(client)
    operations.hold(staging.area, "later/**", None, "because", ANNA)
    assert "1 came since" in page(client)


def test_a_long_chain_is_read_by_a_worker_and_the_page_says_so(client, long_chain, woken):
    assert "A worker reads the whole audit now" in verify(client)
    assert woken == ["cleanup.tasks.audit"]
    shown = page(client)
    assert "viewer asked for a reading" in shown
    assert f'data-progress="{reading.TOPIC}"' in shown
    assert "somebody has asked before you" in verify(client)
    assert woken == ["cleanup.tasks.audit"], "one reading is enough"
    tasks.audit()
    shown = page(client)
    assert "every hash and every link is right" in shown
    assert "asked for a reading" not in shown
    assert "data-progress" not in shown


def test_a_reading_that_is_awaited_goes_on_at_once_and_one_by_the_clock_does_not(
    long_chain, woken, monkeypatch
):
    operations.auditing.cut_checkpoints(force=True, stretch=2)
    monkeypatch.setattr(tasks, "conf", lambda: type("Conf", (), {"slice_length": timedelta(0)}))
    tasks.audit()
    assert AuditHead.objects.get().verifying is not None
    assert woken == []
    reading.ask(Actor(name="anna"))
    assert AuditHead.objects.get().verifying == 1, "who asks wants to know how it is now"
    woken.clear()
    tasks.audit()
    assert woken == ["cleanup.tasks.audit"]
    assert 0 < reading.standing().percent < 100
    for _ in range(50):
        tasks.audit()
    assert AuditHead.objects.get().verified_sound is True
    assert reading.standing().report["up_to"] == AuditHead.objects.get().seq


def test_a_chain_that_was_tampered_with_stays_red_until_it_is_read_again(client, long_chain, woken):
    tamper()
    verify(client)
    tasks.audit()
    for _ in range(2):
        assert "TAMPERED at entry 2" in page(client)
        assert "x-standing-bad" in page(client)
    assert reading.ask(Actor(name="anna"))
    assert "TAMPERED at entry 2" in page(client), "while it is read"
    told = Event.objects.filter(topic__name=reading.TOPIC, event_type="audit.finished").latest("id")
    assert json.loads(told.payload)["data"]["message"].startswith("TAMPERED at entry 2")


def test_a_reading_that_cannot_be_done_says_why_and_keeps_what_was_known(
    client, long_chain, woken, files, tmp_path
):
    auditing.cut_checkpoints(force=True)
    auditing.verify_audit()
    files.configure(AUDIT_LOG_FILE=tmp_path / "away" / "log")
    assert reading.ask(Actor(name="anna"))
    tasks.audit()
    shown = page(client)
    assert "The last reading could not be done" in shown
    assert "asked for a reading" not in shown
    assert "every hash and every link is right" in shown


def lines_of(reply: Any) -> list[dict[str, Any]]:
    async def collect() -> bytes:
        return b"".join([part async for part in reply.streaming_content])

    assert reply.status_code == 200
    return [json.loads(line) for line in async_to_sync(collect)().splitlines()]


def test_the_export_has_what_is_listed_and_every_line_proves_its_hash(client, staging, monkeypatch):
    monkeypatch.setattr(excerpts, "PAGE", 3)
    found = lines_of(client.get(reverse(EXPORT)))
    assert [line["seq"] for line in found] == list(
        AuditEntry.objects.order_by("seq").values_list("seq", flat=True)
    )
    assert all(entry_hash(line["prev_hash"], line) == line["hash"] for line in found)
    some = lines_of(client.get(reverse(EXPORT), {"action": "trashed"}))
    assert {line["action"] for line in some} == {"trashed"}
    assert len(some) == AuditEntry.objects.filter(action="trashed").count() > 0


def test_the_export_wants_the_right_to_look(staging):
    client = Client()
    client.force_login(User.objects.create_user("stranger", is_staff=True))
    assert client.get(reverse(EXPORT)).status_code == 403
    assert Client().get(reverse(EXPORT)).status_code == 302


def test_an_export_is_verified_from_outside_with_the_roots_of_the_stretches_in_it(
    client, staging, files, tmp_path
):
    cut = auditing.cut_checkpoints(force=True, stretch=4)
    assert len(cut) > 1
    export = tmp_path / "export.jsonl"
    export.write_bytes(b"".join(excerpts.lines(AuditEntry.objects.all())))
    keys, log = tmp_path / "audit_key.pub", tmp_path / "log.jsonl"
    ring = auditing.ring_file(auditing.conf().audit_key_file)
    keys.write_bytes(ring.read_bytes())
    log.write_bytes(auditing.conf().audit_log_file.read_bytes())

    def check() -> tuple[int, str]:
        done = subprocess.run(
            [python(), SCRIPT, keys, log, export], capture_output=True, text=True, timeout=60, check=False
        )
        return done.returncode, done.stdout + done.stderr

    total = AuditEntry.objects.count()
    assert check() == (0, f"Sound: {len(cut)} checkpoints, {total} entries.\n")
    lines = export.read_bytes().splitlines(keepends=True)
    export.write_bytes(b"".join(lines[1:3] + lines[-2:]))
    assert check()[0] == 0, "some of the entries, each right by itself"
    forged = json.loads(lines[1]) | {"actor": "nobody"}
    export.write_bytes(lines[0] + json.dumps(forged).encode() + b"\n")
    assert check() == (1, "NOT SOUND: entry 2: wrong hash\n")


def test_the_command_writes_what_the_export_gives(client, staging, tmp_path, capsys):
    file = tmp_path / "some.jsonl"
    code, answer = command(capsys, "list", "--action", "trashed", "--jsonl", str(file))
    assert (code, answer["entries"]) == (0, AuditEntry.objects.filter(action="trashed").count())
    assert [json.loads(line) for line in file.read_bytes().splitlines()] == lines_of(
        client.get(reverse(EXPORT), {"action": "trashed"})
    )
