"""An event loop in virtual time: nothing waits, the clock jumps to whatever is due next.

Work that the bus gives to threads runs as a callback: it begins after a seeded delay, at one instant, and its
result arrives after another one, so what it has read may be old by then. While it runs there is no running
event loop, as in a real thread.
"""

from __future__ import annotations

import asyncio
from asyncio import events
from collections.abc import Callable
from random import Random
from typing import Any

#: Nothing has been due for so long: the simulated world hangs.
START = 1_000.0


class Stalled(RuntimeError):
    """Nobody waits for a time, and nothing is to be done: whoever is awaited will never come."""


class _Clockwork:
    """In the place of a selector: instead of waiting it moves the clock on."""

    def __init__(self) -> None:
        self.now = START

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise Stalled
        self.now += timeout
        return []

    def close(self) -> None:
        """There is nothing to close."""


class VirtualLoop(asyncio.BaseEventLoop):
    """See the module.

    Args:
        random: gives the delays of work in threads.
        slowness: their longest, in seconds.
    """

    def __init__(self, random: Random, *, slowness: float = 0.02) -> None:
        super().__init__()
        self._random = random
        self._slowness = slowness
        self._selector = _Clockwork()
        #: What nobody has caught.
        self.uncaught: list[str] = []
        self.set_exception_handler(lambda _, about: self.uncaught.append(str(about.get("exception", about))))

    def calm(self) -> None:
        """Let threads be quick from now on."""
        self._slowness = 0.001

    def time(self) -> float:
        return self._selector.now

    def _process_events(self, _: list[Any]) -> None:
        """There are no file descriptors."""

    def _write_to_self(self) -> None:
        """Nobody sleeps who would have to be woken."""

    def run_in_executor(self, _: Any, function: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """Call `function` a little later, as a thread would, and give its result a little later again."""
        future = self.create_future()
        self.call_later(self._delay(), self._work, future, function, args)
        return future

    def _delay(self) -> float:
        # Mostly short, sometimes long: a delay that is always alike hides races.
        return self._slowness * self._random.random() ** 3

    def _work(self, future: asyncio.Future[Any], function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        events._set_running_loop(None)
        try:
            result, error = function(*args), None
        except Exception as raised:  # noqa: BLE001  (it belongs to whoever awaits the result)
            result, error = None, raised
        finally:
            events._set_running_loop(self)
        self.call_later(self._delay(), _resolve, future, result, error)


def _resolve(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
