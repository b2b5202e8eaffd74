"""P20: the grace of what is in the trash is never shortened, whatever clocks, zones and policies do.

The arithmetic is tried by itself over zones, summer times and naive times. Then whole histories are played
by the real operations, under a clock that jumps forwards and back: policies are edited and switched off,
grace is extended, files are restored and trashed again, and purges run in between. A ledger beside them knows
what each file was promised: a purge takes exactly those whose promise is over.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import time_machine
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from cleanup import operations
from cleanup.engine.shelf import Manifest, header_us
from cleanup.engine.states import purge_after
from cleanup.models import CleanupItem, Hold, Mode
from cleanup.operations import schedule
from tests.figures import figure
from tests.retention import ANNA, Staging

CASES = figure(500, 10_000)
#: Files of one history; each of them is a case of its own.
FILES = 50
HISTORIES = CASES // FILES

#: Zones with large offsets, half hours, summer time on either side of the globe, and one that skipped a day.
ZONES = (
    "UTC", "Europe/Berlin", "America/New_York", "America/St_Johns", "Australia/Lord_Howe", "Asia/Kathmandu",
    "Pacific/Apia", "Pacific/Kiritimati", "Africa/Casablanca", "America/Havana",
)  # fmt: skip

moments = st.builds(
    lambda naive, zone, fold: naive.replace(fold=fold, tzinfo=ZoneInfo(zone)),
    st.datetimes(datetime(1990, 1, 1), datetime(2090, 1, 1)),  # noqa: DTZ001 - the zone is drawn beside it
    st.sampled_from(ZONES),
    st.integers(0, 1),
)
graces = st.timedeltas(timedelta(0), timedelta(days=400))


@pytest.mark.sqlite_only
@settings(max_examples=CASES, deadline=None)
@given(now=moments, grace=graces, promised=st.none() | moments)
def test_a_promise_is_as_long_in_every_zone_and_never_before_an_earlier_one(
    now: datetime, grace: timedelta, promised: datetime | None
) -> None:
    due = purge_after(now, grace, promised=promised)
    assert due.astimezone(UTC) - now.astimezone(UTC) >= grace
    assert promised is None or due.astimezone(UTC) >= promised.astimezone(UTC)
    if promised is None:
        assert due.astimezone(UTC) - now.astimezone(UTC) == grace
    written = Manifest(
        version=1, area="", batch="", policy="", policy_version="", run="", trashed_at_us=header_us(now),
        purge_after_us=header_us(due), items=(),
    )  # fmt: skip
    assert written.purge_after == due


@pytest.mark.django_db
def test_a_time_without_a_zone_is_refused_before_anything_is_purged() -> None:
    naive = datetime(2026, 3, 29, 2, 30)  # noqa: DTZ001 - that is the point
    with pytest.raises(ValueError, match="time zone"):
        purge_after(naive, timedelta(days=1))
    with pytest.raises(ValueError, match="time zone"):
        operations.purge_due(now=naive)


#: One step of a history: what, how far the clock jumps before it, which files, and how long a grace.
steps = st.tuples(
    st.sampled_from(["trash", "trash", "purge", "edge", "edge", "extend", "restore", "grace", "mode"]),
    st.timedeltas(timedelta(days=-20), timedelta(days=40)),
    st.integers(1, 2**FILES - 1),
    st.timedeltas(timedelta(0), timedelta(days=30)),
    st.sampled_from(ZONES),
)


class Play:
    """One history: an area, its policy, and the ledger of what was promised."""

    def __init__(self, root: Path, number: int, clock: datetime) -> None:
        self.clock = clock
        with self.at_clock():
            self.staging = Staging(root, f"area{number}")
            for name in range(FILES):
                path = self.staging.root / str(name)
                path.write_text("content")
                os.utime(path, (1_000_000, 1_000_000))
            self.policy = self.staging.policy(
                f"policy{number}", max_median_factor=10**6, grace_period=timedelta(days=7)
            )
        #: What each item in the trash was promised.
        self.ledger: dict[Any, datetime] = {}
        self.purged = 0

    def at_clock(self) -> Any:
        return time_machine.travel(self.clock, tick=False)

    def step(self, what: str, jump: timedelta, files: int, grace: timedelta, zone: str) -> None:
        self.clock += jump
        with self.at_clock():
            getattr(self, what)(self.chosen(files), grace, ZoneInfo(zone))

    def chosen(self, files: int) -> list[Any]:
        return [item for number, item in enumerate(sorted(self.ledger)) if files >> number & 1]

    def trash(self, _: Sequence[Any], __: timedelta, ___: ZoneInfo) -> None:
        if self.policy.mode == Mode.OFF:
            return
        assert self.staging.run(self.policy).state == "done"
        for row in CleanupItem.objects.filter(area=self.staging.area, state="trashed"):
            if row.pk not in self.ledger:
                self.ledger[row.pk] = self.clock + self.policy.grace_period

    def purge(self, _: Sequence[Any], __: timedelta, zone: ZoneInfo) -> None:
        due = {item for item, promise in self.ledger.items() if promise <= self.clock}
        report = operations.purge_due(now=self.clock.astimezone(zone), area=self.staging.area)
        gone = set(
            CleanupItem.objects.filter(pk__in=self.ledger, state="purged").values_list("pk", flat=True)
        )
        assert gone == due, [(self.ledger[item], self.clock) for item in gone ^ due]
        assert report.purged == len(due)
        self.purged += len(due)
        for item in due:
            del self.ledger[item]

    def edge(self, items: Sequence[Any], _: timedelta, zone: ZoneInfo) -> None:
        """Purge at the last moment of a promise, and right after it."""
        if not items:
            return
        end = self.ledger[items[0]]
        for self.clock in (end - timedelta(microseconds=1), end):
            with self.at_clock():
                self.purge((), timedelta(0), zone)

    def extend(self, items: Sequence[Any], grace: timedelta, _: ZoneInfo) -> None:
        if items and grace:
            assert operations.extend_grace(items, by=grace, actor=ANNA) == len(items)
            for item in items:
                self.ledger[item] += grace

    def restore(self, items: Sequence[Any], _: timedelta, __: ZoneInfo) -> None:
        assert operations.restore(items, actor=ANNA).restored == len(items)
        for item in items:
            del self.ledger[item]
        for held in Hold.objects.filter(area=self.staging.area, released_at__isnull=True):
            operations.release(held, ANNA)

    def grace(self, _: Sequence[Any], grace: timedelta, __: ZoneInfo) -> None:
        self.policy.grace_period = grace
        operations.save_policy(self.policy, ANNA)

    def mode(self, _: Sequence[Any], __: timedelta, ___: ZoneInfo) -> None:
        other = Mode.OFF if self.policy.mode == Mode.ENFORCE else Mode.ENFORCE
        operations.set_mode(self.policy, other, ANNA)
        schedule.recover_all(with_adoption=True)

    def finish(self) -> None:
        """What is left is there, in the trash or in its place, and kept what it was promised."""
        rows = {
            row.pk: row.purge_after for row in CleanupItem.objects.filter(pk__in=self.ledger, state="trashed")
        }
        assert rows == self.ledger
        assert self.staging.in_trash() == len(self.ledger)
        assert len(self.staging.files()) == FILES - len(self.ledger) - self.purged


@pytest.mark.sqlite_only
@pytest.mark.django_db
@pytest.mark.timeout(HISTORIES * 60)
def test_a_purge_takes_exactly_what_has_been_in_the_trash_for_as_long_as_it_was_promised(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    numbers = iter(range(10**6))

    @settings(
        max_examples=HISTORIES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],  # a history takes too long to be told shorter
        print_blob=True,
    )
    @given(
        start=st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
        history=st.lists(steps, min_size=6, max_size=14),
    )
    def play(start: datetime, history: list[tuple[Any, ...]]) -> None:
        world = Play(tmp_path_factory.mktemp("grace"), next(numbers), start)
        world.step("trash", timedelta(0), 1, timedelta(0), "UTC")
        for step in history:
            world.step(*step)
        world.finish()

    play()
