"""How hard the tests try: the figures of every day, and the deep ones of `TEST_DEEP=1`."""

from __future__ import annotations

import os
from typing import TypeVar

T = TypeVar("T")

DEEP = os.environ.get("TEST_DEEP", "") not in ("", "0")


def figure(daily: T, deep: T) -> T:
    """The first, or with `TEST_DEEP=1` the second."""
    return deep if DEEP else daily
