"""Code written against earlier connection managers: it works, and each use says what to write instead."""

from __future__ import annotations

from typing import Any

import pytest

from bus import compat
from bus.connections.manager import ConnectionManager

pytestmark = pytest.mark.django_db(transaction=True)


class Socket:
    """The least that a connection manager takes."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.closed: list[int] = []

    async def send_json(self, data: Any) -> None:
        self.sent.append(data)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        self.closed.append(code)


async def test_the_former_class_calls_the_present_manager(bus_process: None) -> None:
    manager = ConnectionManager(max_connections=1)
    with pytest.warns(DeprecationWarning, match="ConnectionManager"):
        former = compat.WebSocketManager(manager)
    first, second = Socket(), Socket()
    with pytest.warns(DeprecationWarning, match=r"connection_manager\.connect"):
        assert await former.connect(first, "run-1")
    with pytest.warns(DeprecationWarning, match="active_connections"):
        assert former.active_connections == {"run-1": first}
    with pytest.warns(DeprecationWarning, match="connect"):
        assert not await former.connect(second, "run-2")
    assert manager.is_connected("run-1")
    with pytest.warns(DeprecationWarning, match="disconnect"):
        await former.disconnect("run-1")
    assert not manager.is_connected("run-1")


def test_the_former_module_has_no_other_names() -> None:
    with pytest.raises(AttributeError, match="no attribute 'manager'"):
        _ = compat.manager
