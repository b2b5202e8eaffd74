"""What machines ask the site: is it alive, can it serve, how is it all, and the figures.

- `/healthz/live`: the event loop turns; nothing else is asked. Failing means: restart this process.
- `/healthz/ready`: database and migrations; told besides, whether the channel layer of this process is down.
  Failing means: send no new visitors here. No details, for anybody may ask.
- `/healthz/full`: the checks of `manage.py doctor` about the running site; for staff or the token.
- `/metrics`: counters of all processes of this machine, and figures of the whole site read from SQL.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Callable

from django.conf import settings
from django.db import DatabaseError, connection
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.views.decorators.cache import never_cache
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from bus.fanout import hub
from bus.metrics import SiteCollector
from cleanup.metrics import CleanupCollector
from xnai_site import checkup

#: Set once the migrations were seen to be complete: they do not come undone under a running process.
_migrated = False


def live(request: HttpRequest) -> HttpResponseBase:
    """Say that this process answers."""
    return JsonResponse({"status": "ok"})


def ready(request: HttpRequest) -> HttpResponseBase:
    """Say whether this process can serve; 503 and the names of what is missing if not.

    A layer that is down is told and no reason for 503: events still arrive, and all processes would be out at
    once.
    """
    missing = [name for name, holds in (("database", _database), ("migrations", _migrations)) if not holds()]
    server = hub.running()
    degraded = ["layer"] if server is not None and not server.link.is_up else []
    answer = {"status": "missing" if missing else "ok", "missing": missing, "degraded": degraded}
    return JsonResponse(answer, status=503 if missing else 200)


def _database() -> bool:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except DatabaseError:
        return False
    return True


def _migrations() -> bool:
    global _migrated
    try:
        _migrated = _migrated or not checkup.unapplied_migrations()
    except DatabaseError:
        return False
    return _migrated


@never_cache
def full(request: HttpRequest) -> HttpResponseBase:
    """Every check of the running site, as JSON. 503 if one has failed."""
    staff = getattr(request, "user", None)
    if not (may_read_metrics(request) or (staff is not None and staff.is_active and staff.is_staff)):
        return JsonResponse({"status": "forbidden"}, status=403)
    findings = [check() for check in checkup.RUNNING_SITE]
    failed = any(finding.state == checkup.FAILED for finding in findings)
    return JsonResponse(
        {"status": "failed" if failed else "ok", "findings": [finding.as_json() for finding in findings]},
        status=503 if failed else 200,
    )


def metrics(request: HttpRequest) -> HttpResponseBase:
    """The figures in Prometheus' text format."""
    if not may_read_metrics(request):
        return HttpResponse(
            "Send the metrics token as a bearer token.\n", status=403, content_type="text/plain"
        )
    return HttpResponse(exposition(), content_type=CONTENT_TYPE_LATEST)


def exposition() -> bytes:
    """Counters of the processes, then what SQL knows: so worker and beat need no exporter of their own."""
    site = CollectorRegistry()
    site.register(SiteCollector())
    site.register(CleanupCollector())
    processes = REGISTRY
    if settings.METRICS_DIR:
        processes = CollectorRegistry()
        MultiProcessCollector(processes, path=settings.METRICS_DIR)  # type: ignore[no-untyped-call]
    return generate_latest(processes) + generate_latest(site)


def may_read_metrics(request: HttpRequest) -> bool:
    """Whether this request carries the token or, where none is set, comes straight from this machine.

    A request that a proxy passed on is not from this machine, whatever its address says.
    """
    if settings.METRICS_TOKEN:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        return hmac.compare_digest(given.encode(), settings.METRICS_TOKEN.encode())
    if "X-Forwarded-For" in request.headers or "Forwarded" in request.headers:
        return False
    try:
        return ipaddress.ip_address(request.META.get("REMOTE_ADDR", "")).is_loopback
    except ValueError:  # a Unix socket has no address
        return False


#: Answered by `xnai_site.middleware.machine_endpoints`, before the middlewares that people need.
MACHINE_VIEWS: dict[str, Callable[[HttpRequest], HttpResponseBase]] = {
    "/healthz/live": live,
    "/healthz/ready": ready,
    "/metrics": metrics,
}
