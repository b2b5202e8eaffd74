"""How a client fares: figures that only it can know."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class ClientStats:
    """Counts since the client was made."""

    #: Connections made, the first included.
    connects: int = 0
    #: Times that a lost connection was sought again, and found.
    reconnects: int = 0
    events: int = 0
    #: Events that the server has acknowledged as committed.
    published: int = 0
    #: Acknowledgements of ours that the server has taken.
    acked: int = 0
    #: Requests that were tried more than once.
    retried: int = 0
    #: Requests given up after the last try. The next connection tells the server, which counts them, too.
    retries_failed: int = 0
    #: Publishes that were refused because too many waited already.
    overflowed: int = 0
    #: Publishes that wait for their acknowledgement now.
    waiting: int = 0
    #: Resumes in which the server no longer had everything.
    gaps: int = 0
    #: Seconds from a publish to its acknowledgement, the latest 1,000.
    ack_latencies: list[float] = field(default_factory=list)

    def note_latency(self, seconds: float) -> None:
        """Remember a latency."""
        self.ack_latencies.append(seconds)
        del self.ack_latencies[:-1_000]

    @property
    def ack_latency(self) -> float:
        """Median of the latest latencies, 0.0 before the first."""
        ordered = sorted(self.ack_latencies)
        return ordered[len(ordered) // 2] if ordered else 0.0
