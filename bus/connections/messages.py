"""The ready-made messages of a connection manager: output, status, errors, and the states of a workflow.

Each is one event with a fixed type, sent by `send_event`; all but the pong are stored, so that they reach an
agent that is away.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any


class Messages(ABC):
    """Messages by name, for whoever can send an event."""

    @abstractmethod
    async def send_event(
        self, task_id: str, event_type: str, data: dict[str, Any], queue_if_disconnected: bool = True
    ) -> bool:
        """Send an event; return whether it is stored, or was sent."""

    async def send_personal_message(self, message: Any, agent_id: str) -> bool:
        """Put a message into an agent's inbox."""
        return await self.send_event(agent_id, "agent.message", {"message": message})

    async def send_output(self, task_id: str, message: str) -> bool:
        """Send a line of output."""
        return await self.send_event(task_id, "output", {"message": message})

    async def send_status(self, task_id: str, status: str, message: str | None = None) -> bool:
        """Send a change of state."""
        data = {"status": status, "message": message or status}
        return await self.send_event(task_id, "workflow_state_changed", data)

    async def send_error(self, task_id: str, error_type: str, message: str) -> bool:
        """Send an error."""
        return await self.send_event(task_id, "error", {"error_type": error_type, "message": message})

    async def send_pong(self, task_id: str) -> bool:
        """Answer a ping. Not stored."""
        return await self.send_event(task_id, "pong", {}, queue_if_disconnected=False)

    async def send_workflow_paused(self, task_id: str, message: str = "Workflow paused") -> bool:
        """Say that a workflow is paused."""
        return await self.send_event(task_id, "workflow_paused", {"message": message, "status": "paused"})

    async def send_workflow_resumed(self, task_id: str, message: str = "Workflow resumed") -> bool:
        """Say that a workflow goes on."""
        return await self.send_event(task_id, "workflow_resumed", {"message": message, "status": "executing"})

    async def send_workflow_cancelled(self, task_id: str, message: str = "Workflow cancelled") -> bool:
        """Say that a workflow was cancelled."""
        return await self.send_event(task_id, "workflow_failed", {"message": message, "status": "cancelled"})
