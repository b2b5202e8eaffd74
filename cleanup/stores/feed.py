"""What cleanup tells the bus: audit entries on `cleanup:audit`, the progress of a run on `cleanup:run:<id>`.

Told after the commit, and never a reason to fail: whoever needs certainty reads the rows. Up to 20 entries
that were written together are told one by one, more as one summary, so that a run of a million files does not
flood the bus.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Any

from django.db import DatabaseError, transaction

from bus.publishing import publish
from cleanup.engine.audit import AuditEntry

logger = logging.getLogger(__name__)

AUDIT_TOPIC = "cleanup:audit"

#: More entries of one write than this are told as one event.
_ONE_BY_ONE = 20

#: 10 a second: more than an eye can follow, few enough that their commits do not slow the run.
PROGRESS_INTERVAL = timedelta(milliseconds=100)


def announce(entries: Sequence[AuditEntry]) -> None:
    """Tell of audit entries once the open transaction is committed."""
    if len(entries) <= _ONE_BY_ONE:
        events = [("audit.entry", _as_event(entry)) for entry in entries]
    else:
        events = [("audit.batch", _summary(entries))]
    transaction.on_commit(partial(_tell_all, AUDIT_TOPIC, events), robust=True)


def _as_event(entry: AuditEntry) -> dict[str, Any]:
    names = ("seq", "at_us", "actor", "actor_kind", "action", "run", "item", "area", "path", "size", "reason")
    return {name: getattr(entry, name) for name in (*names, "policy_version")}


def _summary(entries: Sequence[AuditEntry]) -> dict[str, Any]:
    last = entries[-1]
    return {
        "first_seq": entries[0].seq,
        "seq": last.seq,
        "at_us": last.at_us,
        "actor": last.actor,
        "actor_kind": last.actor_kind,
        "area": last.area,
        "run": last.run,
        "policy_version": last.policy_version,
        "count": len(entries),
        "actions": dict(Counter(entry.action for entry in entries)),
        "bytes": sum(entry.size or 0 for entry in entries if entry.path),
    }


def _tell_all(topic: str, events: Sequence[tuple[str, dict[str, Any]]]) -> None:
    for event_type, data in events:
        tell(topic, event_type, data)


def tell(topic: str, event_type: str, data: dict[str, Any]) -> None:
    """Publish one event now; a bus in trouble is logged and changes nothing."""
    try:
        publish(topic, event_type, data, tags={"key": event_type})
    except (DatabaseError, OSError) as error:
        logger.warning("%s was not told on %s: %s", event_type, topic, error)
    except Exception:
        # The bus's own errors: the change that this tells of is committed, so nothing may be undone for it.
        logger.exception("%s was not told on %s", event_type, topic)


class RunProgress:
    """Tells how far a run is, on its own topic; at most ten times a second, the last word always."""

    def __init__(self, run_id: object) -> None:
        self._topic = f"cleanup:run:{run_id}"
        self._next = 0.0

    def tell(self, data: dict[str, Any], *, final: bool = False) -> None:
        """Publish `data` unless something was told a moment ago."""
        now = time.monotonic()
        if now < self._next and not final:
            return
        self._next = now + PROGRESS_INTERVAL.total_seconds()
        tell(self._topic, "run.finished" if final else "run.progress", data)
