"""What cleanup tells the bus: audit entries on `cleanup:audit`, how far a job is on a topic of its own.

Never a reason to fail: whoever needs certainty reads the rows. Up to 20 entries that were written together
are told one by one, more as one summary, so that a run of a million files does not flood the bus. All of it
is told after the commit, but for the end of a job: that is part of the transaction in which the job ends, so
that a job which is over leaves no topic that is not.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

from django.db import DatabaseError, transaction

from bus.protocol.errors import TopicEnded
from bus.publishing import end, publish
from cleanup.engine.audit import AuditEntry

logger = logging.getLogger(__name__)

AUDIT_TOPIC = "cleanup:audit"

#: More entries of one write than this are told as one event.
_ONE_BY_ONE = 20

#: 10 a second: more than an eye can follow, few enough that their commits do not slow the run.
PROGRESS_INTERVAL = timedelta(milliseconds=100)

#: How the topic of a job ends, by the job's last state; in every other state it has failed.
_ENDS = {"done": "completed", "reported": "completed", "rejected": "cancelled", "stopped": "cancelled"}


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
    with harmless(topic, event_type):
        publish(topic, event_type, data, tags={"key": event_type})


@contextmanager
def harmless(topic: str, event_type: str) -> Iterator[None]:
    """Log what goes wrong with the bus within, and go on."""
    try:
        yield
    except TopicEnded:
        logger.info("%s was not told on %s: it has ended", event_type, topic)
    except (DatabaseError, OSError) as error:
        logger.warning("%s was not told on %s: %s", event_type, topic, error)
    except Exception:
        # The bus's own errors: the change that this tells of is made, so nothing may be undone for it.
        logger.exception("%s was not told on %s", event_type, topic)


def topic_of(kind: str, key: object) -> str:
    """The topic of a job: of a `run`, a `preview`, an `order`."""
    return f"cleanup:{kind}:{key}"


class JobFeed:
    """Tells how far a job is: `<kind>.progress` at most ten times a second, at last `<kind>.finished`.

    Then the topic ends, as those of tasks do: it lets its readers go, and is removed with its last event.
    """

    def __init__(self, kind: str, key: object) -> None:
        self._kind, self._topic = kind, topic_of(kind, key)
        self._next, self._state = 0.0, ""

    def tell(self, data: dict[str, Any]) -> None:
        """Publish `data`; if something was told a moment ago, only if the job's `state` is another one."""
        now, state = time.monotonic(), str(data["state"])
        if now >= self._next or state != self._state:
            self._next, self._state = now + PROGRESS_INTERVAL.total_seconds(), state
            tell(self._topic, f"{self._kind}.progress", data)

    def finish(self, data: dict[str, Any]) -> None:
        """Publish the last word and end the topic, in the transaction in which the job ends.

        Before the job's audit entry: whoever ends a topic by hand locks the topic first, too, and the audit
        then.

        Args:
            data: with the job's last `state`.
        """
        event_type, status = f"{self._kind}.finished", _ENDS.get(str(data["state"]), "failed")
        with harmless(self._topic, event_type), transaction.atomic():
            publish(self._topic, event_type, data, tags={"key": event_type})
            end(self._topic, status, {**data, "status": status})
