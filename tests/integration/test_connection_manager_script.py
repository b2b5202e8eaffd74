"""The script by which the consolidated connection manager was specified; only its imports are adapted."""

from __future__ import annotations

from unittest.mock import AsyncMock, MagicMock

import pytest

from bus.connections.manager import ConnectionManager

pytestmark = pytest.mark.django_db(transaction=True)


async def test_connection_manager(bus_process: None) -> None:
    cm = ConnectionManager(max_connections=5)

    # Create mock websockets
    ws1 = MagicMock()
    ws1.send_json = AsyncMock()
    ws1.close = AsyncMock()

    ws2 = MagicMock()
    ws2.send_json = AsyncMock()
    ws2.close = AsyncMock()

    # Test connect
    result = await cm.connect(ws1, "task_1", "session_1")
    assert result is True
    assert cm.is_connected("task_1")

    # Test send_event
    result = await cm.send_event("task_1", "output", {"message": "Hello"})
    assert result is True
    assert ws1.send_json.called

    # Test reconnection (same task_id)
    result = await cm.connect(ws2, "task_1")
    assert result is True
    assert ws1.close.called  # Old connection closed

    # Test disconnect
    await cm.disconnect("task_1")
    assert not cm.is_connected("task_1")

    # Test connection limit
    mocks = []
    for i in range(5):
        ws = MagicMock()
        ws.send_json = AsyncMock()
        mocks.append(ws)
        result = await cm.connect(ws, f"limit_task_{i}")
        assert result is True

    # 6th should fail
    ws6 = MagicMock()
    result = await cm.connect(ws6, "limit_task_6")
    assert result is False

    # Cleanup
    for i in range(5):
        await cm.disconnect(f"limit_task_{i}")

    stats = await cm.get_stats()
    assert stats["active_connections"] == 0
