"""Servers that lie: they accept connections and answer nonsense, late, without end or not at all.

A `Liar` speaks just enough of a protocol to know when it is asked, and then says what a test has told it to
say, which can be changed while it runs. Everything it does happens in threads of its own that end with it.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Self

from tests.servers import free_port

#: Sends an answer; False ends the connection.
Answer = Callable[["Turn"], bool]


class Turn:
    """One question that a liar is asked."""

    def __init__(self, sock: socket.socket, question: bytes, over: threading.Event) -> None:
        self.sock, self.question, self.over = sock, question, over

    def say(self, data: bytes) -> bool:
        self.sock.sendall(data)
        return True


def says(data: bytes) -> Answer:
    """Answers with `data`."""
    return lambda turn: turn.say(data)


def breaks_off(data: bytes = b"") -> Answer:
    """Says `data` and hangs up."""

    def answer(turn: Turn) -> bool:
        turn.say(data)
        return False

    return answer


def keeps_silent(turn: Turn) -> bool:
    """Never answers."""
    turn.over.wait()
    return False


def trickles(head: bytes, drop: bytes = b"a") -> Answer:
    """Says `head` and then a little every now and then, without end: no single wait is ever long."""

    def answer(turn: Turn) -> bool:
        turn.say(head)
        while not turn.over.wait(0.03):
            turn.say(drop)
        return False

    return answer


def is_late(data: bytes, seconds: float) -> Answer:
    """Answers properly, but only after a while."""

    def answer(turn: Turn) -> bool:
        turn.over.wait(seconds)
        return turn.say(data)

    return answer


def floods(head: bytes) -> Answer:
    """Says `head` and then as much as the other side takes."""

    def answer(turn: Turn) -> bool:
        turn.say(head)
        while not turn.over.is_set():
            turn.say(b"x" * 65_536)
        return False

    return answer


class Liar:
    """A server on a free port of the loopback interface."""

    def __init__(self, read: Callable[[socket.socket], Iterator[tuple[bytes, bool]]]) -> None:
        #: How many questions it was asked, and how many connections it was offered.
        self.asked = self.accepted = 0
        self.answer: Answer = keeps_silent
        self._read = read
        self._over = threading.Event()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", free_port()), backlog=64)
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.refuse()
        for sock in list(self._sockets):
            _shut(sock)
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()
        for sock in self._sockets:
            sock.close()

    def refuse(self) -> None:
        """Listen no longer: connections are refused from now on."""
        _shut(self._listener)
        self._listener.close()

    def _start(self, work: Callable[..., None], *given: object) -> None:
        thread = threading.Thread(target=work, args=given, name="liar", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self.accepted += 1
                self._sockets.append(sock)
                self._start(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        # Whoever has heard enough hangs up.
        with contextlib.suppress(OSError):
            for question, counts in self._read(sock):
                if not counts:
                    sock.sendall(question)
                    continue
                self.asked += 1
                if not self.answer(Turn(sock, question, self._over)):
                    break
        _shut(sock)


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def http_questions(sock: socket.socket) -> Iterator[tuple[bytes, bool]]:
    """Yield every request of an HTTP connection, whole."""
    data = b""
    while piece := sock.recv(65_536):
        data += piece
        while b"\r\n\r\n" in data:
            head, _, rest = data.partition(b"\r\n\r\n")
            length = next(
                (int(line[15:]) for line in head.lower().split(b"\r\n") if line[:15] == b"content-length:"), 0
            )
            if len(rest) < length:
                break
            yield head + b"\r\n\r\n" + rest[:length], True
            data = rest[length:]


def redis_questions(sock: socket.socket) -> Iterator[tuple[bytes, bool]]:
    """Yield each MGET of a connection, whole; the client's greetings are answered properly."""
    with sock.makefile("rb") as stream:
        while head := stream.readline():
            words = [
                stream.read(int(stream.readline()[1:]) + 2).rstrip(b"\r\n") for _ in range(int(head[1:]))
            ]
            if words[0].upper() == b"MGET":
                yield b"\r\n".join(words), True
            else:
                yield b"+OK\r\n", False


def any_bytes(sock: socket.socket) -> Iterator[tuple[bytes, bool]]:
    """Yield whatever comes."""
    while data := sock.recv(65_536):
        yield data, True
