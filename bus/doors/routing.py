"""Addresses of the bus that are no views: WebSockets, and the streams of server-sent events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.urls import path, re_path

from bus.doors.consumers import ClientSocket
from bus.doors.events import EventStream, is_stream
from bus.doors.plain import AgentSocket, ProgressSocket
from bus.doors.sockets import Receive, Scope, Send


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
_stream = EventStream.as_asgi()

websocket_urlpatterns = [*(path(route, socket) for route, socket in _sockets.items()), re_path("", _nowhere)]


def with_streams(django: Callable[..., Any]) -> Callable[..., Any]:
    """Return an HTTP application that answers the streams itself and leaves all else to `django`.

    A view would cost a stream its back-pressure: Django does not tell what the server still owes a client.
    """

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await (_stream if is_stream(scope) else django)(scope, receive, send)

    return application
