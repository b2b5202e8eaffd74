"""Cursors, tasks and keys in the console; every change of the bus is a command too, and in the audit."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db.models import Q
from django.urls import reverse
from django.utils import timezone

from bus import acks, operating, runs
from bus.access.tokens import check_api_key, create_api_key
from bus.acts import Act, Operator, acted
from bus.log.current import event_log
from bus.models import (
    ApiKey,
    Cursor,
    RunningTask,
    TokenRevocation,
    Topic,
)
from bus.protocol.errors import BadRequest, BusError, NotAvailable, Unauthorized
from bus.tasks import trim_log
from cleanup.engine.audit import AuditRecord
from cleanup.models import AuditEntry
from cleanup.operations import verify_audit
from tests.integration import console_rows as given
from tests.integration.bus_pages import ANNA, agent, bus, client_of, do, last_act, list_of, said, topic

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("refusals_unlogged")]


# Cursors and tasks


@pytest.mark.parametrize("offset", [0, 1, 5])
@pytest.mark.sqlite_only
def test_a_cursor_is_set_forward_and_back(people, offset):
    topic("broadcast", 5)
    acks.ack("crawler", "broadcast", 3)
    shown = do(
        people["operator"], "cursor", "set_offset", Cursor.objects.get(), offset=offset, reason="lost work"
    )
    assert f"crawler stands at broadcast #{offset}." in shown
    assert acks.cursor_of("crawler", "broadcast").offset == offset
    assert last_act() == ("operator", "bus_cursor_set", "broadcast", "lost work")


@pytest.mark.sqlite_only
def test_a_cursor_beyond_the_end_is_refused(people):
    topic("broadcast", 5)
    acks.ack("crawler", "broadcast", 3)
    shown = do(people["operator"], "cursor", "set_offset", Cursor.objects.get(), offset="6", reason="r")
    assert "between 0 and 5" in shown
    assert acks.cursor_of("crawler", "broadcast").offset == 3


def test_a_cursor_is_forgotten(people):
    topic("broadcast", 5)
    acks.ack("crawler", "broadcast", 3)
    do(people["operator"], "cursor", "forget", Cursor.objects.get(), reason="gone for good")
    assert not Cursor.objects.exists()
    assert last_act()[1] == "bus_cursor_forgotten"


@pytest.mark.sqlite_only
def test_a_task_without_a_sign_of_life_is_marked_and_ended_as_failed(people):
    topic("task:stuck", 1)
    runs.take("task:stuck")
    RunningTask.objects.update(lease_until=timezone.now() - timedelta(minutes=1))
    runs.take("task:sound")
    shown = list_of(people["viewer"], "runningtask", worker="silent")
    assert "no sign of life" in shown
    assert "sound" not in re.sub(r"<script.*?</script>", "", shown, flags=re.S)
    row = RunningTask.objects.get(topic="task:stuck")
    assert "Ended as failed: task:stuck." in do(
        people["operator"], "runningtask", "end", row, reason="it hangs"
    )
    assert Topic.objects.get(name="task:stuck").end_status == "failed"
    assert list(RunningTask.objects.values_list("topic", flat=True)) == ["task:sound"]


# Keys


def test_a_rotated_key_has_the_rights_of_the_former_which_stays_good_for_a_while(people):
    row, former = create_api_key("importer", scopes=["publish:task"], topics=["task:*"])
    shown = do(people["admin"], "apikey", "rotate", row, overlap="3600")
    found = re.search(r'id="x-key"[^>]*value="([^"]+)"', shown)
    assert found is not None
    assert "good for 1 h more" in shown
    new, old = check_api_key(found[1]), check_api_key(former)
    assert new.identity.scopes == old.identity.scopes == {"publish:task"}
    assert new.identity.topic_patterns == ("task:*",)
    made = ApiKey.objects.get(name="importer")
    assert made.pk != row.pk
    row.refresh_from_db()
    assert row.expires_at is not None
    assert row.expires_at - timezone.now() < timedelta(hours=1, seconds=5)
    assert row.prefix in row.name
    assert last_act()[:3] == ("admin", "bus_key_rotated", "key:importer")


@pytest.mark.sqlite_only
def test_a_key_that_has_leaked_is_rotated_without_overlap(people):
    row, former = create_api_key("importer")
    reply = client_of(people["admin"]).post(
        reverse("admin:bus_apikey_do", args=["rotate"]), {"ids": str(row.pk), "overlap": "0"}
    )
    assert "useless from now on" in reply.content.decode()
    assert "no-store" in reply["Cache-Control"]
    with pytest.raises(Unauthorized):
        check_api_key(former)
    with pytest.raises(BadRequest):
        operating.rotate_key(ANNA, row, overlap=timedelta(hours=1))


@pytest.mark.sqlite_only
def test_the_audit_names_no_key(people):
    do(people["admin"], "apikey", "rotate", create_api_key("importer")[0], overlap="0")
    _, secret = operating.make_key(ANNA, "another")
    written = " ".join(AuditEntry.objects.values_list("evidence", flat=True))
    assert secret.split("_")[2] not in written
    assert secret.split("_")[2] not in repr(list(AuditEntry.objects.values()))


# The audit


def test_what_is_done_to_the_bus_is_part_of_the_chain_that_can_be_verified(people):
    given.connection("crawler")
    operating.disconnect(ANNA, Q(agent_id="crawler"), reason="why")
    operating.message_agent(ANNA, "crawler", "ask", {})
    assert verify_audit().sound
    assert AuditEntry.objects.filter(actor="anna", actor_kind="user").count() == 2


def test_what_cannot_be_recorded_is_not_done(monkeypatch):
    def refuse(**_: Any) -> None:
        raise NotAvailable("no audit")

    acted.connect(refuse, sender=Act)
    try:
        topic("broadcast", 2)
        acks.ack("crawler", "broadcast", 2)
        secrets = ApiKey.objects.count()
        for act in (
            lambda: operating.publish(ANNA, "broadcast", "x", {}),
            lambda: operating.trim(ANNA, "broadcast", up_to=1),
            lambda: operating.set_cursor(ANNA, "crawler", "broadcast", 0, reason="r"),
            lambda: operating.make_key(ANNA, "k"),
            lambda: operating.replay(ANNA, "broadcast", 1, 2, "crawler", reason="r"),
        ):
            with pytest.raises(NotAvailable):
                act()
    finally:
        acted.disconnect(refuse, sender=Act)
    assert len(said("broadcast")) == 2
    assert acks.cursor_of("crawler", "broadcast").offset == 2
    assert ApiKey.objects.count() == secrets
    assert not event_log().states(["agent:crawler"])


@pytest.mark.sqlite_only
def test_an_act_is_written_down_with_its_facts():
    assert AuditRecord.__struct_fields__[0] == "at_us"
    topic("broadcast", 3)
    operating.trim(ANNA, "broadcast", max_age=timedelta(days=1), reason="r")
    evidence = json.loads(AuditEntry.objects.get(action="bus_trimmed").evidence)
    assert evidence == {"first": 1, "older_than_s": 86_400}


# Commands


def test_every_change_is_a_command(people):
    runs.take("task:7")
    topic("task:7", 1)
    topic("broadcast", 4)
    agent("crawler")
    assert bus("message", "--agent", "crawler", "ask", '{"a": 1}')[0]["offset"] == 1
    (found,) = bus("replay", "broadcast", "--from", "2", "--to", "3", "--agent", "crawler", "--reason", "r")
    assert (found["events"], found["inbox"], found["first"]) == (2, "agent:crawler", 2)
    assert bus("agents")[0]["waiting"] == 3
    assert bus("skip", "crawler", "--reason", "r")[0]["offset"] == 3
    assert bus("cursors", "agent:crawler")[0]["offset"] == 3
    assert bus("cursors", "agent:crawler", "--consumer", "crawler", "--set", "1")[0]["lag"] == 2
    assert bus("cursors", "--consumer", "crawler")[0]["offset"] == 1
    assert bus("cursors", "agent:crawler", "--consumer", "crawler", "--forget")[0]["forgotten"]
    assert [row["topic"] for row in bus("tasks")] == ["task:7"]
    assert bus("end", "task:7", "--reason", "r")[0]["status"] == "failed"
    assert bus("tasks") == []
    assert bus("trim", "broadcast", "--up-to", "3", "--reason", "r")[0]["trimmed"] == 3
    acts = AuditEntry.objects.filter(action__startswith="bus_")
    assert set(acts.values_list("actor_kind", flat=True)) == {"command"}
    assert acts.count() == 7


def test_a_trim_by_the_command_is_audited_whatever_says_how_much_goes():
    topic("broadcast", 6)
    assert bus("trim", "broadcast", "--max-events", "4", "--reason", "full")[0]["trimmed"] == 2
    assert bus("trim", "broadcast", "--max-age", "1d", "--max-events", "5")[0]["trimmed"] == 0
    assert bus("trim", "broadcast")[0]["trimmed"] == 0
    assert bus("trim") == []
    found = AuditEntry.objects.filter(action="bus_trimmed").order_by("seq")
    assert set(found.values_list("actor", "actor_kind")) == {(Operator.at_the_shell().name, "command")}
    assert [(one.path, one.reason, json.loads(one.evidence)) for one in found] == [
        ("broadcast", "full", {"first": 1, "kept": 4}),
        ("broadcast", "", {"first": 3, "kept": 5, "older_than_s": 86_400}),
        ("broadcast", "", {"by_rules": True}),
        ("*", "", {"by_rules": True}),
    ]


def test_what_beat_trims_is_nobodys_act():
    topic("broadcast", 2)
    trim_log()
    assert not AuditEntry.objects.exists()


def test_an_event_from_the_shell_is_traffic_unless_somebody_says_why():
    bus("publish", "broadcast", "notice", "{}")
    assert not AuditEntry.objects.exists()
    (place,) = bus("publish", "broadcast", "notice", "{}", "--key", "k", "--run", "r7", "--reason", "drill")
    (kind, who, reason) = AuditEntry.objects.values_list("action", "actor_kind", "reason").get()
    assert (kind, who, reason) == ("bus_published", "command", "drill")
    assert (place["offset"], said("broadcast")[-1]["run_id"]) == (2, "r7")


@pytest.mark.sqlite_only
def test_keys_are_made_rotated_changed_and_revoked_by_the_command():
    (made,) = bus("keys", "add", "importer", "--scope", "publish", "--only", "task:*", "--ttl", "1d")
    assert check_api_key(made["key"]).identity.topic_patterns == ("task:*",)
    (rotated,) = bus("keys", "rotate", "importer", "--overlap", "1h")
    assert check_api_key(rotated["key"]).identity.scopes == {"publish"}
    assert bus("keys", "rights", "importer", "--scope", "publish:task")[0]["scopes"] == ["publish:task"]
    assert bus("keys", "revoke", "importer")[0]["state"] == "revoked"
    assert {row["name"]: row["state"] for row in bus("keys")}["importer"] == "revoked"
    with pytest.raises(CommandError, match="there is a key"):
        bus("keys", "add", "importer")


@pytest.mark.sqlite_only
def test_tokens_are_taken_back_and_accepted_again_by_the_command():
    call_command("bus", "token", "--revoke", "--agent", "crawler", stdout=StringIO())
    assert TokenRevocation.objects.get().agent_id == "crawler"
    call_command("bus", "token", "--accept", "--agent", "crawler", stdout=StringIO())
    assert not TokenRevocation.objects.exists()
    assert last_act()[1] == "bus_tokens_accepted"
    with pytest.raises(SystemExit) as end:
        call_command("bus", "token", "--accept", "--agent", "crawler", stdout=StringIO())
    assert end.value.code == 1


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    "words",
    [
        ("message", "--agent", "not an id", "x", "{}"),
        ("message", "--agent", "a", "x", "{"),
        ("replay", "nowhere", "--from", "1", "--to", "1", "--agent", "a", "--reason", "r"),
        ("skip", "stranger", "--reason", "r"),
        ("cursors",),
        ("cursors", "nowhere"),
        ("cursors", "broadcast", "--set", "1"),
        ("cursors", "broadcast", "--consumer", "x", "--forget"),
        ("keys", "revoke"),
        ("keys", "revoke", "nobody"),
        ("trim", "broadcast", "--up-to", "1", "--max-events", "1"),
        ("trim", "--up-to", "1"),
    ],
)
def test_the_command_refuses_what_cannot_be(words):
    topic("broadcast", 1)
    before = given.rows()
    with pytest.raises((CommandError, BusError)) as refusal:
        bus(*words)
    assert getattr(refusal.value, "returncode", 2) == 2
    assert given.rows() == before
