"""Settings of the bus, typed.

`settings.BUS` is a dictionary; `conf()` gives it as one frozen object with the defaults filled in. The
object is made once, and again after `setting_changed` (tests, `override_settings`). `bus/checks.py` reports
what `problems` finds.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from datetime import timedelta
from functools import lru_cache
from typing import Any

from django.conf import settings
from django.core.signals import setting_changed


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicOptions:
    """The rule of one area of topics. The most specific pattern that fits wins; among equals the first.

    `subscribe`, `publish`, `history` and `presence_read` take one of: `"authenticated"`, `"staff"`,
    `"owner"` (the agent whose inbox it is), `"server"` (no client), `"scope:NAME"`, or a tuple of these,
    any of which suffices. Staff may always read.
    """

    #: Pattern of topic names, in which `*` stands for any run of characters.
    pattern: str
    #: `must` (logged, a slow reader is closed), `latest` (logged, newest per key when slow) or `ephemeral`
    #: (not logged).
    delivery: str = "must"
    #: Events older than this are trimmed.
    history_age: timedelta = timedelta(days=7)
    #: More events than this are trimmed, oldest first.
    history_size: int = 100_000
    presence: bool = False
    join_leave: bool = False
    subscribe: str | tuple[str, ...] = "authenticated"
    publish: str | tuple[str, ...] = "staff"
    history: str | tuple[str, ...] = "authenticated"
    presence_read: str | tuple[str, ...] = "authenticated"


DEFAULT_TOPICS: tuple[dict[str, Any], ...] = (
    {
        "pattern": "agent:*",
        "presence": True,
        "subscribe": ("owner", "staff"),
        "publish": ("scope:publish:agent", "staff"),
        "history": ("owner", "staff"),
        "presence_read": "authenticated",
    },
    {
        "pattern": "task:*",
        "presence": True,
        "delivery": "latest",
        "subscribe": "authenticated",
        "publish": ("scope:publish:task", "staff"),
    },
    {"pattern": "broadcast", "subscribe": "authenticated", "publish": ("staff", "scope:publish:broadcast")},
    {
        "pattern": "cleanup:*",
        "subscribe": "staff",
        "publish": "server",
        "history": "staff",
        "presence_read": "staff",
    },
    {
        "pattern": "sys:*",
        "delivery": "ephemeral",
        "subscribe": "staff",
        "publish": "server",
        "history": "staff",
        "presence_read": "staff",
    },
    {
        "pattern": "*",
        "presence": True,
        "join_leave": True,
        "subscribe": "authenticated",
        "publish": ("scope:publish", "staff"),
    },
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BusSettings:
    """One field per key of `settings.BUS`, in lower case."""

    #: Live connections of one process; the next is refused with 3504.
    max_connections: int = 100
    #: Connections of one person; an agent has one anyway.
    max_connections_per_user: int = 50
    #: None: as many as the process takes, for behind a proxy all may have one address.
    max_connections_per_address: int | None = None
    #: Topics that one connection may be subscribed to.
    max_subscriptions: int = 128
    #: Bytes of one incoming command or event.
    max_message_bytes: int = 262_144
    #: Key of the HS256 connection tokens.
    token_secret: str = ""
    #: 25 s: below the 30 s idle cut of common proxies.
    ping_interval: timedelta = timedelta(seconds=25)
    pong_timeout: timedelta = timedelta(seconds=8)
    #: One statement writes the heartbeats of all connections of a process this often.
    heartbeat_interval: timedelta = timedelta(seconds=10)
    #: A server that has not renewed its lease for this long is dead; its rows go.
    instance_lease: timedelta = timedelta(seconds=45)
    #: A connection whose own heartbeat is older than this is stale.
    stale_after: timedelta = timedelta(minutes=5)
    session_retention: timedelta = timedelta(days=30)
    #: How often a process compares its positions with the log: the longest delay when the layer is dead.
    tick_interval: timedelta = timedelta(seconds=1)
    #: Every call of the channel layer ends within this time.
    layer_timeout: timedelta = timedelta(seconds=1)
    canary_interval: timedelta = timedelta(seconds=10)
    #: Hints carry the events themselves up to this many bytes, else only the position.
    hint_bytes: int = 65_536
    #: Bytes and frames owed to one connection before it counts as slow.
    send_queue_bytes: int = 1_048_576
    send_queue_frames: int = 1_024
    #: Publishes waiting for the writer thread; more are refused as temporary.
    writer_queue: int = 10_000
    #: Events in one group commit.
    writer_batch: int = 512
    #: Missed events in one reply or push of a recovery.
    replay_page: int = 1_000
    #: Commands per second and burst of one connection.
    command_rate: float = 500.0
    command_burst: int = 2_000
    #: After the end of a task its subscribers are let go this much later.
    task_linger: timedelta = timedelta(seconds=60)
    presence_grace: timedelta = timedelta(seconds=15)
    #: Keep the log in memory only. The connect reply, admin and metrics say so.
    volatile: bool = False
    #: Origins besides the site's own that may use the cookie route.
    allowed_origins: tuple[str, ...] = ()
    topics: tuple[TopicOptions, ...] = field(
        default_factory=lambda: tuple(TopicOptions(**options) for options in DEFAULT_TOPICS)
    )


@lru_cache(maxsize=1)
def conf() -> BusSettings:
    """The settings of the bus. Raises `TypeError` for an unknown key (`manage.py check` says which)."""
    given: dict[str, Any] = {name.lower(): value for name, value in getattr(settings, "BUS", {}).items()}
    if "topics" in given:
        given["topics"] = (
            tuple(TopicOptions(**options) for options in given["topics"]) + conf_defaults().topics
        )
    if not given.get("token_secret"):
        given["token_secret"] = settings.SECRET_KEY
    return BusSettings(**given)


def conf_defaults() -> BusSettings:
    """The settings as they are when `settings.BUS` is empty."""
    return BusSettings()


def problems() -> list[str]:
    """What is wrong with `settings.BUS`, one sentence each."""
    known = {entry.name for entry in fields(BusSettings)}
    unknown = [name for name in getattr(settings, "BUS", {}) if name.lower() not in known]
    if unknown:
        return [f"BUS has no setting {name!r}." for name in unknown]
    values = conf()
    found = [
        f"BUS[{entry.name.upper()!r}] must be more than zero."
        for entry in fields(BusSettings)
        if isinstance(value := getattr(values, entry.name), (int, float, timedelta))
        and not isinstance(value, bool)
        and not value > (timedelta(0) if isinstance(value, timedelta) else 0)  # type: ignore[operator]
    ]
    found += [
        f"BUS['TOPICS'] {rule.pattern!r}: delivery must be must, latest or ephemeral, not {rule.delivery!r}."
        for rule in values.topics
        if rule.delivery not in {"must", "latest", "ephemeral"}
    ]
    return found


def _forget(*, setting: str, **_: object) -> None:
    if setting in {"BUS", "SECRET_KEY"}:
        conf.cache_clear()


setting_changed.connect(_forget)
