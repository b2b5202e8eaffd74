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


#: Django's own `path` expects views; Channels routes ASGI applications by it.
_sockets: dict[str, Any] = {
    "connection/websocket": ClientSocket.as_asgi(),
    "ws/agents/<str:agent_id>/": AgentSocket.as_asgi(),
    "ws/progress/<str:task_id>/": ProgressSocket.as_asgi(),
}
_nowhere: Any = refuse

websocket_urlpatterns = [*(path(route, socket) for route, socket in _sockets.items()), re_path("", _nowhere)]
