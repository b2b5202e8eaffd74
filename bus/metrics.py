"""What the bus counts, under the names of its dashboards and alerts.

Counters and histograms live in the process that counts; the exporter adds up the processes. What belongs to
the whole site (rows, queue depth) is read from SQL when somebody asks, by `SiteCollector`, so worker and beat
need no exporter and no process has to be alive for the figure to be true.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from django.db import connection
from django.db.models import Count, QuerySet
from django.utils import timezone
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bus.conf import conf
from bus.models import ActiveConnection, RunningTask, ServerInstance, Transport

CONNECTIONS = Counter("bus_connections", "Connections that were accepted.", ["transport"])
RECONNECTIONS = Counter("bus_reconnections", "Connections of agents that had been connected before.")
REFUSED = Counter("bus_connections_refused", "Connections that were refused.", ["reason"])
ERRORS = Counter("bus_errors", "Commands and requests that were refused, by error code.", ["code"])
DISCONNECTIONS = Counter("bus_disconnections", "Connections that ended, by close code.", ["code"])
CONNECTION_SECONDS = Histogram(
    "bus_connection_seconds",
    "How long connections lasted.",
    buckets=(1, 10, 60, 300, 1800, 3600, 4 * 3600, 24 * 3600),
)
PUBLISHED = Counter("bus_events_published", "Events that were published through this site.", ["area"])
DELIVERIES = Counter("bus_deliveries", "Frames handed to connections, by what became of them.", ["outcome"])
ACK_LATENCY = Histogram(
    "bus_ack_latency_seconds",
    "From the arrival of a publish to its acknowledgement.",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1, 5),
)
RETRIES_FAILED = Counter(
    "bus_retries_failed",
    "Requests given up after the last retry: by clients, as they say when they are back, and by jobs.",
)
GAP_FILLS = Counter("bus_gap_fills", "Times that events were fetched from the log because no hint had come.")
HINTS = Counter("bus_hints", "Messages on the channel layer, by what became of them.", ["outcome"])
LOG_BATCH = Histogram(
    "bus_log_batch_events", "Events in one commit.", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
)
LOG_COMMIT = Histogram(
    "bus_log_commit_seconds",
    "Duration of one commit of the log.",
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5),
)
SEND_QUEUE_BYTES = Gauge(
    "bus_send_queue_bytes", "Bytes owed to all connections.", multiprocess_mode="livesum"
)
LOOP_TASKS = Gauge(
    "bus_event_loop_tasks", "Tasks of the event loops of all servers.", multiprocess_mode="livesum"
)
LOOP_LAG = Gauge(
    "bus_event_loop_lag_seconds",
    "Delay of the event loop, the worst of the processes.",
    multiprocess_mode="livemax",
)


# An inbox is `agent:<id>`, and its agent's cursor is named `<id>`. What was trimmed is owed to nobody.
_OWED = """
SELECT SUM(t.last_offset - CASE WHEN c."offset" > t.first_offset - 1 THEN c."offset" ELSE t.first_offset - 1
END) FROM bus_topic t LEFT JOIN bus_cursor c ON c.topic_id = t.id AND t.name = 'agent:' || c.consumer WHERE
t.name LIKE 'agent:%'
"""
_FURTHEST_BEHIND = """
SELECT MAX(t.last_offset - c."offset") FROM bus_cursor c JOIN bus_topic t ON t.id = c.topic_id
"""


class SiteCollector(Collector):
    """Figures of the whole site, from SQL."""

    def describe(self) -> list[Metric]:
        """Return nothing: registering must not touch the database."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the figures as they are now."""
        now = timezone.now()
        yield from (
            self._connections(now),
            self._by_transport(now),
            self._servers(now),
            self._layer(now),
            self._offline(),
            self._lag(),
            self._tasks(now),
            self._volatile(),
        )

    def _connections(self, now: datetime) -> Metric:
        return GaugeMetricFamily(
            "active_websocket_connections", "Live connections of all servers.", value=_live(now).count()
        )

    def _by_transport(self, now: datetime) -> Metric:
        family = GaugeMetricFamily("bus_active_connections", "Live connections.", labels=["transport"])
        rows = _live(now).values_list("transport").annotate(Count("pk")).order_by()
        counts = dict(rows)
        for transport in Transport.values:
            family.add_metric([transport], counts.get(transport, 0))
        return family

    def _servers(self, now: datetime) -> Metric:
        alive = ServerInstance.objects.filter(lease_until__gt=now).count()
        return GaugeMetricFamily("bus_servers", "Server processes that hold a lease.", value=alive)

    def _layer(self, now: datetime) -> Metric:
        family = GaugeMetricFamily(
            "bus_layer_up", "Whether the canary comes back, by server.", labels=["server"]
        )
        alive = ServerInstance.objects.filter(lease_until__gt=now)
        for name, is_up in alive.values_list("name", "layer_up"):
            family.add_metric([name], float(is_up))
        return family

    def _offline(self) -> Metric:
        return GaugeMetricFamily(
            "bus_offline_queue_events",
            "Events of inboxes that their agents have not acknowledged.",
            value=_number(_OWED),
        )

    def _lag(self) -> Metric:
        return GaugeMetricFamily(
            "bus_cursor_lag_events",
            "Events that the cursor furthest behind has still to acknowledge.",
            value=_number(_FURTHEST_BEHIND),
        )

    def _tasks(self, now: datetime) -> Metric:
        family = GaugeMetricFamily("bus_running_tasks", "Jobs under way, by their lease.", labels=["lease"])
        held = RunningTask.objects.filter(lease_until__gte=now).count()
        family.add_metric(["held"], held)
        family.add_metric(["over"], RunningTask.objects.filter(lease_until__lt=now).count())
        return family

    def _volatile(self) -> Metric:
        return GaugeMetricFamily(
            "bus_volatile", "1: the log is kept in memory only, and lost with its process.", conf().volatile
        )


def _live(now: datetime) -> QuerySet[ActiveConnection]:
    """Rows of servers that hold their lease; those of the others are about to be taken away."""
    return ActiveConnection.objects.filter(server_instance__lease_until__gt=now)


def _number(query: str) -> int:
    """Return the one number that a query gives; 0 if there is nothing to count."""
    with connection.cursor() as cursor:
        cursor.execute(query)
        row = cursor.fetchone()
    return int(row[0] or 0) if row else 0
