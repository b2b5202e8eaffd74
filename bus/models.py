"""Rows of the bus: the event log, who is connected, how far each consumer has read, who may come in.

`Topic` and `Event` are the log, the truth of what was said; they are written by `bus.log` alone, with raw
statements. `ServerInstance` and `ActiveConnection` are leases: they say who is connected *now* and may be
stale for as long as a lease lasts; beat removes what a dead process left. `ConnectionSession` is the
history of them.
"""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.utils.translation import gettext_lazy as _


class Topic(models.Model):
    """A named, ordered stream of events. Offsets are 1, 2, 3 … within one epoch."""

    name = models.CharField(max_length=200, unique=True)
    #: Drawn when the row is made: a topic deleted and made again is never taken for its former self.
    epoch = models.CharField(max_length=16)
    #: The oldest offset that can still be read; `last_offset + 1` if nothing is kept.
    first_offset = models.BigIntegerField(default=1)
    last_offset = models.BigIntegerField(default=0)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True, db_index=True)
    #: Set by the final event; nothing can be published after it.
    ended_at = models.DateTimeField(null=True, blank=True)
    end_status = models.CharField(max_length=32, blank=True)

    class Meta:
        ordering: ClassVar = ["name"]
        permissions: ClassVar = [("publish_topic", "Can publish events over the bus")]

    def __str__(self) -> str:
        return self.name


class Event(models.Model):
    """One event of a topic, as the bytes that are sent."""

    #: Without a constraint of the database: `bus.log` holds the topic's lock whenever it writes events, and
    #: PostgreSQL's check of every single row costs as much as storing it.
    topic = models.ForeignKey(
        Topic, on_delete=models.CASCADE, related_name="events", db_index=False, db_constraint=False
    )
    offset = models.BigIntegerField()
    event_type = models.CharField(max_length=100)
    #: The whole event object as JSON text, encoded once by the publisher.
    payload = models.TextField()
    #: JSON object of strings beside the event (`id`, `key`, `traceparent`, `end`), or empty.
    tags = models.TextField(blank=True)
    #: JSON object that names the publishing client, or empty.
    info = models.TextField(blank=True)
    #: Idempotency key within the topic. Null, not empty, where there is none: nulls are outside the unique
    #: index.
    key = models.CharField(max_length=200, null=True, blank=True)
    publisher = models.CharField(max_length=200, blank=True)
    #: No index: within a topic events are found by offset, and an index costs an eighth of the writing.
    created_at = models.DateTimeField()

    class Meta:
        ordering: ClassVar = ["topic", "offset"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["topic", "offset"], name="bus_event_topic_offset"),
            models.UniqueConstraint(
                fields=["topic", "key"],
                name="bus_event_topic_key",
                condition=models.Q(key__isnull=False),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.topic} #{self.offset}"


class Cursor(models.Model):
    """How far one consumer has acknowledged one topic."""

    consumer = models.CharField(max_length=200)
    topic = models.ForeignKey(Topic, on_delete=models.CASCADE, related_name="cursors")
    #: Every event up to and with this one is acknowledged.
    offset = models.BigIntegerField(default=0)
    acked_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering: ClassVar = ["consumer", "topic"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["consumer", "topic"], name="bus_cursor_consumer_topic")
        ]

    def __str__(self) -> str:
        return f"{self.consumer} at {self.topic} #{self.offset}"


class Agent(models.Model):
    """An agent that has connected at least once; `generation` says which of its connections is live."""

    agent_id = models.CharField(max_length=180, unique=True)
    #: Taken by every connect, one higher each time; the highest owns the agent id.
    generation = models.BigIntegerField(default=0)
    first_seen_at = models.DateTimeField(auto_now_add=True)
    last_seen_at = models.DateTimeField(auto_now=True, db_index=True)
    connects = models.BigIntegerField(default=0)

    class Meta:
        ordering: ClassVar = ["agent_id"]

    def __str__(self) -> str:
        return self.agent_id


class RunningTask(models.Model):
    """A job under way, as long as its worker renews it; see `bus.runs`."""

    topic = models.CharField(max_length=200, unique=True)
    #: Drawn at each start: of two workers with the same job the later one holds it.
    run = models.CharField(max_length=16, unique=True)
    #: Machine and process, for people.
    holder = models.CharField(max_length=255)
    started_at = models.DateTimeField()
    lease_until = models.DateTimeField(db_index=True)
    #: When the lease was first seen to be over; null while it is renewed.
    doubted_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering: ClassVar = ["topic"]

    def __str__(self) -> str:
        return f"{self.topic} by {self.holder}"


