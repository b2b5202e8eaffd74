"""Due times under clocks that jump: no day is skipped, no due time is served twice, the next lies ahead.

What the clock does to grace periods is in `test_p20_grace.py`. The times of cron text are compared with an
oracle of a few lines that knows zones and nothing of cron; the claims are made by `schedule.claim_due`.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from itertools import pairwise
from pathlib import Path
from random import Random
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cleanup import operations
from cleanup.engine.errors import PolicyInvalid
from cleanup.models import CleanupRun, RetentionPolicy
from cleanup.operations import schedule
from cleanup.operations.duetimes import parse_schedule
from tests.retention import ANNA, Staging

DEEP = bool(os.environ.get("TEST_DEEP"))
CASES = 10_000 if DEEP else 500
LIVES = 1_000 if DEEP else 15

pytestmark = pytest.mark.timeout(1_800 if DEEP else 400)

#: Gaps at two, at midnight and of half an hour; a day that did not exist; none at all.
ZONES = [
    "Europe/Berlin", "America/New_York", "Africa/Cairo", "America/Sao_Paulo", "Australia/Lord_Howe",
    "Pacific/Apia", "Asia/Kathmandu", "UTC",
]  # fmt: skip

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)

zones = st.sampled_from(ZONES).map(ZoneInfo)


@cache
def changes(zone: ZoneInfo, year: int) -> list[datetime]:
    """The hours of a year before which the zone's clocks are changed."""
    hours = (datetime(year, 1, 1, tzinfo=UTC) + number * HOUR for number in range(366 * 24))
    return [at for at in hours if at.astimezone(zone).utcoffset() != (at + HOUR).astimezone(zone).utcoffset()]


@st.composite
def around_changes(draw: st.DrawFn) -> tuple[ZoneInfo, datetime]:
    """A zone, and a moment near a change of its clocks if it has any."""
    zone, year = draw(zones), draw(st.integers(2008, 2030))
    near = draw(st.sampled_from(changes(zone, year) or [datetime(year, 6, 1, tzinfo=UTC)]))
    return zone, near + timedelta(seconds=draw(st.integers(-2 * 86_400, 2 * 86_400)))


def served(day: date, at: time, zone: ZoneInfo) -> datetime:
    """The first minute at which the zone's clocks show that time of that day, or a later one."""
    wall = datetime.combine(day, at)
    late = wall.replace(tzinfo=zone).astimezone(UTC)
    minutes = range(-26 * 60, 1)
    # Until `late` the clocks show less, then more: an hour that comes again comes after it.
    first = bisect_left(
        minutes, True, key=lambda n: (late + n * MINUTE).astimezone(zone).replace(tzinfo=None) >= wall
    )
    return late + minutes[first] * MINUTE


@pytest.mark.sqlite_only
@settings(max_examples=CASES, deadline=None)
@given(around_changes(), st.times().map(lambda at: at.replace(second=0, microsecond=0, fold=0)))
def test_a_time_of_day_is_served_once_a_day_whatever_the_clocks_do(
    place: tuple[ZoneInfo, datetime], at: time
) -> None:
    zone, moment = place
    daily = parse_schedule(f"{at.minute} {at.hour} * * *")
    today = moment.astimezone(zone).date()
    slots = sorted({served(today + number * DAY, at, zone) for number in (-1, 0, 1, 2)})
    found = moment
    for expected in [slot for slot in slots if slot > moment][:2]:
        found = daily.after(found, zone=zone)
        assert found == expected


#: One field of cron text: its star, and numbers within its range.
def field(low: int, high: int) -> st.SearchStrategy[str]:
    number = st.integers(low, high)
    pairs = st.tuples(number, number).map(sorted)
    return st.one_of(
        st.just("*"),
        number.map(str),
        st.integers(1, high).map("*/{}".format),
        pairs.map(lambda pair: f"{pair[0]}-{pair[1]}"),
        st.lists(number, min_size=1, max_size=3).map(lambda numbers: ",".join(map(str, numbers))),
    )


cron = st.tuples(field(0, 59), field(0, 23), field(1, 31), field(1, 12), field(0, 7)).map(" ".join)
intervals = st.integers(1, 100_000).map("{}min".format)


@pytest.mark.sqlite_only
@settings(max_examples=CASES, deadline=None)
@given(st.one_of(cron, intervals), around_changes())
def test_the_next_due_time_lies_ahead_and_nothing_lies_between(
    text: str, place: tuple[ZoneInfo, datetime]
) -> None:
    zone, moment = place
    try:
        found = parse_schedule(text)
    except PolicyInvalid as error:
        assert text in str(error)  # noqa: PT017 - a day such as 31 February
        return
    following = found.after(moment, zone=zone)
    assert moment < following
    assert found.words()
    if found.every is None:
        between = moment + (following - moment) / 2
        assert found.after(between, zone=zone) == following
    else:
        assert found.after(following + 5 * found.every / 2, anchor=following) == following + 3 * found.every


