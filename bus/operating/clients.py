"""What operators do to those who are connected: close them, and send them something."""

from __future__ import annotations

from functools import partial
from typing import Any

from django.db import transaction
from django.db.models import Q

from bus import layer, publishing
from bus.acts import Operator, note
from bus.connections import leases, orders
from bus.log import Appended
from bus.models import ActiveConnection
from bus.protocol.errors import BadRequest, DisconnectCode
from bus.protocol.topics import is_agent_id
from bus.publishing import encode_event

#: Bytes of a reason for a close: rows hold 120 characters, a close frame 123 bytes.
MAX_REASON = 120


def disconnect(
    operator: Operator,
    wanted: Q,
    *,
    code: int = DisconnectCode.FORCED,
    reason: str = "",
) -> list[str]:
    """Have connections closed, on whichever server they are; return their client ids.

    It is noted in their rows, so that it happens within a second even without a channel layer.

    Args:
        operator: who wants it.
        wanted: which rows of `ActiveConnection`; not all of them.
        code: close code, 3000 to 4999; from 3500 to 3999 and from 4500 clients do not come back.
        reason: told to the client.

    Raises:
        BadRequest: the reason is too long for a close frame.
    """
    if not wanted:
        raise BadRequest("disconnect whom?")
    if len(reason.encode()) > MAX_REASON:
        raise BadRequest(f"a reason that is told to a client has at most {MAX_REASON} bytes")
    words = reason or DisconnectCode.FORCED.reason
    with transaction.atomic():
        clients = leases.request_close(wanted, int(code), words)
        for client_id, who in _names(clients):
            transaction.on_commit(
                partial(layer.control, "disconnect", client_id=client_id, code=int(code), reason=words)
            )
            note(operator, "bus_disconnected", who, reason=reason, client=client_id, code=int(code))
    return clients


def _names(clients: list[str]) -> list[tuple[str, str]]:
    """Return client ids, each with the name of whom it belongs to."""
    rows = ActiveConnection.objects.filter(pk__in=clients).values_list("client_id", "agent_id", "user_id")
    return [
        (client, f"agent:{agent}" if agent else f"user:{user}" if user else client)
        for client, agent, user in rows
    ]


def message_agent(
    operator: Operator, agent_id: str, event_type: str, data: Any, *, key: str | None = None
) -> Appended:
    """Put an event into an agent's inbox: it gets it now, or when it is back.

    Raises:
        BadRequest: this is no agent id, or no event.
        BusError: as `bus.publishing.publish`.
    """
    if not is_agent_id(agent_id):
        raise BadRequest(f"not an agent id: {agent_id[:40]!r}")
    topic = f"agent:{agent_id}"
    with transaction.atomic():
        place = publishing.publish(topic, event_type, data, key, by=operator.identity)
        note(operator, "bus_messaged", topic, event_type=event_type, offset=place.offset, id=place.event_id)
    return place


def message_clients(operator: Operator, wanted: Q, event_type: str, data: Any) -> list[str]:
    """Send an object to connections, outside of all topics; return their client ids.

    For people and readers without a name, who have no inbox: nothing is stored, and whoever is gone by then
    does not get it.

    Raises:
        BusError: this is no event.
    """
    payload = encode_event(event_type, data)
    with transaction.atomic():
        clients = orders.message(wanted, payload)
        for client_id, who in _names(clients):
            note(operator, "bus_messaged", who, event_type=event_type, client=client_id)
    return clients