class ServerInstance(models.Model):
    """One server process, alive while its lease is."""

    name = models.CharField(max_length=100, primary_key=True)
    hostname = models.CharField(max_length=255)
    pid = models.IntegerField()
    started_at = models.DateTimeField()
    lease_until = models.DateTimeField(db_index=True)
    #: Median delay of the event loop over the last heartbeat, ms.
    loop_lag_ms = models.FloatField(default=0.0)
    #: Whether the last canary came back through the channel layer.
    layer_up = models.BooleanField(default=False)

    class Meta:
        ordering: ClassVar = ["name"]

    def __str__(self) -> str:
        return self.name


class Pulse(models.Model):
    """When a background process was last heard of: a worker that began a task, beat when it began."""

    #: `worker` or `beat`.
    kind = models.CharField(max_length=8)
    #: A worker's name as Celery has it; the machine that beat is on.
    name = models.CharField(max_length=200)
    started_at = models.DateTimeField()
    #: By the clock of the database, so that those of two machines need not agree.
    at = models.DateTimeField()

    class Meta:
        ordering: ClassVar = ["kind", "name"]
        constraints: ClassVar = [models.UniqueConstraint(fields=["kind", "name"], name="bus_pulse_once")]

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


class BusSample(models.Model):
    """What the bus did in one minute: the history behind the charts of the console."""

    #: To the minute: of each there is one sample.
    at = models.DateTimeField(primary_key=True)
    connections = models.PositiveIntegerField()
    agents = models.PositiveIntegerField()
    #: The last event of the log, of any topic: two of them tell how many came between. Null: there was none.
    last_event = models.BigIntegerField(null=True, blank=True)

    class Meta:
        ordering: ClassVar = ["-at"]

    def __str__(self) -> str:
        return f"{self.at}"


class Transport(models.TextChoices):
    """How a client is attached."""

    CENTRIFUGO = "centrifugo", _("Centrifugo protocol")
    PLAIN = "plain", _("plain JSON")
    SSE = "sse", _("server-sent events")


class ActiveConnection(models.Model):
    """A connection that is believed to be live."""

    client_id = models.CharField(max_length=36, primary_key=True)
    server_instance = models.ForeignKey(ServerInstance, on_delete=models.CASCADE, related_name="connections")
    #: Empty for people and anonymous readers of a task.
    agent_id = models.CharField(max_length=180, blank=True, db_index=True)
    #: The agent's generation that this connection holds; 0 without an agent.
    generation = models.BigIntegerField(default=0)
    user_id = models.CharField(max_length=180, blank=True)
    session_id = models.CharField(max_length=200, blank=True)
    task_id = models.CharField(max_length=200, blank=True, db_index=True)
    transport = models.CharField(max_length=12, choices=Transport.choices)
    address = models.CharField(max_length=64, blank=True)
    user_agent = models.CharField(max_length=300, blank=True)
    connected_at = models.DateTimeField()
    last_heartbeat = models.DateTimeField(db_index=True)
    last_activity = models.DateTimeField()
    #: Names of the subscribed topics.
    topics = models.JSONField(default=list, blank=True)
    #: Bytes owed to the client at the last heartbeat.
    pending_bytes = models.BigIntegerField(default=0)
    #: Set by whoever wants it closed; its server sees it within a second, even without a channel layer.
    close_code = models.IntegerField(null=True, blank=True)
    close_reason = models.CharField(max_length=120, blank=True)

    class Meta:
        ordering: ClassVar = ["-connected_at"]

    def __str__(self) -> str:
        return self.agent_id or self.user_id or self.client_id


