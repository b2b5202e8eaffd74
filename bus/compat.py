"""Names of earlier connection managers, for code that was written against them. Each use warns.

`WebSocketManager` and `ws_manager` stand for `bus.connections.manager.ConnectionManager` and
`connection_manager`, which they call; nothing is kept here. They go with the next major version.
"""

from __future__ import annotations

import warnings
from typing import Any

from bus.connections.live import Connection
from bus.connections.manager import ConnectionManager, connection_manager


def _deprecated(name: str, instead: str) -> None:
    warnings.warn(f"{name} is deprecated; use {instead}", DeprecationWarning, stacklevel=3)


class WebSocketManager:
    """Deprecated: `bus.connections.manager.ConnectionManager`."""

    def __init__(self, manager: ConnectionManager = connection_manager) -> None:
        _deprecated("WebSocketManager", "bus.connections.manager.ConnectionManager")
        self._manager = manager

    @property
    def active_connections(self) -> dict[str, Connection]:
        """Connections of this process by agent id; a copy."""
        _deprecated("active_connections", "get_stats() and get_websocket()")
        return self._manager.sockets()

    async def connect(self, websocket: Connection, run_id: str) -> bool:
        """See `ConnectionManager.connect`. The socket is accepted already."""
        _deprecated("WebSocketManager.connect", "connection_manager.connect")
        return await self._manager.connect(websocket, run_id)

    async def disconnect(self, run_id: str) -> None:
        """See `ConnectionManager.disconnect`."""
        _deprecated("WebSocketManager.disconnect", "connection_manager.disconnect")
        await self._manager.disconnect(run_id)

    async def send_event(self, run_id: str, event: Any) -> bool:
        """See `ConnectionManager.send_event`; `event` has `event_type` and `data`."""
        _deprecated("WebSocketManager.send_event", "connection_manager.send_event")
        return await self._manager.send_event(run_id, event.event_type, event.data)


def __getattr__(name: str) -> Any:
    if name == "ws_manager":
        _deprecated("ws_manager", "bus.connections.manager.connection_manager")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return WebSocketManager()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
