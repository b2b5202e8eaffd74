"""Steps of the tests of the bus in the console: who clicks what, and what is shown and recorded then."""

from __future__ import annotations

import json
from io import StringIO
from typing import Any

from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import Client
from django.urls import reverse

from bus.acts import Operator
from bus.log.current import event_log
from bus.models import (
    Agent,
    Topic,
)
from bus.publishing import publish
from cleanup.models import AuditEntry

ANNA = Operator(name="anna")


def client_of(person: User) -> Client:
    client = Client()
    client.force_login(person)
    return client


def do(person: User, model: str, name: str, row: Any = None, **answers: Any) -> str:
    """Answer the page of a change, and return what is shown then."""
    base = reverse(f"admin:bus_{model}_do", args=[name])
    ids = {} if row is None else {"ids": str(row.pk)}
    reply = client_of(person).post(base, {**ids, **answers}, follow=True)
    assert reply.status_code == 200, reply.status_code
    return str(reply.content.decode())


def page_of(person: User, row: Any, **query: str) -> str:
    reply = client_of(person).get(reverse(f"admin:bus_{row._meta.model_name}_change", args=[row.pk]), query)
    assert reply.status_code == 200
    return str(reply.content.decode())


def list_of(person: User, model: str, **query: str) -> str:
    reply = client_of(person).get(reverse(f"admin:bus_{model}_changelist"), query)
    assert reply.status_code == 200
    return str(reply.content.decode())


def bus(*words: str) -> list[Any]:
    """Call the command with `--json` and return what it printed."""
    out = StringIO()
    call_command("bus", *words, "--json", stdout=out)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def last_act() -> tuple[str, str, str, str | None]:
    """Who, what, to what, and why, of the latest act in the audit."""
    entry = AuditEntry.objects.filter(action__startswith="bus_").latest("seq")
    return entry.actor, entry.action, entry.path, entry.reason


def agent(name: str = "crawler", *, sent: int = 0) -> Agent:
    for number in range(sent):
        publish(f"agent:{name}", "agent.message", {"number": number})
    return Agent.objects.create(agent_id=name, generation=1, connects=3)


def topic(name: str, events: int) -> Topic:
    for number in range(1, events + 1):
        publish(name, "agent.message", {"number": number})
    return Topic.objects.get(name=name)


def said(name: str) -> list[Any]:
    """The payloads of a topic, as they are."""
    return [json.loads(event.payload) for event in event_log().read(name, limit=5_000).events]