class ConnectionSession(models.Model):
    """The history of one connection, for up-time and reconnection figures."""

    client_id = models.CharField(max_length=36, unique=True)
    #: Found by `bus_session_agent`.
    agent_id = models.CharField(max_length=180, blank=True)
    user_id = models.CharField(max_length=180, blank=True)
    server_instance = models.CharField(max_length=100)
    transport = models.CharField(max_length=12, choices=Transport.choices)
    address = models.CharField(max_length=64, blank=True)
    connected_at = models.DateTimeField(db_index=True)
    disconnected_at = models.DateTimeField(null=True, blank=True, db_index=True)
    #: Close code, or null while connected and where the server was lost.
    code = models.IntegerField(null=True, blank=True)
    #: Why it ended; `lost` when its server died or its heartbeat stopped.
    reason = models.CharField(max_length=200, blank=True)
    events_in = models.BigIntegerField(default=0)
    events_out = models.BigIntegerField(default=0)

    class Meta:
        ordering: ClassVar = ["-connected_at"]
        indexes: ClassVar = [
            # The latest of one agent, which may have come and gone a hundred thousand times.
            models.Index(fields=["agent_id", "connected_at"], name="bus_session_agent"),
        ]

    def __str__(self) -> str:
        return (
            f"{self.agent_id or self.user_id or self.client_id} since {self.connected_at:%Y-%m-%d %H:%M:%S}"
        )


class Presence(models.Model):
    """A connection is there: its subscription to a topic whose rule keeps presence.

    It outlives the connection by a grace period, so that a quick reconnect is no leave and join.
    """

    topic = models.CharField(max_length=200)
    client_id = models.CharField(max_length=36, db_index=True)
    user = models.CharField(max_length=180, blank=True)
    #: What its token says of it, as JSON text, or empty.
    info = models.TextField(blank=True, default="")
    #: Name of the server that holds the connection; if that dies, so does this.
    server_instance = models.CharField(max_length=100, db_index=True)
    since = models.DateTimeField()
    #: When it ends, once the connection is gone.
    leaves_at = models.DateTimeField(null=True, blank=True, db_index=True)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["topic", "client_id"], name="bus_presence_once")
        ]

    def __str__(self) -> str:
        return f"{self.client_id} in {self.topic}"


class ApiKey(models.Model):
    """A key for agents and server-side publishers. Only its hash is kept; the key is shown once."""

    name = models.CharField(max_length=100, unique=True)
    #: The first characters of the key, to find the row; not secret.
    prefix = models.CharField(max_length=16, unique=True)
    #: SHA-256 of the whole key, hex. The key has 256 random bits, so no slow hash is needed.
    key_hash = models.CharField(max_length=64)
    #: The agent it acts as, or empty for any.
    agent_id = models.CharField(max_length=180, blank=True)
    #: Scopes such as `publish:agent`.
    scopes = models.JSONField(default=list, blank=True)
    #: `fnmatch` patterns of the topics it reaches; empty = what the rules allow.
    topics = models.JSONField(default=list, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering: ClassVar = ["name"]
        verbose_name = "API key"

    def __str__(self) -> str:
        return self.name


class SubscriptionOrder(models.Model):
    """A subscription that somebody wants begun or ended: its server takes the row away when it is done."""

    server_instance = models.CharField(max_length=100, db_index=True)
    #: The order as it also travels on the channel layer, JSON.
    order = models.TextField()
    created_at = models.DateTimeField(db_index=True)

    def __str__(self) -> str:
        return f"order {self.pk} for {self.server_instance}"


class TokenRevocation(models.Model):
    """Tokens that were taken back: one by its `jti`, or all that a user or an agent had by then."""

    #: `jti` of the one token; else empty.
    token_id = models.CharField(max_length=200, blank=True)
    #: `sub` of the tokens; else empty.
    user_id = models.CharField(max_length=180, blank=True)
    #: `agent` of the tokens; else empty.
    agent_id = models.CharField(max_length=180, blank=True)
    #: What was issued up to then is void.
    revoked_at = models.DateTimeField()
    #: When the tokens have expired by themselves, so that nothing needs to be remembered; null: never.
    expires_at = models.DateTimeField(null=True, blank=True, db_index=True)
    note = models.CharField(max_length=200, blank=True)

    class Meta:
        ordering: ClassVar = ["-revoked_at"]
        constraints: ClassVar = [
            models.CheckConstraint(
                name="bus_tokenrevocation_names_one",
                condition=(
                    ~models.Q(token_id="") & models.Q(user_id="", agent_id="")
                    | ~models.Q(user_id="") & models.Q(token_id="", agent_id="")
                    | ~models.Q(agent_id="") & models.Q(token_id="", user_id="")
                ),
            )
        ]

    def __str__(self) -> str:
        return self.token_id or self.user_id or self.agent_id
