"""What is measured over sockets, and the list of all figures.

Each contestant gets the same event, the same clients and a server process of its own, alone at that time. A
figure of a server is its CPU time divided by what it delivered, the publishing included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from django.db import connection

from bus.access import tokens
from bus.bench import inside
from bus.bench.processes import NotInstalled, Server, bus, clients, layer_is_there, naive, nats, node
from bus.bench.report import Budget, Figure

#: Subscribers of the delivery figures.
FEW, MANY = 100, 500
#: Idle connections of the memory figure: enough to tell a connection from the noise of the process.
IDLE = 1_000
#: Publishers and publishes of each under way in the figures of the write path.
PUBLISHERS, EACH = 16, 16
#: Publishes in one of the larger frames there.
LARGE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to run."""

    #: Time for one measurement.
    seconds: float = 3.0
    #: Folder with npm packages to compare with.
    node_modules: Path = Path("node_modules")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """A server, and how the load speaks to it."""

    name: str
    run: Callable[[], AbstractContextManager[Server]]
    kind: str
    options: dict[str, Any]

    def spec(self, server: Server, **rest: Any) -> dict[str, Any]:
        """Return the spec of a load."""
        return {"port": server.port, "kind": self.kind, "options": self.options, **rest}


def delivery(options: Options) -> Figure:
    """One event at a time to all subscribers: a frame each, nothing to join."""
    figure = Figure(
        name="delivery",
        title="One event in flight: the next is published when every subscriber has the last",
        compared="CPU us a delivery",
        base=f"bus, not stored, {FEW}",
    )
    cheap = Budget("CPU us a delivery", 5, at_most=True)
    soon = Budget("p99 ms", 1, at_most=True)
    for contestant, server in _each(figure, options, stored=None):
        for readers in (FEW, MANY):
            spec = contestant.spec(server, readers=readers, publishers=1, lockstep=True)
            budgets = [cheap, soon] if readers == FEW else [cheap]
            name = f"{contestant.name}, {readers}"
            _deliver(figure, name, server, spec, options, *_ours(contestant, *budgets, stored=False))
    return figure


def joined(options: Options) -> Figure:
    """Many stored events under way: whoever commits or reads together may send together."""
    figure = Figure(
        name="joined",
        title=f"Stored events, 32 in flight, {FEW} subscribers",
        compared="CPU us a delivery",
        base="bus, stored",
    )
    for contestant, server in _each(figure, options, stored=True):
        spec = contestant.spec(server, readers=FEW, publishers=1, in_flight=32)
        budgets = _ours(contestant, Budget("CPU us a delivery", 0.5, at_most=True))
        _deliver(figure, contestant.name, server, spec, options, *budgets)
    return figure


def socket(options: Options) -> Figure:
    """The write path of one server process: receive, store, acknowledge."""
    figure = Figure(
        name="socket",
        title=f"Stored publishes over WebSockets, {PUBLISHERS} x {EACH} in flight, or x {LARGE}, one reader",
        compared="events/s",
        more_is_better=True,
        base="bus, stored, one a frame",
    )
    ways = {"one a frame": (EACH, False), f"{EACH} a frame": (EACH, True), f"{LARGE} a frame": (LARGE, True)}
    for contestant, server in _each(figure, options, stored=True):
        joins = contestant.kind in ("bus", "nats")
        for way, (in_flight, is_joined) in ways.items():
            if joins or not is_joined:
                spec = contestant.spec(
                    server,
                    readers=1,
                    publishers=PUBLISHERS,
                    in_flight=in_flight,
                    joined=is_joined,
                    seconds=options.seconds,
                )
                budget = Budget("events/s", 40_000 if is_joined else 10_000)
                name = f"{contestant.name}, {way}" if joins else contestant.name
                _publish(figure, name, server, spec, *_ours(contestant, budget))
    return figure


def _publish(figure: Figure, name: str, server: Server, spec: dict[str, Any], *budgets: Budget) -> None:
    with _reported(figure, name), clients(**spec) as load:
        before = server.cpu_seconds()
        found = load.go()
        used = server.cpu_seconds() - before
        values = {
            "events/s": found["published"] / found["seconds"],
            "CPU us an event": 1e6 * used / found["published"],
            "ack p50 ms": found["p50_ms"],
            "ack p99 ms": found["p99_ms"],
        }
        figure.add(name, values, *budgets)


def latency(options: Options) -> Figure:
    """How long a stored event takes to its reader while the server does half of what it can."""
    figure = Figure(
        name="latency",
        title="From the publish of a stored event until a reader has it, at half load",
        compared="p99 ms",
        base="bus, stored",
    )
    budget = Budget("p99 ms", 20, at_most=True)
    for contestant, server in _each(figure, options, stored=True):
        spec = contestant.spec(server, readers=1, publishers=1, seconds=options.seconds)
        with _reported(figure, contestant.name):
            with clients(**spec, in_flight=PUBLISHERS * EACH) as load:
                full = load.go()
            half = full["published"] / full["seconds"] / 2
            with clients(**spec, rate=half) as load:
                found = load.go()
            values = {"events/s": half, "p50 ms": found["p50_ms"], "p99 ms": found["p99_ms"]}
            figure.add(contestant.name, values, *_ours(contestant, budget))
    return figure


