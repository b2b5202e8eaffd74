"""A publisher that does not give up: numbered events over HTTP, each retried under its key."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

import httpx

from tests.servers import PATIENCE, wait_until


@dataclass(frozen=True, slots=True, kw_only=True)
class Ack:
    """What the server said of one event."""

    offset: int
    epoch: str
    #: When it was first sent and when it was acknowledged, in seconds since 1970.
    sent_at: float
    acked_at: float
    #: Requests that it took.
    tries: int


class Publisher(threading.Thread):
    """Publishes events 1 to `count` to a topic, one after the other, over several servers in turn."""

    def __init__(
        self, servers: list[str], *, key: str, topic: str, count: int, pause: float = 0.0, series: str = ""
    ) -> None:
        super().__init__(name=f"publishes {topic}", daemon=True)
        self.servers = servers
        self.topic = topic
        self.count = count
        self.pause = pause
        #: Tells the keys of several publishers of one topic apart.
        self.series = series
        self.acks: list[Ack] = []
        self._headers = {"X-API-Key": key}
        self._stopping = threading.Event()

    def run(self) -> None:
        with httpx.Client(headers=self._headers, timeout=10) as http:
            for number in range(1, self.count + 1):
                if (ack := self._publish(http, number)) is None:
                    return
                self.acks.append(ack)
                self._stopping.wait(self.pause)

    def _publish(self, http: httpx.Client, number: int) -> Ack | None:
        tries, sent_at = 0, time.time()
        while not self._stopping.is_set():
            server = self.servers[(number + tries) % len(self.servers)]
            tries += 1
            if (result := self._request(http, server, number)) is not None:
                return Ack(
                    offset=result["offset"],
                    epoch=result["epoch"],
                    sent_at=sent_at,
                    acked_at=time.time(),
                    tries=tries,
                )
            self._stopping.wait(0.05)
        return None

    def _request(self, http: httpx.Client, server: str, number: int) -> dict[str, Any] | None:
        body = {"channel": self.topic, "data": {"n": number}}
        headers = {"Idempotency-Key": f"{self.topic}/{self.series}/{number}"}
        try:
            answer = http.post(f"{server}/api/publish", json=body, headers=headers)
        except httpx.TransportError:
            return None
        if answer.status_code >= 500:
            return None
        assert answer.status_code == 200, answer.text
        return answer.json().get("result")

    def wait_for(self, number: int, timeout: float = 2 * PATIENCE) -> None:
        """Wait until event `number` is acknowledged."""

        def acknowledged() -> bool:
            assert self.is_alive() or len(self.acks) >= number, "the publisher ended"
            return len(self.acks) >= number

        wait_until(acknowledged, timeout=timeout, interval=0.005, what=f"ack {number} of {self.topic}")

    def finish(self, timeout: float = 3 * PATIENCE) -> list[Ack]:
        """Wait until all are acknowledged and return the acks, in order."""
        self.wait_for(self.count, timeout)
        self.join(PATIENCE)
        return self.acks

    def stop(self) -> None:
        """Give up."""
        self._stopping.set()
        self.join(PATIENCE)
