"""A connection as this process holds it: the object to send to, who it is, and what it has done so far.

`Connection` is all that is asked of a socket, so that any object with the two methods can be one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from django.utils import timezone

from bus.connections.leases import Details
from bus.layer import Control


class Connection(Protocol):
    """Anything that can be sent JSON and be closed."""

    async def send_json(self, data: Any) -> None:
        """Send one JSON object."""

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close, and say why."""


class Inbox(Protocol):
    """Reads for a connection that does not read by itself."""

    def end(self) -> None:
        """Read no more."""

    async def until(self, topic: str, offset: int) -> None:
        """Wait until the connection was given the event at `offset`; not for ever."""


@dataclass(slots=True, eq=False)
class Live:
    """A connection that this process holds."""

    connection: Connection
    details: Details
    generation: int = 0
    #: Whether it reads its inbox itself, so that published events reach it by way of the hub.
    reads_inbox: bool = False
    #: What reads it for the connection otherwise.
    inbox: Inbox | None = None
    #: The agent's former connection here, until it is closed.
    former: Live | None = None
    last_activity: datetime = field(default_factory=timezone.now)
    events_in: int = 0
    events_out: int = 0
    #: Steady seconds at which it began.
    began: float = field(default_factory=time.monotonic)
    #: What it is subscribed to, and what it owes, asked at each heartbeat.
    topics: Callable[[], list[str]] = list
    pending_bytes: Callable[[], int] = int
    #: Begins to read a topic because somebody has ordered it; objects that are no sockets cannot.
    subscribe: Callable[[Control], object] | None = None


class HasDetails(Protocol):
    """A subscriber that says who it is."""

    @property
    def details(self) -> Details:
        """Who is connected."""


def is_meant(order: Control, whom: HasDetails) -> bool:
    """Tell whether an order is about this connection: by client, agent, user or key, whichever it names."""
    details = whom.details
    named = (
        (order.client_id, details.client_id),
        (order.agent_id, details.agent_id),
        (order.user_id, details.user_id),
        (order.key_prefix, details.key_prefix),
    )
    return any(wanted and wanted == own for wanted, own in named)
