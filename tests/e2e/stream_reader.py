"""A reader of server-sent events by the letter of the HTML standard, which comes again like a browser."""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

import httpx

from tests.servers import PATIENCE


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One event of a stream."""

    name: str
    data: Any
    #: The last id at that point.
    id: str

    @property
    def offset(self) -> int:
        """Place in the topic."""
        return int(self.id.partition(":")[2])


class StreamReader(threading.Thread):
    """Reads a stream until it is told to stay away.

    Args:
        url: address of the stream.
        headers: of each request.
        comes_again: whether it reconnects with the last id when a stream ends.
    """

    def __init__(self, url: str, headers: dict[str, str], *, comes_again: bool = False) -> None:
        super().__init__(name=f"reads {url}", daemon=True)
        self.url = url
        self.comes_again = comes_again
        self.told: list[Told] = []
        self.statuses: list[int] = []
        #: The id with which each answer was asked for.
        self.resumed: list[str] = []
        self.comments = 0
        self.last_id = ""
        self._headers = headers
        self._changed = threading.Condition()
        self._response: httpx.Response | None = None
        self._stopping = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        if self._response is not None:
            # The socket itself: closing the response from here would wait for the thread that reads it.
            stream = self._response.extensions["network_stream"]
            with suppress(OSError):  # it has ended already
                stream.get_extra_info("socket").shutdown(2)
        self.join(PATIENCE)

    def run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._read()
            except (httpx.TransportError, OSError):
                self._note_status(0)
            if not self.comes_again or self.statuses[-1] == 204:
                return
            self._stopping.wait(0.05)

    def _read(self) -> None:
        resume = {"Last-Event-ID": self.last_id} if self.last_id else {}
        timeout = httpx.Timeout(PATIENCE, read=PATIENCE)
        with httpx.stream("GET", self.url, headers={**self._headers, **resume}, timeout=timeout) as response:
            self._response = response
            self._note_status(response.status_code)
            self.resumed.append(self.last_id)
            if response.status_code == 200:
                self._take(response)

    def _take(self, response: httpx.Response) -> None:
        fields: dict[str, str] = {}
        for line in response.iter_lines():
            if not line:
                self._dispatch(fields)
                fields = {}
            elif line.startswith(":"):
                self.comments += 1
            else:
                name, _, value = line.partition(":")
                fields[name] = value.removeprefix(" ")

    def _dispatch(self, fields: dict[str, str]) -> None:
        self.last_id = fields.get("id", self.last_id)
        if "data" in fields:
            with self._changed:
                data = json.loads(fields["data"])
                self.told.append(Told(name=fields.get("event", "message"), data=data, id=self.last_id))
                self._changed.notify_all()

    def _note_status(self, status: int) -> None:
        with self._changed:
            self.statuses.append(status)
            self._changed.notify_all()

    def wait(self, count: int = 1, *, name: str = "", timeout: float = PATIENCE) -> list[Told]:
        """Wait for so many events (of a name) and return all of these."""
        with self._changed:
            came = self._changed.wait_for(lambda: len(self.of(name)) >= count, timeout)
        assert came, (
            f"{self.url}: {len(self.of(name))} of {count} {name}; {self.statuses}, "
            f"holes {self._holes()}, asked from {self.resumed}"
        )
        return self.of(name)

    def _holes(self) -> list[str]:
        """Where an offset is not the one after the last, for the message of a failure."""
        ids = [told.id for told in self.told]
        offsets = [told.offset for told in self.told]
        return [
            f"{ids[at]} after {ids[at - 1]}"
            for at in range(1, len(ids))
            if offsets[at] != offsets[at - 1] + 1
        ]

    def of(self, name: str) -> list[Told]:
        """Events of one name, or of all."""
        return [told for told in self.told if name in ("", told.name)]

    def wait_open(self, count: int = 1, timeout: float = PATIENCE) -> None:
        """Wait until the server has answered so often."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.statuses) >= count, timeout), self.statuses

    def wait_over(self, timeout: float = PATIENCE) -> None:
        """Wait until it reads no more."""
        self.join(timeout)
        assert not self.is_alive(), f"{self.url} still reads after {timeout} s"
