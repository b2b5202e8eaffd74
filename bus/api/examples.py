"""An example of each command, for the documentation page and for `docs/http.md`; the tests send them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """What to send, what comes back, and what comes back when it is refused."""

    says: dict[str, Any]
    gives: dict[str, Any]
    refused: tuple[int, str] = (103, "permission denied")

    def for_openapi(self) -> dict[str, Any]:
        """Return it as OpenAPI has it."""
        code, message = self.refused
        refused = {"error": {"code": code, "message": message}}
        given = {"done": {"value": self.gives}, "refused": {"value": refused}}
        unreadable = {"error": {"code": 107, "message": "channel: Field required"}}
        nobody = {"error": {"code": 101, "message": "unauthorized"}}
        return {
            "requestBody": {"content": {"application/json": {"example": self.says}}},
            "responses": {
                200: {"content": {"application/json": {"examples": given}}},
                400: {"content": {"application/json": {"example": unreadable}}},
                401: {"content": {"application/json": {"example": nobody}}},
            },
        }


_PLACE = {"offset": 1, "epoch": "5c0f8a12d3e4b596"}
_CLIENT = "f1b0c6c1-6d2f-4f4e-9b57-2f6f1f0d8f11"
_EVENT = {"event_type": "task.progress", "data": {"done": 3, "total": 10}}

EXAMPLES: dict[str, Example] = {
    "publish": Example(
        says={"channel": "task:8f2c", "data": _EVENT, "idempotency_key": "8f2c-3"},
        gives={"result": _PLACE},
    ),
    "broadcast": Example(
        says={"channels": ["task:8f2c", "task:9d1e"], "data": _EVENT},
        gives={
            "result": {"responses": [{"result": _PLACE}, {"error": {"code": 400, "message": "topic ended"}}]}
        },
    ),
    "history": Example(
        says={"channel": "task:8f2c", "limit": 10, "since": {"offset": 0, "epoch": ""}},
        gives={"result": {"publications": [{"offset": 1, "data": _EVENT}], **_PLACE}},
        refused=(112, "unrecoverable position"),
    ),
    "history_remove": Example(says={"channel": "task:8f2c"}, gives={"result": {}}),
    "presence": Example(
        says={"channel": "task:8f2c"},
        gives={"result": {"presence": {_CLIENT: {"user": "a7", "client": _CLIENT}}}},
        refused=(108, "not available"),
    ),
    "presence_stats": Example(
        says={"channel": "task:8f2c"},
        gives={"result": {"num_clients": 1, "num_users": 1}},
        refused=(108, "not available"),
    ),
    "rpc": Example(
        says={"method": "bus.end", "params": {"topic": "task:8f2c", "status": "completed"}},
        gives={"result": {"data": {"topic": "task:8f2c", **_PLACE, "id": "9f", "duplicate": False}}},
        refused=(104, "method not found"),
    ),
    "channels": Example(
        says={"pattern": "task:*"}, gives={"result": {"channels": {"task:8f2c": {"num_clients": 1}}}}
    ),
    "info": Example(
        says={},
        gives={
            "result": {
                "nodes": [
                    {
                        "uid": "web-1.17.0a1b2c3d",
                        "name": "web-1",
                        "version": "xnai 0.1",
                        "num_clients": 1,
                        "num_users": 1,
                        "num_subs": 2,
                        "num_channels": 2,
                        "uptime": 60,
                        "metrics": {"interval": 10.0, "items": {"layer_up": 1.0}},
                    }
                ]
            }
        },
    ),
    "connections": Example(
        says={"user": "a7"},
        gives={
            "result": {
                "connections": {
                    _CLIENT: {
                        "app_name": "python",
                        "app_version": "",
                        "transport": "websocket",
                        "protocol": "json",
                        "user": "a7",
                        "state": {"channels": {"task:8f2c": {}}},
                    }
                }
            }
        },
    ),
    "disconnect": Example(
        says={"user": "a7", "disconnect": {"code": 4000, "reason": "come again"}}, gives={"result": {}}
    ),
    "unsubscribe": Example(says={"user": "a7", "channel": "task:8f2c"}, gives={"result": {}}),
    "subscribe": Example(says={"user": "a7", "channel": "task:8f2c"}, gives={"result": {}}),
    "refresh": Example(
        says={"user": "a7", "expired": True}, gives={"result": {}}, refused=(108, "not available")
    ),
    "revoke_token": Example(says={"uid": "7c9e6679", "expire_at": 1_795_000_000}, gives={"result": {}}),
    "invalidate_user_tokens": Example(says={"user": "a7"}, gives={"result": {}}),
    "batch": Example(
        says={
            "commands": [
                {"publish": {"channel": "task:8f2c", "data": _EVENT}},
                {"presence_stats": {"channel": "task:8f2c"}},
            ],
            "parallel": False,
        },
        gives={"replies": [{"publish": _PLACE}, {"presence_stats": {"num_clients": 1, "num_users": 1}}]},
        refused=(106, "a batch has at most 100 commands"),
    ),
}

_TOPIC = {"topic": "task:8f2c", "epoch": _PLACE["epoch"], "first_offset": 1, "last_offset": 1}
_MOMENT = "2026-11-22T09:15:02.113204+00:00"

#: What the reading addresses give, by operation.
READINGS: dict[str, Any] = {
    "topics": [{**_TOPIC, "ended_at": None}],
    "topic_events": {
        **_TOPIC,
        "events": [
            {
                "offset": 1,
                "event_type": "task.progress",
                "created_at": _MOMENT,
                "data": _EVENT,
                "tags": {"id": "9f0c2b7a61d8e453"},
            }
        ],
    },
    "list_connections": [
        {
            "client": _CLIENT,
            "agent_id": "a7",
            "user": "a7",
            "server": "web-1.17.0a1b2c3d",
            "transport": "centrifugo",
            "address": "10.0.0.7",
            "connected_at": _MOMENT,
            "last_heartbeat": _MOMENT,
            "topics": ["agent:a7", "broadcast"],
            "pending_bytes": 0,
        }
    ],
}


def reading(operation: str) -> dict[str, Any]:
    """Return the example of a reading address, and of its refusals, as OpenAPI has them."""
    refusals = {
        400: (107, "a topic is 1 to 200 characters of A-Z a-z 0-9 _ . : @ -"),
        401: (101, "unauthorized"),
        403: (103, "permission denied"),
        404: (102, "unknown channel"),
    }
    shown: dict[int, Any] = {200: READINGS[operation]} | {
        status: {"error": {"code": code, "message": message}} for status, (code, message) in refusals.items()
    }
    return {
        "responses": {
            status: {"content": {"application/json": {"example": value}}} for status, value in shown.items()
        }
    }
