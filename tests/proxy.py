"""A TCP proxy that breaks connections on purpose: RST, FIN, black hole, half-open, delay, a cut in a frame.

It stands between a client and a real server and runs in a thread of its own, so that a test that
blocks does not stop the traffic. What it is told holds for the connections that are open and for those
to come.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from typing import Self, TypeVar

from tests.servers import PATIENCE

T = TypeVar("T")


class TcpProxy:
    """Forwards a port of its own to another one of the loopback interface until told otherwise."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        #: Connections that were ever accepted.
        self.accepted = 0
        #: Seconds that each piece waits before it is passed on.
        self.delay = 0.0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        #: Sides that were left alone by `halve`: open until the other end or the proxy closes them.
        self._orphans: set[asyncio.StreamWriter] = set()
        self._flowing: asyncio.Event
        self._refusing = False
        #: Bytes still to be passed to clients before all connections are cut, or None.
        self._allowance: int | None = None

    @property
    def socket(self) -> str:
        """Address of the Centrifugo protocol, through the proxy."""
        return f"ws://127.0.0.1:{self.port}/connection/websocket"

    @property
    def open(self) -> int:
        """How many connections pass through it now; the end of one is noticed a moment later."""
        return self._do(lambda: len(self._pairs))

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._serve(), self._loop).result(PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(PATIENCE)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()

    def cut(self, *, reset: bool = True) -> int:
        """End all open connections, by RST or by FIN; returns how many there were."""
        return self._do(lambda: self._cut(reset=reset))

    def cut_after(self, count: int) -> None:
        """Reset everything once `count` more bytes have gone to clients, be it within a frame."""
        self._do(lambda: setattr(self, "_allowance", count))

    def halve(self, *, lost: str) -> None:
        """Leave open connections half-open: `lost` (`client` or `server`) is reset, the other side is told
        nothing and hears nothing any more."""
        self._do(lambda: self._halve(lost))

    def hold(self) -> None:
        """Become a black hole: connections stay open and nothing passes, in either direction."""
        self._do(lambda: self._flowing.clear())

    def release(self) -> None:
        """Pass on what was held back, and let new connections in."""
        self._refusing = False
        self._do(lambda: self._flowing.set())

    def refuse(self, *, reset: bool = True) -> None:
        """End the open connections, by RST or by FIN, and reset each new one, as if nobody listened."""
        self._refusing = True
        self.cut(reset=reset)

    def _do(self, action: Callable[[], T]) -> T:
        async def act() -> T:
            return action()

        return asyncio.run_coroutine_threadsafe(act(), self._loop).result(PATIENCE)

    def _cut(self, *, reset: bool) -> int:
        pairs = list(self._pairs)
        for client, server in pairs:
            for writer in (client, server):
                if reset:
                    _reset(writer)
                else:
                    writer.close()
        return len(pairs)

    def _halve(self, lost: str) -> None:
        for client, server in list(self._pairs):
            gone, left = (client, server) if lost == "client" else (server, client)
            self._orphans.add(left)
            _reset(gone)

    async def _serve(self) -> None:
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _end(self) -> None:
        self._server.close()
        self._cut(reset=True)
        for writer in self._orphans:
            _reset(writer)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.accepted += 1
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await self._join(reader, writer)
        self._abort(writer)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            _reset(writer)
            return
        upstream, server = await asyncio.open_connection("127.0.0.1", self.target)
        pair = (writer, server)
        self._pairs.add(pair)
        try:
            await asyncio.gather(self._pass(reader, server), self._pass(upstream, writer, to_client=True))
        finally:
            self._pairs.discard(pair)
            self._abort(server)

    def _abort(self, writer: asyncio.StreamWriter) -> None:
        if writer not in self._orphans:
            writer.transport.abort()

    async def _pass(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, to_client: bool = False
    ) -> None:
        while piece := await source.read(65_536):
            await asyncio.sleep(self.delay)
            await self._flowing.wait()
            if to_client and self._allowance is not None and len(piece) >= self._allowance:
                target.write(piece[: self._allowance])
                await target.drain()
                self._allowance = None
                self._cut(reset=True)
                return
            if to_client and self._allowance is not None:
                self._allowance -= len(piece)
            target.write(piece)
            await target.drain()
        if target not in self._orphans:
            with contextlib.suppress(OSError):
                target.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST: a lingering time of zero throws away what was not sent."""
    with contextlib.suppress(OSError):  # closed already
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()
