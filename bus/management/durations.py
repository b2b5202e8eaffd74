"""Arguments that are lengths of time and whole numbers."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from datetime import timedelta

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def duration(text: str) -> timedelta:
    """Return the duration that `90s`, `30m`, `1h` or `7d` means."""
    found = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if found is None:
        raise ArgumentTypeError(f"{text!r} is no duration such as 90s, 30m, 1h or 7d")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def whole(text: str) -> int:
    """Return a whole number that is not negative."""
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise ArgumentTypeError(f"{text!r} is no whole number, 0 or more")
    return int(text)
