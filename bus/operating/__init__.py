"""The verbs of operators: what the console and `manage.py bus` do to the bus, each with who does it.

Every change is checked, done and told (`bus.acts`) in one transaction, so that there is no change without its
record. `clients` is about who is connected, `topics` about what was said, `readers` about how far somebody
has read, `keys` about who may come in. What is refused raises `BusError`, and nothing was done.
"""

from __future__ import annotations

from bus.acts import Operator
from bus.operating.clients import disconnect, message_agent, message_clients
from bus.operating.keys import (
    accept_tokens,
    change_key,
    make_key,
    revoke_key,
    revoke_tokens,
    rotate_key,
)
from bus.operating.readers import forget_cursor, set_cursor, skip_inbox
from bus.operating.topics import MOST_REPLAYED, Replayed, end_topic, publish, replay, trim, trim_by_rules

__all__ = [
    "MOST_REPLAYED",
    "Operator",
    "Replayed",
    "accept_tokens",
    "change_key",
    "disconnect",
    "end_topic",
    "forget_cursor",
    "make_key",
    "message_agent",
    "message_clients",
    "publish",
    "replay",
    "revoke_key",
    "revoke_tokens",
    "rotate_key",
    "set_cursor",
    "skip_inbox",
    "trim",
    "trim_by_rules",
]
