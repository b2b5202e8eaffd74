"""What was stored, what every client saw of it, and the judge who compares the two.

Clients tell of each reading (one subscription from its request to its end) as the protocol document has them
keep account: where it starts, event after event, how it ends. The judge knows the log itself and every trim,
so it can tell a refusal that had to be from one that had not.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bus.protocol.positions import Position

#: Seconds until every process has noticed that a topic began anew: a tick, and slow threads.
UNNOTICED = 2.0


@dataclass(slots=True)
class Life:
    """One epoch of a topic, as it was committed."""

    topic: str
    epoch: str
    born: float
    #: When it ended by a new beginning or a removal.
    died: float | None = None
    #: Offset to the number of the event and the time of its commit.
    events: dict[int, tuple[int, float]] = field(default_factory=dict)
    #: When the first offset moved, and to where.
    trims: list[tuple[float, int]] = field(default_factory=list)

    def first_offset(self, moment: float) -> int:
        return max((first for at, first in self.trims if at <= moment), default=1)

    def last_offset(self, moment: float) -> int:
        return max((offset for offset, (_, at) in self.events.items() if at <= moment), default=0)


@dataclass(slots=True, kw_only=True)
class Reading:
    """One subscription of a client."""

    client: str
    topic: str
    since: Position | None
    asked_at: float
    replied_at: float | None = None
    recovered: bool = False
    epoch: str = ""
    start: int = 0
    #: The last event it was given.
    at: int = 0
    ended_at: float | None = None
    #: What the server said when it ended the subscription; 0: nothing, or the client left.
    code: int = 0
    #: The client was cut off, or closed as slow.
    was_cut: bool = False


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was not kept."""

    kind: str
    words: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.words}"


