"""The database's event log against the memory's, step by step, on whatever sequence hypothesis thinks of."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from bus.log import Appended, EventLog, NewEvent
from bus.log.database import DatabaseEventLog
from bus.log.memory import MemoryEventLog
from bus.protocol.errors import BusError
from bus.protocol.positions import Position

TOPICS = ["task:a", "task:b", "broadcast"]

events = st.builds(
    NewEvent,
    topic=st.sampled_from([*TOPICS, "no topic"]),
    event_type=st.just("output"),
    payload=st.sampled_from([b"{}", b'{"n":1}', b'"\0"']),
    tags=st.sampled_from([None, b'{"id":"x"}']),
    key=st.none() | st.sampled_from(["k1", "k2", "k3"]),
    end_status=st.sampled_from([None, None, None, "completed"]),
    restarts=st.booleans(),
)


class LogMachine(RuleBasedStateMachine):
    """Two logs, the same commands; epochs are drawn, so their order of appearance is compared."""

    def __init__(self) -> None:
        super().__init__()
        self.now = datetime(2026, 3, 1, tzinfo=UTC)
        self.model: EventLog = MemoryEventLog(lambda: self.now)
        self.log: EventLog = DatabaseEventLog(clock=lambda: self.now)
        self.epochs: dict[EventLog, dict[str, int]] = {self.model: {"": 0}, self.log: {"": 0}}

    @initialize()
    def empty(self) -> None:
        for name in self.log.names():
            self.log.remove(name)

    def both(self, call: Any) -> tuple[Any, Any]:
        """Call both, and return what they say with drawn epochs replaced by numbers."""
        return self._said(self.model, call), self._said(self.log, call)

    def _said(self, log: EventLog, call: Any) -> Any:
        try:
            return self._numbered(log, call(log))
        except BusError as error:
            return type(error)

    def _numbered(self, log: EventLog, said: Any) -> Any:
        known = self.epochs[log]
        if isinstance(said, list):
            return [self._numbered(log, item) for item in said]
        if isinstance(said, dict):
            return {name: self._numbered(log, item) for name, item in sorted(said.items())}
        if isinstance(said, BusError):
            return type(said)
        if hasattr(said, "epoch"):
            names = getattr(said, "__struct_fields__", None) or said.__dataclass_fields__
            values = {name: self._numbered(log, getattr(said, name)) for name in names if name != "epoch"}
            return {**values, "epoch": known.setdefault(said.epoch, len(known))}
        return said

    def agree(self, call: Any) -> None:
        expected, found = self.both(call)
        assert found == expected

    @rule(batch=st.lists(events, max_size=6))
    def append(self, batch: list[NewEvent]) -> None:
        self.agree(lambda log: log.append(batch))

    @rule(batch=st.lists(events, max_size=12))
    def append_each(self, batch: list[NewEvent]) -> None:
        self.agree(lambda log: log.append_each(batch))

    @rule(
        topic=st.sampled_from(TOPICS), since=st.integers(0, 20), limit=st.integers(0, 5), back=st.booleans()
    )
    def read(self, topic: str, since: int, limit: int, back: bool) -> None:
        at = Position(epoch="", offset=since)
        self.agree(lambda log: log.read(topic, at, limit=limit, reverse=back))
        self.agree(lambda log: log.read(topic, limit=limit, reverse=back))

    @rule(
        topic=st.sampled_from(TOPICS), keep=st.none() | st.integers(0, 6), age=st.none() | st.integers(0, 5)
    )
    def trim(self, topic: str, keep: int | None, age: int | None) -> None:
        max_age = None if age is None else timedelta(hours=age)
        self.agree(lambda log: log.trim(topic, max_age=max_age, max_events=keep, batch=2))

    @rule(topic=st.sampled_from(TOPICS))
    def remove(self, topic: str) -> None:
        self.agree(lambda log: log.remove(topic))

    @rule(topic=st.sampled_from(TOPICS))
    def open(self, topic: str) -> None:
        self.agree(lambda log: log.open(topic))

    @rule(hours=st.integers(0, 4))
    def wait(self, hours: int) -> None:
        self.now += timedelta(hours=hours)

    @invariant()
    def states_agree(self) -> None:
        self.agree(lambda log: log.states(TOPICS))
        self.agree(lambda log: log.names())

    @invariant()
    def what_is_kept_is_contiguous(self) -> None:
        for topic in TOPICS:
            page = self.log.read(topic, limit=1000)
            found = [event.offset for event in page.events]
            assert found == list(range(page.first_offset, page.last_offset + 1)) or not page.epoch


@pytest.mark.django_db(transaction=True)
def test_the_database_says_what_the_memory_says():
    run_state_machine_as_test(
        LogMachine,
        settings=settings(
            max_examples=40,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
        ),
    )


def test_the_comparison_sees_a_difference():
    machine = LogMachine()
    place = Appended(
        topic="task:a", epoch="e", offset=1, event_id="", created_at=datetime(2026, 3, 1, tzinfo=UTC)
    )
    assert machine._numbered(machine.log, place) != machine._numbered(
        machine.log, Appended(topic="task:a", epoch="f", offset=1, event_id="", created_at=place.created_at)
    )
