"""Per topic 1, 2, 3 …, for every subscriber, whatever happens: hubs and log in a simulated world.

Each seed is one world; a failure prints it, and `TEST_SEED=<seed>` runs that one again. The wrong designs of
`simulation.mutants` prove that the judge would see a loss.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from bus import replay
from bus.fanout import feeds
from bus.fanout.hub import Hub
from bus.log import EventLog, current
from bus.log.database import DatabaseEventLog
from bus.log.memory import MemoryEventLog
from tests.property.simulation.history import History
from tests.property.simulation.logs import FlakyLog, SequenceLog, raises_at_times
from tests.property.simulation.mutants import HUBS, SequenceWorld
from tests.property.simulation.world import World, settings_of

pytestmark = pytest.mark.django_db(transaction=True)

DEEP = bool(os.environ.get("TEST_DEEP"))
SEEDS = 10_000 if DEEP else 300
BLOCK = 50
#: Seeds in which each wrong design has to be found.
PATIENCE = 40

WorldOf = Callable[..., World]


@pytest.fixture
def simulate(settings: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Any:
    """Run one seed on a log; returns the history."""
    plain = dict(settings.BUS)
    caplog.set_level(logging.ERROR)

    def run(seed: int, log: EventLog, world_of: WorldOf = World, **options: Any) -> History:
        with _small_sizes(seed, monkeypatch):
            settings.BUS = {**plain, "VOLATILE": isinstance(log, MemoryEventLog), **settings_of(seed)}
            monkeypatch.setattr(current, "MemoryEventLog", lambda: log)
            current.event_log.cache_clear()
            world = world_of(seed, log, **options)
            if isinstance(log, FlakyLog):
                log.weather = raises_at_times(world)
            history = world.run()
        for record in caplog.records:
            history.blame("logged", record.getMessage())
        caplog.clear()
        return history

    return run


@contextmanager
def _small_sizes(seed: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In every third world the limits of the hub are small, so that they are met."""
    with monkeypatch.context() as patch:
        if seed % 3 == 0:
            patch.setattr(feeds, "MAX_HELD_BACK", 3)
            patch.setattr(replay, "MAX_REPLY_BYTES", 700)
            patch.setitem(feeds.Feed.__init__.__kwdefaults__, "slice_size", 1)
        yield


def seeds(first: int, count: int) -> range:
    """The seeds of a test, or the one that `TEST_SEED` names."""
    given = os.environ.get("TEST_SEED")
    return range(int(given), int(given) + 1) if given else range(first, first + count)


def judge(seed: int, history: History) -> None:
    words = "\n".join(str(violation) for violation in history.violations[:5])
    assert not history.violations, f"TEST_SEED={seed}: {len(history.violations)} violations\n{words}"


@pytest.mark.sqlite_only
@pytest.mark.timeout(600 if DEEP else 400)
@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_every_subscriber_gets_every_event_in_order_or_is_told(simulate, first):
    readings = events = 0
    for seed in seeds(first, BLOCK):
        history = simulate(seed, FlakyLog())
        judge(seed, history)
        readings += len(history.readings)
        events += sum(what == "event" for _, _, what, _ in history.trace)
    if "TEST_SEED" not in os.environ:
        assert readings > 10 * BLOCK
        assert events > 100 * BLOCK


@pytest.mark.timeout(600 if DEEP else 400)
def test_the_same_holds_on_the_database(simulate):
    for seed in seeds(0, 100 if DEEP else 3):
        log = DatabaseEventLog()
        history = simulate(seed, log, topics=(f"lab:{seed}", f"task:{seed}"))
        judge(seed, history)


@pytest.mark.sqlite_only
def test_a_seed_is_the_same_world_again(simulate):
    for seed in (3, 4, 5):
        assert simulate(seed, FlakyLog()).trace == simulate(seed, FlakyLog()).trace


def find(simulate: Any, kinds: set[str], log_of: Callable[[], EventLog], **options: Any) -> int:
    """Return the first seed in which one of these violations is found."""
    for seed in range(PATIENCE):
        if simulate(seed, log_of(), **options).kinds() & kinds:
            return seed
    raise AssertionError(f"none of {kinds} was found in {PATIENCE} seeds")


@pytest.mark.sqlite_only
def test_offsets_that_are_drawn_before_the_commit_are_found(simulate):
    find(simulate, {"lost"}, SequenceLog, world_of=SequenceWorld, topics=("lab:1", "lab:2"))


@pytest.mark.sqlite_only
@pytest.mark.parametrize(("wrong", "kinds"), HUBS.values(), ids=HUBS)
def test_a_hub_with_a_slip_is_found(simulate, wrong: type[Hub], kinds: set[str]):
    find(simulate, kinds, MemoryEventLog, make_hub=wrong)
