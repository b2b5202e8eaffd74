"""What most tutorials show, to compare with: a Channels consumer, each socket a member of the group.

`/live` sends to the group at once; `/stored` writes a row first, in a transaction that takes the next offset.
It acknowledges when that is done, keeps no cursor, replays nothing and bounds no queue.
"""

from __future__ import annotations

import json
from typing import Any

import django

django.setup()

from channels.db import database_sync_to_async  # noqa: E402  (Django comes first)
from channels.generic.websocket import AsyncWebsocketConsumer  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.db import transaction  # noqa: E402
from django.db.models import F  # noqa: E402
from django.urls import path  # noqa: E402
from django.utils import timezone  # noqa: E402

from bus.models import Event, Topic  # noqa: E402

GROUP = "bench"


class Naive(AsyncWebsocketConsumer):  # type: ignore[misc]
    """One socket."""

    topic = ""

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """Take a greeting or an event."""
        if text_data == "reader":
            await self.channel_layer.group_add(GROUP, self.channel_name)
            await self.send("welcome")
        elif text_data == "publisher":
            await self.send("welcome")
        else:
            await self.pass_on(json.loads(text_data or ""))
            await self.send("acknowledged")

    async def pass_on(self, event: dict[str, Any]) -> None:
        """Send the event to everyone."""
        await self.channel_layer.group_send(GROUP, {"type": "event", "event": event})

    async def event(self, message: dict[str, Any]) -> None:
        """Send an event to this client."""
        await self.send(json.dumps(message["event"]))

    async def disconnect(self, code: int) -> None:
        """Leave the group."""
        await self.channel_layer.group_discard(GROUP, self.channel_name)


class NaiveStored(Naive):
    """The same with a row for each event."""

    async def pass_on(self, event: dict[str, Any]) -> None:
        """Store, then send."""
        await database_sync_to_async(_store)(self.scope["url_route"]["kwargs"]["topic"], event)
        await super().pass_on(event)


def _store(name: str, event: dict[str, Any]) -> None:
    now = timezone.now()
    with transaction.atomic():
        topic, _ = Topic.objects.get_or_create(name=name, defaults={"epoch": "naive"})
        Topic.objects.filter(pk=topic.pk).update(last_offset=F("last_offset") + 1)
        topic.refresh_from_db(fields=["last_offset"])
        Event.objects.create(
            topic=topic,
            offset=topic.last_offset,
            event_type=event["event_type"],
            payload=json.dumps(event),
            created_at=now,
        )


_routes: Any = [
    path("live", Naive.as_asgi()),
    path("stored/<str:topic>", NaiveStored.as_asgi()),
]
application = ProtocolTypeRouter({"websocket": URLRouter(_routes)})
