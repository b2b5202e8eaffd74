"""Schedules of kills, and the life that goes on around them: for the test of promise P2.

A schedule says at which crash point each web server and the clerk is to die, and when Valkey, the worker,
beat or the database is killed. `Stage` plays schedules one after the other; whoever is dead at the end of one
is started again, armed, at the beginning of the next.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from websockets.asyncio.client import ClientConnection

from bus.faults import POINTS
from tests.harness import Program, Site, Web
from tests.swarm import Client, quietly

#: Points that only code without an event loop passes.
OF_CLERK = frozenset(
    {
        "publish.before_append",
        "publish.in_transaction",
        "log.after_trim",
        "log.after_remove",
        "leases.reaped",
        "presence.ended",
    }
)
OF_WEB = POINTS - OF_CLERK
#: Points that are passed often: there a later visit is as interesting as the first.
OFTEN = ("writer.", "log.", "hint.", "hub.", "publish.", "replay.")
#: A point that was not passed so long (s) after its process began to work is given up, by SIGKILL.
PATIENCE = 5.0
#: The same, from the start of the process.
START = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Who dies where, and who when."""

    #: Crash point of each web server, with the visit that counts.
    webs: tuple[str, ...]
    #: Crash point of the clerk; empty: it lives.
    clerk: str
    #: Others by name, each with the seconds after which it is killed.
    others: dict[str, float]


def schedules(dice: random.Random, count: int, *, webs: int, others: Sequence[str]) -> Iterator[Schedule]:
    """Draw schedules; every point comes once before any comes again."""
    of_web, of_clerk = _endless(dice, OF_WEB), _endless(dice, OF_CLERK)
    for number in range(count):
        victims = dice.sample(others, dice.randint(0, 2))
        yield Schedule(
            webs=tuple(next(of_web) for _ in range(webs)),
            clerk=next(of_clerk) if number % 3 == 0 else "",
            others={name: round(dice.uniform(0.3, 3.0), 2) for name in victims},
        )


def _endless(dice: random.Random, points: frozenset[str]) -> Iterator[str]:
    while True:
        order = sorted(points)
        dice.shuffle(order)
        for point in order:
            visit = dice.randint(1, 3) if point.startswith(OFTEN) and point != "hub.before_page" else 1
            yield f"{point}:{visit}:kill"


class Stage:
    """The processes of one site, and the play of schedules on them."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.clerk = Program(
            "clerk", [sys.executable, "-m", "tests.chaos.clerk"], site.environment, site.folder / "clerk.log"
        )
        #: Points at which a process has died.
        self.reached: set[str] = set()
        self.missed: list[str] = []
        #: Where in its log each program was started.
        self._marks: dict[str, int] = {}

    @property
    def killers(self) -> dict[str, Callable[[], None]]:
        """How to kill each of the others; all of them come back at once."""
        site = self.site
        killers = {
            "valkey": lambda: (site.valkey.kill(), site.valkey.start()),
            "worker": lambda: (site.worker.kill(), site.worker.start()),
            "beat": lambda: (site.beat.kill(), site.beat.start()),
        }
        if (postgres := site.postgres) is not None:
            killers["postgres"] = lambda: (postgres.crash(), postgres.restart())
        return killers

    def play(self, schedule: Schedule) -> None:
        """Start the dead, armed; wait for their ends, and kill the others at their times."""
        armed = self._arm(schedule)
        began = worked = time.monotonic()
        owed = dict(schedule.others)
        while time.monotonic() < min(began + START, worked + PATIENCE) and (armed or owed):
            if not all(map(self._works, armed)):
                worked = time.monotonic()
            for name, after in list(owed.items()):
                if time.monotonic() - began >= after:
                    del owed[name]
                    self.killers[name]()
            for program, point in list(armed.items()):
                self._nudge(program, point)
                if not program.is_alive:
                    self._note(program, armed.pop(program))
            time.sleep(0.02)
        for program, point in armed.items():
            program.kill()
            self.missed.append(point)

    def _arm(self, schedule: Schedule) -> dict[Program, str]:
        armed: dict[Program, str] = dict(zip(self.site.web, schedule.webs, strict=True))
        if schedule.clerk:
            self.clerk.kill()
            armed[self.clerk] = schedule.clerk
        for program, point in armed.items():
            program.kill()
            self._marks[program.name] = program.log.stat().st_size if program.log.exists() else 0
            program.start(FAULT=point)
        return armed

    def _works(self, program: Program) -> bool:
        """Whether it has begun its work, or has ended."""
        words = "the channel layer is up" if isinstance(program, Web) else "acked"
        return not program.is_alive or program.said(words, since=self._marks[program.name])

    def _nudge(self, program: Program, point: str) -> None:
        """A server dies at a point of its orderly end only if it is told to end."""
        is_web = isinstance(program, Web) and point.startswith("shutdown.")
        if is_web and program.is_alive and self._works(program):
            assert program.process is not None
            program.process.terminate()

    def _note(self, program: Program, armed: str) -> None:
        point = armed.partition(":")[0]
        if program.said(f"fault {point}", since=self._marks[program.name]):
            self.reached.add(point)
        else:
            self.missed.append(armed)

    def heal(self) -> None:
        """Start everything, without faults."""
        for program in (*self.site.web, self.clerk):
            program.kill()
            program.start()
        for web in self.site.web:
            web.wait_ready()

    def orders(self) -> list[tuple[int, int]]:
        """Number and offset of each order that the clerk called committed."""
        lines = self.clerk.log.read_text(errors="replace").splitlines()
        return [(int(line.split()[1]), int(line.split()[2])) for line in lines if line.startswith("acked ")]


class Visitor(Client):
    """Comes, reads what a topic held before, acknowledges what it has read, and goes; again and again.

    It stays for `stay` seconds, and reads from `depth` events before where it was on.
    """

    def __init__(
        self,
        name: str,
        urls: Sequence[str],
        token: str,
        topic: str,
        *,
        stay: float = 0.4,
        depth: int = 10**9,
    ) -> None:
        super().__init__(name, urls, token)
        self.topic = topic
        self.stay = stay
        self.depth = depth
        #: The furthest offset whose ack was confirmed.
        self.confirmed = 0
        self._epoch = ""
        self._last = 0

    def greeting(self) -> list[dict[str, Any]]:
        """Connect, and recover once the epoch is known."""
        subscribe: dict[str, Any] = {"channel": self.topic, "positioned": True, "recoverable": True}
        if self._epoch:
            subscribe |= {"recover": True, "epoch": self._epoch, "offset": max(0, self._last - self.depth)}
        return [*super().greeting(), {"id": 2, "subscribe": subscribe}]

    async def _talk(self, socket: ClientConnection) -> None:
        leaving = asyncio.get_running_loop().call_later(
            self.stay, lambda: asyncio.ensure_future(socket.close())
        )
        try:
            await super()._talk(socket)
        finally:
            leaving.cancel()

    def answered(self, message: dict[str, Any]) -> None:
        """Acknowledge what came with the subscription."""
        super().answered(message)
        if result := message.get("subscribe"):
            self._epoch, self._last = result["epoch"], result.get("offset", 0)
            self._acknowledge()
        elif "rpc" in message:
            self.confirmed = max(self.confirmed, message["rpc"]["data"]["offset"])

    def _acknowledge(self) -> None:
        if self._last and self._socket is not None:
            call = {"method": "bus.ack", "data": {"topic": self.topic, "offset": self._last}}
            sending = self._socket.send(json.dumps({"id": 3, "rpc": call}))
            self._sending = asyncio.ensure_future(quietly(sending))
