"""A server process's end of the channel layer: one channel, in one group for each topic that is wanted here.

It is supervised: a listener that dies is started again, and a canary, a message to itself every ten seconds,
proves that it is not deaf; `is_up` says so and readiness asks it. Whenever the canary does not come back
everything is taken down and built anew, with all groups. Sending goes through a bounded queue and never holds
anybody up: a hint that is dropped is found in the log within a second.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable
from typing import Any

from channels.layers import get_channel_layer

from bus import layer
from bus.conf import conf
from bus.courier import MESSAGE_TYPE, Breaker, group_send
from bus.faults import fault
from bus.layer import Canary, Control, Hint, Receiver
from bus.metrics import HINTS
from bus.protocol.topics import group_name

logger = logging.getLogger(__name__)

#: Hints waiting to be sent; beyond it they are dropped.
OUTBOX = 10_000
#: Messages heard in one go before other tasks get a turn.
TURN = 100


class LayerDown(Exception):
    """The layer does not deliver."""


class Link:
    """See the module. All but `send` belong to the event loop that has started it."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._loop = asyncio.get_running_loop()
        self._outbox: deque[tuple[str, str]] = deque()
        self._posted = asyncio.Event()
        self._groups: set[str] = {layer.EVERYONE}
        self._regroup = asyncio.Event()
        self._canary = 0
        self._returned = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._serving: list[asyncio.Task[None]] = []
        #: Whether the last canary came back.
        self.is_up = False

    def start(self) -> None:
        """Begin to listen and to send."""
        self._tasks = [self._loop.create_task(self._supervise()), self._loop.create_task(self._dispatch())]

    async def stop(self) -> None:
        """End both and close the connection to the layer."""
        await end_tasks([*self._tasks, *self._serving])
        self.is_up = False
        await self._take_down()

    def join(self, topic: str) -> None:
        """Ask for the hints of a topic from now on."""
        self._groups.add(group_name(topic))
        self._regroup.set()

    def leave(self, topic: str) -> None:
        """Ask for no more of them."""
        self._groups.discard(group_name(topic))
        self._regroup.set()

    def send(self, group: str, body: str) -> None:
        """Send soon, from any thread."""
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is self._loop:
            self._put(group, body)
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._put, group, body)

    def _put(self, group: str, body: str) -> None:
        if len(self._outbox) >= OUTBOX:
            HINTS.labels("dropped").inc()
            return
        self._outbox.append((group, body))
        self._posted.set()

    async def _dispatch(self) -> None:
        breaker = Breaker(clock=self._loop.time)
        while True:
            await self._posted.wait()
            self._posted.clear()
            while self._outbox:
                await self._send_one(*self._outbox.popleft(), breaker)

    async def _send_one(self, group: str, body: str, breaker: Breaker) -> None:
        if breaker.is_open:
            HINTS.labels("skipped").inc()
            return
        fault("hint.before_send")
        try:
            await group_send(group, body, conf().layer_timeout)
        except Exception:  # noqa: BLE001  (the layer may raise anything; the supervisor reports that it is down)
            breaker.failed()
            HINTS.labels("failed").inc()
        else:
            HINTS.labels("sent").inc()
        fault("hint.after_send")

    async def _supervise(self) -> None:
        while True:
            try:
                await self._serve()
            except Exception as error:  # noqa: BLE001  (whatever it was: take it down, try again)
                self._report(False, error)
            await self._take_down()
            await asyncio.sleep(conf().layer_timeout.total_seconds())

    async def _serve(self) -> None:
        channel_layer = get_channel_layer()
        if channel_layer is None:
            await asyncio.Event().wait()
        channel = await _in_time(channel_layer.new_channel())
        # No `TaskGroup`: that cancels its tasks once, and a library below may swallow it.
        works = (self._listen, self._keep_groups, self._watch)
        self._serving = [self._loop.create_task(work(channel_layer, channel)) for work in works]
        try:
            ended, _ = await asyncio.wait(self._serving, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                if task.cancelled():
                    raise LayerDown("somebody below has cancelled a task")
                task.result()
        finally:
            await end_tasks(self._serving)

    async def _take_down(self) -> None:
        channel_layer = get_channel_layer()
        if channel_layer is None or not hasattr(channel_layer, "flush"):
            return
        try:
            await _in_time(channel_layer.flush())
        except Exception as error:  # noqa: BLE001  (it is being thrown away)
            logger.debug("the channel layer did not close: %s", error)

    async def _listen(self, channel_layer: Any, channel: str) -> None:
        heard = 0
        while True:
            message = await channel_layer.receive(channel)
            self._hear(message)
            heard += 1
            if heard % TURN == 0:
                await asyncio.sleep(0)

    async def _keep_groups(self, channel_layer: Any, channel: str) -> None:
        joined: set[str] = set()
        while True:
            self._regroup.clear()
            wanted = set(self._groups)
            for group in wanted - joined:
                await _in_time(channel_layer.group_add(group, channel))
            for group in joined - wanted:
                await _in_time(channel_layer.group_discard(group, channel))
            joined = wanted
            await self._regroup.wait()

    async def _watch(self, channel_layer: Any, channel: str) -> None:
        while True:
            self._canary += 1
            self._returned.clear()
            message = {"type": MESSAGE_TYPE, "body": layer.encode_canary(self._canary)}
            await _in_time(channel_layer.send(channel, message))
            await _in_time(self._returned.wait())
            self._report(True)
            await asyncio.sleep(conf().canary_interval.total_seconds())

    def _report(self, is_up: bool, error: Exception | None = None) -> None:
        if is_up and not self.is_up:
            logger.info("the channel layer is up")
        elif self.is_up and not is_up:
            logger.warning("the channel layer is down (%r); the log is read every second instead", error)
        self.is_up = is_up

    def _hear(self, envelope: dict[str, Any]) -> None:
        body = envelope.get("body")
        if layer.is_own_hint(body):
            return
        message = layer.decode(body)
        if isinstance(message, Canary):
            if message.sender == layer.INSTANCE and message.number == self._canary:
                self._returned.set()
        elif message is not None and message.sender != layer.INSTANCE:
            self._pass_on(message)

    def _pass_on(self, message: Hint | Control) -> None:
        fault("hint.heard")
        try:
            if isinstance(message, Control):
                self._receiver.hear_control(message)
            else:
                events = [layer.arrived(event) for event in message.events]
                self._receiver.hear_hint(message.topic, message.epoch, message.first, message.last, events)
        except Exception:
            # What was said is in the log; deafness would be worse than one message.
            logger.exception("a message of the channel layer could not be taken")


async def end_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait for them; a library below may swallow a cancellation, so more than once."""
    left = set(tasks)
    for _ in range(50):
        for task in left:
            task.cancel()
        if left:
            _, left = await asyncio.wait(left, timeout=0.1)
    if left:
        logger.error("%d tasks did not end", len(left))


async def _in_time(call: Any) -> Any:
    """Await `call` for the time-out of the layer at most."""
    try:
        # Not `wait_for`: in Python 3.11 that swallows a cancellation that meets the result.
        async with asyncio.timeout(conf().layer_timeout.total_seconds()):
            return await call
    except TimeoutError as error:
        raise LayerDown("no answer in time") from error
