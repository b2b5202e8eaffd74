"""The Python client of the bus: a stock Centrifugo SDK with an agent's identity, acks and ends of topics.

    async with BusClient(url, agent_id="a7", token=token) as client:
        async for event in client.events("task:8f2c"):
            ...
            await client.ack(event.topic, event.offset)

It needs no Django: this folder is the wheel `xnai-bus`, over `centrifuge-python` and `stamina` alone.
"""

from __future__ import annotations

from bus.client.client import BusClient
from bus.client.errors import BufferFull, BusClientError, Closed, Refused
from bus.client.events import Event, Place
from bus.client.stats import ClientStats

__all__ = ["BufferFull", "BusClient", "BusClientError", "ClientStats", "Closed", "Event", "Place", "Refused"]
