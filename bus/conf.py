"""Settings of the bus, typed.

`settings.BUS` is a dictionary; `conf()` gives it as one frozen object with the defaults filled in. The
object is made once, and again after `setting_changed` (tests, `override_settings`). `bus.checks` tells what
is wrong with them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from typing import Any

from django.conf import settings
from django.core.signals import setting_changed


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicOptions:
    """The rule of one area of topics. The most specific pattern that fits wins; among equals the first.

    `subscribe`, `publish`, `history` and `presence_read` take one of: `"authenticated"`, `"staff"`,
    `"owner"` (the agent whose inbox it is), `"token"` (who holds a subscription token for the topic; not for
    `publish`), `"server"` (no client), `"scope:NAME"`, or a tuple of these, any of which suffices. Staff may
    always read.
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
        "pattern": "upload:*",
        "delivery": "latest",
        "subscribe": ("token", "staff"),
        "publish": "server",
        "history": ("token", "staff"),
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
    #: Connects per second and burst of one process; beyond it the handshake is answered with 503 and
    #: `Retry-After`, so that a reconnect storm leaves time to serve those who are in.
    connect_rate: float = 500.0
    connect_burst: int = 1_000
    #: The same for one address. None: not limited, for behind a proxy all may have one address.
    address_connect_rate: float | None = None
    address_connect_burst: int = 100
    #: A server that ends tells its clients over this time, so that they do not all come to the next at once.
    shutdown_spread: timedelta = timedelta(seconds=3)
    #: Topics that one connection may be subscribed to.
    max_subscriptions: int = 128
    #: Bytes of one incoming command or event.
    max_message_bytes: int = 262_144
    #: Key of the HS256 tokens; new ones are signed with it.
    token_secret: str = ""
    #: Former keys: what they have signed still counts. Take them out once those tokens have expired.
    token_previous_secrets: tuple[str, ...] = ()
    #: `aud` that a token has to name, and `iss` that it has to come from. Empty: any.
    token_audience: str = ""
    token_issuer: str = ""
    #: How far the clock of whoever issues tokens may be from ours.
    token_leeway: timedelta = timedelta(seconds=5)
    #: A connection or subscription whose token has expired goes on for so long, for a refresh on its way.
    expiry_grace: timedelta = timedelta(seconds=25)
    #: How often the rights of live connections are looked up: keys, tokens, sessions, users.
    rights_interval: timedelta = timedelta(seconds=2)
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
    #: Publishes per second and burst of one agent, user or key in one process, over all its connections and
    #: over HTTP.
    publish_rate: float = 2_000.0
    publish_burst: int = 10_000
    #: A topic that was never written to is forgotten when nobody has read it for this long.
    unused_topic_age: timedelta = timedelta(hours=1)
    #: A job whose worker has not renewed it for this long, and not soon after either, has failed.
    task_lease: timedelta = timedelta(seconds=45)
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
    for name in ("allowed_origins", "token_previous_secrets"):
        if name in given:
            given[name] = tuple(given[name])
    if not given.get("token_secret"):
        given["token_secret"] = settings.SECRET_KEY
    return BusSettings(**given)


def conf_defaults() -> BusSettings:
    """The settings as they are when `settings.BUS` is empty."""
    return BusSettings()


def _forget(*, setting: str, **_: object) -> None:
    if setting in {"BUS", "SECRET_KEY"}:
        conf.cache_clear()


setting_changed.connect(_forget)
