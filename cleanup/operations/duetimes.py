"""When a policy is due: what its schedule says, and what becomes of a due time when the schedule is edited.

A schedule is an interval in the syntax of ages (`6h`) or five fields of cron text (`30 2 * * *`), the latter
read in the zone of the site. Moments arrive as arguments; nothing here reads a clock or the database. The
time after a moment always lies after it, on every clock: a time that clocks pass over is served when they
jump, and one that comes twice is served the first time.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache

from cronsim import CronSim, CronSimError
from django.utils import timezone

from cleanup.engine.ages import format_age, parse_age
from cleanup.engine.errors import PolicyInvalid
from cleanup.models import CatchUp, Mode, RetentionPolicy

#: Ticks are 30 s apart; what is due more often cannot be served.
SHORTEST = _MINUTE = timedelta(minutes=1)
LONGEST = timedelta(days=3660)

#: A run that begins within so long of its time was not missed: beat was busy, or just started again.
PUNCTUAL = timedelta(minutes=10)

#: Any moment does to see whether a schedule ever comes.
_ANY = datetime(2024, 1, 1)  # noqa: DTZ001 - a wall clock without a zone


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A schedule that was understood."""

    text: str
    #: None: `text` is cron text.
    every: timedelta | None

    def after(
        self, moment: datetime, *, anchor: datetime | None = None, zone: tzinfo | None = None
    ) -> datetime:
        """The first due time after `moment`.

        Args:
            moment: with a zone.
            anchor: of an interval, a due time from which the others are counted; else it is `moment`.
            zone: of cron text; the site's unless given.
        """
        if self.every is None:
            return self._cron_after(moment, zone or timezone.get_default_timezone())
        if anchor is None or anchor > moment:
            return moment + self.every
        return anchor + ((moment - anchor) // self.every + 1) * self.every

    def _cron_after(self, moment: datetime, zone: tzinfo) -> datetime:
        walls = CronSim(self.text, moment.astimezone(zone).replace(tzinfo=None))
        # In an hour that comes twice, what is left of its second coming was served in the first.
        return next(found for wall in walls if (found := first_at(wall, zone)) > moment)

    def is_out_of_reach(self, due: datetime, now: datetime) -> bool:
        """Whether `due` can only come from a clock that was ahead: two due times come before it."""
        second = self.after(self.after(now))
        return due > second + SHORTEST

    def words(self) -> str:
        """The schedule as a sentence for people."""
        if self.every is not None:
            return f"Every {format_age(self.every)}"
        return f"{CronSim(self.text, _ANY).explain()} ({timezone.get_default_timezone_name()})"


def first_at(wall: datetime, zone: tzinfo) -> datetime:
    """The first moment, to the minute, at which the zone's clocks show `wall` or a later time."""
    moment = wall.replace(tzinfo=zone).astimezone(UTC)
    if moment.astimezone(zone).replace(tzinfo=None) == wall:
        return moment
    # The clocks pass over it: as far behind their change as the time lies behind the beginning of the gap.
    offset = moment.astimezone(zone).utcoffset()
    while (moment - _MINUTE).astimezone(zone).utcoffset() == offset:
        moment -= _MINUTE
    return moment


@lru_cache(maxsize=512)
def parse_schedule(text: str) -> Schedule:
    """Read a schedule.

    Raises:
        PolicyInvalid: neither an interval nor cron text, too short, too long, or a day that never comes.
    """
    fields = text.split()
    if len(fields) == 5:
        _check_cron(text)
        return Schedule(text=" ".join(fields), every=None)
    try:
        every = parse_age(text)
    except PolicyInvalid as error:
        raise PolicyInvalid(
            f"schedule {text!r} is neither an interval such as 6h nor five fields of cron text such as "
            f"30 2 * * * ({error})"
        ) from error
    if not SHORTEST <= every <= LONGEST:
        raise PolicyInvalid(f"schedule {text!r}: an interval is at least 1min and at most 3660d")
    return Schedule(text=text.strip(), every=every)


def _check_cron(text: str) -> None:
    try:
        next(CronSim(text, _ANY))
    except (CronSimError, AssertionError, ValueError, OverflowError) as error:
        detail = str(error).removeprefix("Bad ") or "it"
        raise PolicyInvalid(
            f"schedule {text!r}: {detail} is not understood; the fields are minute hour day month weekday"
        ) from error
    except StopIteration as error:
        raise PolicyInvalid(f"schedule {text!r}: such a day never comes") from error


def was_missed(policy: RetentionPolicy, now: datetime) -> bool:
    """Whether the due time of the policy is so long past that `catch_up` decides about it."""
    return policy.next_due_at is not None and now - policy.next_due_at > PUNCTUAL


def is_skipped(policy: RetentionPolicy, now: datetime) -> bool:
    """Whether a due policy does not run now, because it was missed and is not caught up with."""
    return policy.catch_up == CatchUp.SKIP and was_missed(policy, now)


def due_after_save(policy: RetentionPolicy, stored: RetentionPolicy | None, now: datetime) -> datetime:
    """When a policy is due that is being saved.

    What is due already stays due, so that an edit never swallows a run, and an edit of anything else never
    moves the due time. A policy that was off is owed nothing.

    Args:
        policy: as it is going to be.
        stored: as it is in the database, locked; None for a new one.
        now: the database's time.

    Raises:
        PolicyInvalid: its schedule cannot be understood.
    """
    schedule = parse_schedule(policy.schedule)
    if stored is None or stored.next_due_at is None or stored.mode == Mode.OFF:
        return schedule.after(now)
    if stored.schedule == policy.schedule or stored.next_due_at <= now:
        return stored.next_due_at
    return schedule.after(now)
