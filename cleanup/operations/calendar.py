"""Schedules in the words of systemd: intervals and cron text become values of ``OnCalendar=``.

Pure text. Where cron text has a word that systemd lacks, a wake-up every five minutes stands for it: waking
more often than necessary does nothing, since due times are not decided by the timer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import timedelta

OFTEN = "*:0/5"

_DAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")
_MONTHS = ("", "JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")

#: `*`, `5`, `1-5`, each with an optional step.
_PIECE = re.compile(r"(?:\*|([0-9]{1,2})(?:-([0-9]{1,2}))?)(?:/([0-9]{1,3}))?")


def on_calendar(every: timedelta, crons: Sequence[str], *, zone: str) -> list[str]:
    """Return the times at which a timer wakes.

    Args:
        every: the shortest interval of all policies. Purging goes by the hour at the least.
        crons: cron text of five fields each.
        zone: in which the cron text is read.
    """
    found = [_often_enough(every)]
    for cron in crons:
        found += [OFTEN] if (times := _times(cron)) is None else [f"{time} {zone}" for time in times]
    return list(dict.fromkeys(found))


def _often_enough(every: timedelta) -> str:
    if every < timedelta(minutes=10):
        return "*:*"
    return OFTEN if every < timedelta(hours=2) else "hourly"


def _times(cron: str) -> list[str] | None:
    """Return what cron text means; None where systemd has no word for it."""
    minute, hour, day, month, weekday = cron.upper().split()
    for number, name in enumerate(_MONTHS[1:], 1):
        month = month.replace(name, str(number))
    for number, name in enumerate(_DAYS):
        weekday = weekday.replace(name.upper(), str(number))
    fields = [_field(minute, 0, 59), _field(hour, 0, 23), _field(day, 1, 31), _field(month, 1, 12)]
    days = _weekdays(weekday)
    if None in fields or days is None:
        return None
    minutes, hours, dates, months = fields
    # Restricted both ways, cron means either; systemd would mean both at once.
    either = day != "*" and weekday != "*"
    choices = [("", dates), (days, "*")] if either else [(days, dates)]
    return [f"{when}*-{months}-{date} {hours}:{minutes}:00" for when, date in choices]


def _field(text: str, low: int, high: int) -> str | None:
    """Return one field in the words of systemd."""
    pieces = []
    for part in text.split(","):
        found = _PIECE.fullmatch(part)
        if found is None:
            return None
        first, last, step = found.groups()
        if first is None:
            pieces.append(f"{low}..{high}/{step}" if step else "*")
        elif last is not None or step:
            pieces.append(f"{first}..{last or high}" + (f"/{step}" if step else ""))
        else:
            pieces.append(first)
    return "*" if "*" in pieces else ",".join(pieces)


def _weekdays(text: str) -> str | None:
    if text == "*":
        return ""
    names: set[str] = set()
    for part in text.split(","):
        found = _PIECE.fullmatch(part)
        if found is None:
            return None
        first, last, step = found.groups()
        low = int(first or 0)
        high = int(last or (6 if first is None or step else low))
        names.update(_DAYS[day % 7] for day in range(low, high + 1, int(step or 1)))
    return ",".join(name for name in _DAYS if name in names) + " "