@pytest.mark.sqlite_only
@settings(max_examples=CASES, deadline=None)
@given(st.one_of(st.text(max_size=30), st.text("0123456789*/,-# LWMONh", max_size=30)))
def test_any_text_is_a_schedule_or_is_refused_in_words(text: str) -> None:
    try:
        found = parse_schedule(text)
    except PolicyInvalid as error:
        assert "schedule" in str(error)  # noqa: PT017 - either is right
    else:
        now = datetime(2026, 1, 1, tzinfo=UTC)
        assert found.after(now) > now


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "an age is missing"),
        ("6 hours and more", "neither an interval"),
        ("61 * * * *", "minute is not understood"),
        ("0 24 * * *", "hour is not understood"),
        ("0 0 31 2 *", "day-of-month is not understood"),
        ("0 0 * * 8", "day-of-week is not understood"),
        ("* * * *", "neither an interval"),
        ("0 0 0 * * *", "neither an interval"),
        ("59s", "at least 1min"),
        ("11y", "at most 3660d"),
    ],
)
def test_what_is_wrong_with_a_schedule_is_said(text: str, complaint: str) -> None:
    with pytest.raises(PolicyInvalid, match=complaint):
        parse_schedule(text)


class Life:
    """One policy, ticks at the times of a clock that jumps, and what was claimed."""

    def __init__(self, policy: RetentionPolicy, dice: Random) -> None:
        self.policy, self.dice = policy, dice
        self.now = datetime(2026, 3, 1, tzinfo=UTC) + timedelta(seconds=dice.randrange(86_400 * 300))
        #: Due times that were served, in order.
        self.slots: list[datetime] = []
        self.policy.schedule = dice.choice(["6h", "1h", "7min", "30 2 * * *", "0 */4 * * *", "15 3 * * 1-5"])
        operations.save_policy(self.policy, ANNA)
        RetentionPolicy.objects.filter(pk=policy.pk).update(
            next_due_at=parse_schedule(policy.schedule).after(self.now)
        )

    def due(self) -> datetime:
        found = RetentionPolicy.objects.get(pk=self.policy.pk).next_due_at
        assert found is not None
        return found

    def tick(self) -> None:
        """Two ticks at once, or one after the other: at most one run, of a due time that is over."""
        slot = self.due()
        runs = [*schedule.claim_due(self.now), *schedule.claim_due(self.now)]
        assert len(runs) <= 1
        assert bool(runs) == (slot <= self.now)
        assert self.due() > self.now
        if runs:
            self.slots.append(slot)
        CleanupRun.objects.filter(pk__in=runs).update(state="done")

    def live(self) -> None:
        for _ in range(self.dice.randrange(5, 15)):
            self.now += self.dice.choice([timedelta(seconds=30), 10 * MINUTE, HOUR, 5 * HOUR, DAY, 40 * DAY])
            self.tick()
            if self.dice.random() < 0.2:
                # By less than the time between two due times: none comes twice.
                self.now -= self.dice.choice([timedelta(seconds=1), 5 * MINUTE])
                self.tick()
        assert self.slots == sorted(set(self.slots))


@pytest.mark.django_db
def test_no_due_time_is_served_twice_however_often_one_ticks(tmp_path: Path) -> None:
    policy = Staging(tmp_path).policy()
    for _ in range(LIVES):
        seed = Random().randrange(2**32)
        try:
            Life(policy, Random(seed)).live()
        except AssertionError as error:
            error.add_note(f"seed {seed}")
            raise


@pytest.mark.django_db
@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York"])
def test_a_daily_policy_runs_on_every_day_of_a_spring_and_an_autumn(
    tmp_path: Path, settings: object, zone: str
) -> None:
    settings.TIME_ZONE = zone  # type: ignore[attr-defined]
    policy = Staging(tmp_path).policy(schedule="30 2 * * *")
    for start in (datetime(2026, 3, 5, tzinfo=UTC), datetime(2026, 10, 22, tzinfo=UTC)):
        RetentionPolicy.objects.filter(pk=policy.pk).update(next_due_at=start)
        now, days = start, []
        while now < start + 25 * DAY:
            now += 3 * HOUR
            for run in schedule.claim_due(now):
                days.append(now.astimezone(ZoneInfo(zone)).date())
                CleanupRun.objects.filter(pk=run).update(state="done")
        assert len(days) == len(set(days))
        assert all(later - earlier == DAY for earlier, later in pairwise(days[1:]))
        assert len(days) >= 24