def idle(options: Options) -> Figure:
    """What a connection costs that does nothing, and how fast they come."""
    figure = Figure(
        name="idle",
        title=f"{IDLE:,} connections, connected and subscribed",
        compared="KiB a connection",
        base="bus",
    )
    for contestant, server in _each(figure, options, stored=False):
        name = contestant.name.removesuffix(", not stored")
        budgets = (Budget("KiB a connection", 30, at_most=True), Budget("connects/s", 1_500))
        with _reported(figure, name):
            figure.add(name, _idle(contestant, server), *_ours(contestant, *budgets, stored=False))
    return figure


def _idle(contestant: Contestant, server: Server) -> dict[str, float]:
    # Some come and go first, so that what a process needs once does not count.
    with clients(**contestant.spec(server, readers=FEW)):
        pass
    memory, cpu = server.memory(), server.cpu_seconds()
    with clients(**contestant.spec(server, readers=IDLE)) as load:
        grown, used = server.memory() - memory, server.cpu_seconds() - cpu
        return {
            "KiB a connection": grown / 1024 / IDLE,
            "connects/s": IDLE / load.connect_seconds,
            "CPU us a connect": 1e6 * used / IDLE,
        }


def _ours(contestant: Contestant, *budgets: Budget, stored: bool = True) -> tuple[Budget, ...]:
    """Return the budgets of a row if it is the bus, stored or not, that they are for."""
    is_meant = contestant.kind == "bus" and contestant.name.endswith(", stored") is stored
    return budgets if is_meant else ()


def _deliver(
    figure: Figure, name: str, server: Server, spec: dict[str, Any], options: Options, *budgets: Budget
) -> None:
    with _reported(figure, name), clients(**spec, seconds=options.seconds) as load:
        before = server.cpu_seconds()
        found = load.go()
        used = server.cpu_seconds() - before
        values = {
            "CPU us a delivery": 1e6 * used / found["delivered"],
            "deliveries/s": found["delivered"] / found["seconds"],
            "p50 ms": found["p50_ms"],
            "p99 ms": found["p99_ms"],
        }
        figure.add(name, values, *budgets)


@contextmanager
def _reported(figure: Figure, name: str) -> Iterator[None]:
    """Make what goes wrong with one contestant a row, and go on with the next."""
    try:
        yield
    except NotInstalled as error:
        figure.absent(name, str(error))
    except (RuntimeError, OSError) as error:
        figure.absent(name, f"failed: {error}"[:120])


def _each(figure: Figure, options: Options, *, stored: bool | None) -> Iterator[tuple[Contestant, Server]]:
    """Start every contestant in turn, those that store or those that do not, or all.

    One that is not installed, or fails, becomes a row.
    """
    with ExitStack() as topics:
        lasting = topics.enter_context(inside.bench_topic())
        passing = topics.enter_context(inside.bench_topic("bench-live"))
        for contestant in _contestants(lasting, passing, options):
            if stored is contestant.name.endswith(", not stored"):
                continue
            with _reported(figure, contestant.name), contestant.run() as server:
                yield contestant, server


def _contestants(lasting: str, passing: str, options: Options) -> list[Contestant]:
    token = tokens.issue_connection_token("bench", ttl=timedelta(hours=1), scopes=["publish"])
    layer = "Redis layer" if layer_is_there() else "memory layer"
    database = connection.vendor
    packages: dict[str, tuple[str, str, dict[str, Any]]] = {
        "ws": ("ws.cjs", "plain", {"path": "/"}),
        "socket.io": ("socketio.cjs", "socket.io", {}),
    }
    made: list[tuple[str, Callable[[], AbstractContextManager[Server]], str, dict[str, Any]]] = [
        ("bus, not stored", bus, "bus", {"topic": passing, "token": token}),
        ("bus, stored", bus, "bus", {"topic": lasting, "token": token}),
        (f"naive Channels ({layer}), not stored", naive, "plain", {"path": "/live"}),
        (f"naive Channels ({layer}), a row each, {database}", naive, "plain", {"path": f"/stored/{lasting}"}),
        ("NATS core, not stored", nats, "nats", {"topic": "bench", "stored": False}),
        ("NATS JetStream, synced", nats, "nats", {"topic": "bench", "stored": True}),
        *(
            (f"{name}, not stored", partial(node, script, name, options.node_modules), kind, spec)
            for name, (script, kind, spec) in packages.items()
        ),
    ]
    return [Contestant(name=name, run=run, kind=kind, options=spec) for name, run, kind, spec in made]


#: All figures, the most important first.
FIGURES: dict[str, Callable[[Options], Figure]] = {
    "publish": lambda options: inside.publish(options.seconds * 3),
    "replay": lambda options: inside.replay(options.seconds),
    "delivery": delivery,
    "joined": joined,
    "socket": socket,
    "latency": latency,
    "idle": idle,
}
