"""The publishes of one connection: begun at once, committed together, answered in the order of their coming.

A client that sends a thousand publishes in one frame is not to wait for a thousand commits one after the
other. What came in one frame goes to the log as one group, with one future for all of it; many groups may be
under way, and whatever is done at the head of the line is answered in one frame.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias, TypeGuard

from bus import publishing
from bus.access.permissions import ANONYMOUS
from bus.doors import remote
from bus.doors.remote import Caller, PublishCall
from bus.doors.sockets import as_bus_error
from bus.drafts import Draft, Options, Publisher, draft_verbatim
from bus.log import Appended
from bus.metrics import ACK_LATENCY
from bus.protocol.actions import Action, Publish, Rpc
from bus.protocol.errors import BusError, Disconnect, InternalError
from bus.protocol.frames import join
from bus.protocol.session import Session

#: Commands of one frame that are committed together; more of them make several groups, so that the first are
#: stored while the last are still being read.
TOGETHER = 64

Results: TypeAlias = list[Appended | BusError]


class _Group(NamedTuple):
    """Publishes that came together."""

    actions: Sequence[Publish | Rpc]
    #: For each an event, or why there is none.
    drafts: Sequence[Draft | BusError]
    #: What became of the events.
    results: asyncio.Future[Results]
    began: float


class Pipeline:
    """The line of one connection.

    Args:
        session: makes the words of the answers.
        send: takes a frame of answers.
        caller: says who publishes, for each group anew.
        depth: how many publishes may be under way; whoever adds more waits.
    """

    def __init__(
        self,
        session: Session,
        *,
        send: Callable[[bytes], None],
        caller: Callable[[], Caller],
        depth: int = 512,
    ) -> None:
        self._session = session
        self._send = send
        self._caller = caller
        self._depth = depth
        self._publisher = Publisher(ANONYMOUS)
        self._loop = asyncio.get_running_loop()
        self._line: deque[_Group] = deque()
        self._under_way = 0
        self._moved = asyncio.Event()
        self._is_due = False

    @staticmethod
    def takes(action: Action) -> TypeGuard[Publish | Rpc]:
        """Tell whether an action publishes."""
        return isinstance(action, Publish) or (isinstance(action, Rpc) and action.method == "bus.publish")

    async def publish(self, actions: Sequence[Publish | Rpc]) -> None:
        """Begin to publish what came in one frame; waits only while too much is under way.

        Raises:
            Disconnect: it was told often enough that this is too fast. What came before is answered then.
        """
        for start in range(0, len(actions), TOGETHER):
            part = actions[start : start + TOGETHER]
            while self._line and self._under_way + len(part) > self._depth:
                await self._wait()
            try:
                self._begin(part)
            except Disconnect:
                await self.drain()
                raise

    async def drain(self) -> None:
        """Wait until all that was begun is answered."""
        while self._line:
            await self._wait()

    def _begin(self, actions: Sequence[Publish | Rpc]) -> None:
        began = time.perf_counter()
        drafts = self._drafted(actions)
        results = self._submit([draft for draft in drafts if isinstance(draft, Draft)])
        self._line.append(_Group(actions, drafts, results, began))
        self._under_way += len(actions)
        results.add_done_callback(self._soon)

    def _drafted(self, actions: Sequence[Publish | Rpc]) -> list[Draft | BusError]:
        caller = self._caller()
        if self._publisher.by is not caller.identity:
            self._publisher = Publisher(caller.identity, caller.info)
        options: Options = {"publisher": self._publisher, "is_checked": True}
        return [_draft(caller, action, options) for action in actions]

    def _submit(self, drafts: list[Draft]) -> asyncio.Future[Results]:
        results: Results = []
        if drafts:
            try:
                return publishing.publish_together(drafts)
            except BusError as error:
                results = [error] * len(drafts)
        done: asyncio.Future[Results] = self._loop.create_future()
        done.set_result(results)
        return done

    async def _wait(self) -> None:
        self._moved.clear()
        await self._moved.wait()

    def _soon(self, _: object) -> None:
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._answer)

    def _answer(self) -> None:
        self._is_due = False
        words: list[bytes] = []
        while self._line and self._line[0].results.done():
            group = self._line.popleft()
            self._under_way -= len(group.actions)
            words += self._words(group)
        if words:
            self._send(join(words))
        self._moved.set()

    def _words(self, group: _Group) -> list[bytes]:
        """Answer a group. Its publishes were stored at one moment, and so count once as a latency."""
        error = InternalError() if group.results.cancelled() else group.results.exception()
        if isinstance(error, Exception):
            refusal = as_bus_error(error)
            return [self._session.failed(action, refusal) for action in group.actions]
        ACK_LATENCY.observe(time.perf_counter() - group.began)
        results = (as_bus_error(one) if isinstance(one, BusError) else one for one in group.results.result())
        return [
            self._word(action, next(results) if isinstance(draft, Draft) else draft)
            for action, draft in zip(group.actions, group.drafts, strict=True)
        ]

    def _word(self, action: Publish | Rpc, result: Appended | BusError) -> bytes:
        if isinstance(result, BusError):
            return self._session.failed(action, result)
        if isinstance(action, Rpc):
            return self._session.called(action, remote.place_of(result))
        return self._session.published(action)


def _draft(caller: Caller, action: Publish | Rpc, options: Options) -> Draft | BusError:
    """Draft what a command publishes; its data has passed `strict_json` with the frame.

    Raises:
        Disconnect: this client is far too fast, and does not listen.
    """
    try:
        caller.check_generation()
        if isinstance(action, Rpc):
            return remote.draft_of(remote.arguments(PublishCall, action.data), options)
        return draft_verbatim(action.topic, action.data, None, options)
    except Exception as error:  # noqa: BLE001  (as_bus_error logs what is not ours)
        return as_bus_error(error)
