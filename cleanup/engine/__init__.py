"""The retention engine: what may go, when, and how to take it back. No framework, only files.

The deciding modules (`policy`, `plan`, `states`, `audit`) touch no disk and read no clock; the doing ones
(`area`, `scan`, `trash`, `restore`, `purge`) touch nothing but an open area. The way of a file:

    walk -> judge -> build_plan -> prepare -> move -> (grace period) -> purge, or restore

Whoever calls keeps the rows, the time and the audit; `daemon` is the smallest caller there is.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cleanup.engine.daemon import ResultCleanupDaemon

__all__ = ["ResultCleanupDaemon"]


def __getattr__(name: str) -> Any:
    """Load the daemon when it is asked for: whoever only judges needs neither asyncio nor HTTP."""
    if name == "ResultCleanupDaemon":
        from cleanup.engine.daemon import ResultCleanupDaemon

        return ResultCleanupDaemon
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
