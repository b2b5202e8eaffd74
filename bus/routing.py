"""WebSocket addresses of the bus."""

from __future__ import annotations

from typing import Any

from django.urls import path, re_path

from bus.consumers import ClientSocket
from bus.plain import AgentSocket, ProgressSocket
from bus.sockets import Receive, Scope, Send


async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """Close a socket at an address that does not exist, before it is accepted: the client gets a 403."""
    await receive()
    await send({"type": "websocket.close"})


websocket_urlpatterns: list[Any] = [
    path("connection/websocket", ClientSocket.as_asgi()),
    path("ws/agents/<str:agent_id>/", AgentSocket.as_asgi()),
    path("ws/progress/<str:task_id>/", ProgressSocket.as_asgi()),
    re_path("", refuse),
]