class History:
    """See the module."""

    def __init__(self) -> None:
        self.lives: dict[str, Life] = {}
        self.readings: list[Reading] = []
        self.violations: list[Violation] = []
        #: Times at which the log or a process failed on purpose.
        self.failures: list[float] = []
        self.trace: list[tuple[float, str, str, int]] = []

    def life(self, topic: str, epoch: str, now: float) -> Life:
        """Return a life; a new one ends those before it."""
        if epoch not in self.lives:
            self.died(topic, now)
            self.lives[epoch] = Life(topic, epoch, now)
        return self.lives[epoch]

    def died(self, topic: str, now: float) -> None:
        """A topic was removed, or begins anew."""
        for life in self.lives.values():
            if life.topic == topic and life.died is None:
                life.died = now

    def stored(self, topic: str, epoch: str, offset: int, number: int, now: float) -> None:
        """An event is committed."""
        events = self.life(topic, epoch, now).events
        if offset in events:
            self.blame("stored twice", f"{topic} has two events {offset}")
        events[offset] = (number, now)

    def trimmed(self, topic: str, epoch: str, first_offset: int, now: float) -> None:
        """Events before `first_offset` are gone."""
        self.life(topic, epoch, now).trims.append((now, first_offset))

    def begins(self, reading: Reading) -> None:
        """A client has asked for a topic."""
        self.readings.append(reading)

    def replied(self, reading: Reading, now: float, *, epoch: str, start: int, recovered: bool) -> None:
        """The client was told where it starts, before any event of the answer."""
        reading.replied_at, reading.epoch, reading.recovered = now, epoch, recovered
        reading.start = reading.at = start
        self._note(now, reading, "starts", start)
        since = reading.since
        if recovered and since is not None and not since.is_in(epoch):
            self.blame("crossed epochs", f"{reading.client} recovered {since} in {epoch}")
        if not recovered and since is not None and not self._may_refuse(reading, now):
            self.blame("needless refusal", f"{reading.client} could have gone on from {since}")

    def given(self, reading: Reading, offset: int, number: int, now: float) -> None:
        """The client was given an event."""
        self._note(now, reading, "event", offset)
        if reading.replied_at is None:
            self.blame("early", f"{reading.client} got {offset} before the answer")
        if offset <= reading.at:
            kind = "duplicate" if offset > reading.start else "out of order"
            self.blame(kind, f"{reading.client} got {offset} after {reading.at}")
        elif offset > reading.at + 1:
            self.blame("skipped", f"{reading.client} got {offset} after {reading.at}")
        life = self.lives.get(reading.epoch)
        if life is None or life.events.get(offset, (None,))[0] != number:
            self.blame("wrong event", f"{reading.client} got {number} as {offset} of {reading.epoch}")
        reading.at = max(reading.at, offset)

    def ended(self, reading: Reading, now: float, code: int) -> None:
        """The server has ended the subscription."""
        reading.ended_at, reading.code = now, code
        self._note(now, reading, "ended", code)
        if code >= 2500 and not self._may_end(reading, now):
            self.blame("needless end", f"{reading.client} was ended with {code} at {reading.at}")

    def left(self, reading: Reading, now: float, *, was_cut: bool) -> None:
        """The client has gone, or was cut off."""
        if reading.ended_at is None:
            reading.ended_at, reading.was_cut = now, was_cut
            self._note(now, reading, "left", reading.at)

    def finish(self) -> None:
        """Judge what can be judged only at the end: what was never given, and what was stored too late."""
        for reading in self.readings:
            self._judge_start(reading)
            if reading.ended_at is None:
                self._judge_end(reading)

    def _judge_start(self, reading: Reading) -> None:
        """Nothing may be committed later at a place that the reader was told to be past."""
        life = self.lives.get(reading.epoch)
        if reading.replied_at is None or life is None:
            return
        late = [
            o for o in range(1, reading.start + 1) if life.events.get(o, (0, 0.0))[1] > reading.replied_at
        ]
        if late:
            self.blame("lost", f"{reading.client} starts at {reading.start}, and {late} were committed later")

    def _judge_end(self, reading: Reading) -> None:
        """Whoever reads to the end has everything, of the life that the topic has."""
        life = self.lives.get(reading.epoch)
        if reading.replied_at is None:
            self.blame("lost", f"{reading.client} was never answered")
        elif life is None:
            if any(other.topic == reading.topic and other.died is None for other in self.lives.values()):
                self.blame("lost", f"{reading.client} reads a life that there is not")
        elif life.died is not None:
            self.blame("lost", f"{reading.client} still reads a life that is over")
        elif reading.at != max(life.events, default=0):
            self.blame("lost", f"{reading.client} ends at {reading.at} of {max(life.events, default=0)}")

    def blame(self, kind: str, words: str) -> None:
        """Note a violation."""
        self.violations.append(Violation(kind, words))

    def kinds(self) -> set[str]:
        """What sorts of violations there were."""
        return {violation.kind for violation in self.violations}

    def _note(self, now: float, reading: Reading, what: str, number: int) -> None:
        self.trace.append((round(now, 9), reading.client, what, number))

    def _may_refuse(self, reading: Reading, now: float) -> bool:
        """Whether the position could not be continued at some time between request and answer."""
        since = reading.since
        assert since is not None
        asked = reading.asked_at
        return not any(
            life.topic == reading.topic
            and since.is_in(life.epoch)
            and life.born <= asked
            and life.died is None
            and life.first_offset(now) - 1 <= since.offset <= life.last_offset(asked)
            for life in self.lives.values()
        )

    def _may_end(self, reading: Reading, now: float) -> bool:
        """Whether there was a reason: another life, a trim that overtook the reader, a failure.

        For a moment after a topic began anew a process still passes on the former life to others.
        """
        life = self.lives.get(reading.epoch)
        if life is None or life.died is not None or now < life.born + UNNOTICED:
            return True
        if any(reading.asked_at <= failure <= now for failure in self.failures):
            return True
        if life.first_offset(now) > reading.at + 1:
            return True
        # It may have been the others of its process that a trim has overtaken: then all have to come again.
        return any(reading.asked_at - UNNOTICED <= at <= now for at, _ in life.trims)
