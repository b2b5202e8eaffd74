"""Ages in the syntax of tmpfiles.d: ``2d``, ``1h30m``, ``1w``, ``90`` (seconds).

Units: us, ms, s, m and min (minutes), h, d, w, M (months of 30.44 days) and y (365.25 days), in upper and
lower case only as written here; ``m`` is minutes and ``M`` months, as in systemd. Parts add up, in any order.
"""

import re
from datetime import timedelta

from cleanup.engine.errors import PolicyInvalid

_US = {
    "us": 1,
    "usec": 1,
    "µs": 1,
    "ms": 1_000,
    "msec": 1_000,
    "s": 1_000_000,
    "sec": 1_000_000,
    "second": 1_000_000,
    "seconds": 1_000_000,
    "m": 60_000_000,
    "min": 60_000_000,
    "minute": 60_000_000,
    "minutes": 60_000_000,
    "h": 3_600_000_000,
    "hr": 3_600_000_000,
    "hour": 3_600_000_000,
    "hours": 3_600_000_000,
    "d": 86_400_000_000,
    "day": 86_400_000_000,
    "days": 86_400_000_000,
    "w": 604_800_000_000,
    "week": 604_800_000_000,
    "weeks": 604_800_000_000,
    "M": 2_629_800_000_000,
    "month": 2_629_800_000_000,
    "months": 2_629_800_000_000,
    "y": 31_557_600_000_000,
    "year": 31_557_600_000_000,
    "years": 31_557_600_000_000,
}

_PART = re.compile(r"([0-9]+)(?:\.([0-9]+))?\s*([A-Za-zµ]*)\s*", re.ASCII)

#: What `format_age` writes, biggest first; months and years are left out because they are not whole days.
_WRITTEN = (("w", "w"), ("d", "d"), ("h", "h"), ("min", "min"), ("s", "s"), ("ms", "ms"), ("us", "us"))


def _part_us(match: re.Match[str], text: str) -> int:
    whole, fraction, unit = match.groups()
    scale = _US.get(unit or "s")
    if scale is None:
        raise PolicyInvalid(f"age {text!r}: unknown unit {unit!r}; use us ms s m min h d w M y")
    fraction = fraction or ""
    return int(whole) * scale + (int(fraction) * scale // 10 ** len(fraction) if fraction else 0)


def parse_age(text: str) -> timedelta:
    """Read an age.

    Raises:
        PolicyInvalid: not an age, an unknown unit, or more than a timedelta can hold.
    """
    stripped, at, total = text.strip(), 0, 0
    if len(stripped) > 100:
        raise PolicyInvalid("an age is at most 100 characters long")
    while at < len(stripped):
        match = _PART.match(stripped, at)
        if match is None:
            raise PolicyInvalid(
                f"age {text!r} is not understood at {stripped[at:]!r}; write for example 2d or 1h30m"
            )
        total += _part_us(match, text)
        at = match.end()
    if not stripped:
        raise PolicyInvalid("an age is missing; write for example 2d or 1h30m")
    try:
        return timedelta(microseconds=total)
    except OverflowError as error:
        raise PolicyInvalid(f"age {text!r} is too long") from error


def format_age(age: timedelta) -> str:
    """Write `age` so that `parse_age` reads the same length back."""
    left = age // timedelta(microseconds=1)
    if left < 0:
        raise PolicyInvalid("an age is not negative")
    parts = []
    for unit, name in _WRITTEN:
        count, left = divmod(left, _US[unit])
        if count:
            parts.append(f"{count}{name}")
    return "".join(parts) or "0s"
