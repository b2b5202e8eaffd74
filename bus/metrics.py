"""What the bus counts, under the names of its dashboards and alerts.

Counters and histograms live in the process that counts; the exporter adds up the processes. What belongs to
the whole site (rows, queue depth) is read from SQL when somebody asks, by `SiteCollector`, so worker and beat
need no exporter and no process has to be alive for the figure to be true.
"""

from __future__ import annotations

from collections.abc import Iterator

from django.db import connection
from django.db.models import Count
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bus.models import ActiveConnection, ServerInstance, Transport

CONNECTIONS = Counter("bus_connections", "Connections that were accepted.", ["transport"])
RECONNECTIONS = Counter("bus_reconnections", "Connections of agents that had been connected before.")
REFUSED = Counter("bus_connections_refused", "Connections that were refused.", ["reason"])
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
RETRIES_FAILED = Counter("bus_retries_failed", "Requests that clients gave up after their last retry.")
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


class SiteCollector(Collector):
    """Figures of the whole site, from SQL."""

    def describe(self) -> list[Metric]:
        """Return nothing: registering must not touch the database."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the figures as they are now."""
        yield from (
            self._connections(),
            self._by_transport(),
            self._servers(),
            self._layer(),
            self._offline(),
        )

    def _connections(self) -> Metric:
        return GaugeMetricFamily(
            "active_websocket_connections", "Live connections.", value=ActiveConnection.objects.count()
        )

    def _by_transport(self) -> Metric:
        family = GaugeMetricFamily("bus_active_connections", "Live connections.", labels=["transport"])
        rows = ActiveConnection.objects.values_list("transport").annotate(Count("pk")).order_by()
        counts = dict(rows)
        for transport in Transport.values:
            family.add_metric([transport], counts.get(transport, 0))
        return family

    def _servers(self) -> Metric:
        return GaugeMetricFamily("bus_servers", "Server processes.", value=ServerInstance.objects.count())

    def _layer(self) -> Metric:
        family = GaugeMetricFamily(
            "bus_layer_up", "Whether the canary comes back, by server.", labels=["server"]
        )
        for name, is_up in ServerInstance.objects.values_list("name", "layer_up"):
            family.add_metric([name], float(is_up))
        return family

    def _offline(self) -> Metric:
        return GaugeMetricFamily(
            "bus_offline_queue_events",
            "Events of inboxes that their agents have not acknowledged.",
            value=_owed(),
        )


def _owed() -> int:
    """Return how many events all agents have to acknowledge: each inbox, less its agent's cursor."""
    with connection.cursor() as cursor:
        cursor.execute(_OWED)
        row = cursor.fetchone()
    return int(row[0] or 0) if row else 0
