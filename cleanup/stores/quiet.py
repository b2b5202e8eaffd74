"""Batches without the garbage collector: a thousand rows at a time are made, written and let go.

None of them is part of a cycle, so counting references frees them; but their number makes the collector look
through everything that the process has, again and again, which took a tenth of a run.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collecting_later() -> Iterator[None]:
    """Keep the collector from running until the end of the ``with`` statement, or of the decorated call."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
