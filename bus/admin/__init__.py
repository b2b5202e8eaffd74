"""The pages of the bus in the console: who is connected, what was said, who may come in.

Rows are read here and never written: a person acts through the verbs of `bus.connections.manager` and
`bus.access.tokens`, from pages that ask first (`bus.console`). Lists stay fast however long the log is: no
full counts, filters that have an index.
"""

from __future__ import annotations

from bus.admin import agents, connections, cursors, keys, log, revocations, running, topics

__all__ = ["agents", "connections", "cursors", "keys", "log", "revocations", "running", "topics"]
