"""How long the lists of the console take with a million trashed files, a million events, ten million entries.

`python -m tests.bench.console_bench` fills the database that DATABASE_URL names, which must be empty of these
rows, and prints a table: every list, filter and search, on the first page, in the middle and on the last one.
The time is that of the server for the whole page, with its template: the best of five, since other work that
the machine does makes some of them slower, and none faster.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asgiref.sync import async_to_sync

#: What was promised, ms.
BUDGET = 300
#: Times that each page is asked for; one before them warms the caches.
TIMES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A list with a filter."""

    words: str
    #: `app_model`.
    name: str
    query: dict[str, str]


def lists() -> Iterator[Listed]:
    """What is measured, and what the tests ask the databases to explain."""
    from cleanup.models import AuditEntry, CleanupItem, StagingArea

    areas = {area.name: str(area.pk) for area in StagingArea.objects.all()}
    entry, item = AuditEntry.objects.order_by("pk").first(), CleanupItem.objects.order_by("pk").first()
    if entry is None or item is None:
        raise ValueError("there are no rows")
    day = f"{item.trashed_at:%Y-%m-%d}"
    trash: dict[str, dict[str, str]] = {
        "all": {},
        "purged": {"state": "purged"},
        "one area": {"area": areas["uploads"]},
        "a tiny area": {"area": areas["attic"]},
        "a reason": {"reason": "expired"},
        "a rare reason": {"reason": "orphaned"},
        "a reason that none has": {"reason": "locked"},
        "big files": {"size": "1000000"},
        "a policy": {"policy": "old"},
        "a run": {"run": str(item.run_id)},
        "trashed on a day": {"trashed_from": day, "trashed_to": day},
        "purged on a day": {"purge_day": "2020-01-01"},
        "by purge": {"o": "6"},
        "part of a path": {"q": "result-77"},
        "part that none has": {"q": "nowhere"},
        "beginning of a path": {"q": "in/12*"},
    }
    events = {
        "all": {},
        "a long topic": {"q": "broadcast"},
        "a short topic": {"q": "task:7"},
        "no such topic": {"q": "task:none"},
        "a rare type": {"type": "task.failed"},
        "a publisher": {"from": "agent:a7"},
        "a day": {"published_from": f"{_day_of_events():%Y-%m-%d}"},
    }
    audit = {
        "all": {},
        "an action": {"action": "restored"},
        "a rare action": {"action": "hold_added"},
        "one area": {"area": "uploads"},
        "a tiny area": {"area": "attic"},
        "a person": {"by": "anna"},
        "a rare person": {"by": "bob"},
        "the system": {"by": "cleanup"},
        "a run": {"run": entry.run},
        "a file": {"q": entry.item},
        "a number": {"q": str(entry.seq)},
        "part of a path": {"q": "result-77"},
        "part that none has": {"q": "nowhere"},
        "a day": {"at_from": _day_of_entries(), "at_to": _day_of_entries()},
        "a person and an action": {"by": "anna", "action": "purged"},
        "an action in a tiny area": {"action": "restored", "area": "attic"},
    }
    for name, found in (("cleanup_cleanupitem", trash), ("bus_event", events), ("cleanup_auditentry", audit)):
        for words, query in found.items():
            yield Listed(words=words, name=name, query=query)


def _day_of_events() -> Any:
    from bus.models import Event

    return Event.objects.order_by("pk")[0].created_at


def _day_of_entries() -> str:
    from datetime import UTC, datetime

    from cleanup.models import AuditEntry

    at_us = AuditEntry.objects.order_by("seq").values_list("at_us", flat=True)[0]
    return f"{datetime.fromtimestamp(at_us / 1_000_000, tz=UTC):%Y-%m-%d}"


def middle(listed: Listed, request: Any) -> str:
    """The token of a row in the middle of a list: what a bookmark would have."""
    from django.apps import apps
    from django.contrib import admin

    page = admin.site.get_model_admin(apps.get_model(*listed.name.split("_", 1)))
    shown = page.get_changelist_instance(request)
    rows = shown._ordered(shown._along())
    row = rows[rows.order_by().count() // 2 :].first()
    return "" if row is None else str(shown._token(shown._key_of(row)))


def main() -> None:
    """Fill, measure, print: `--filled` fills nothing, `--lists` and `--pages` measure these alone, and
    `--processor` takes this process's processor time, which other work on the machine does not change."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "xnai_site.settings")
    import django

    django.setup()
    from django.conf import settings
    from django.contrib.auth.models import User
    from django.core.management import call_command
    from django.test import Client

    from bus.models import ConnectionSession
    from tests.bench.console_around import Around, surround
    from tests.bench.console_fill import Amount, fill

    settings.ALLOWED_HOSTS = ["*"]
    if "--filled" not in sys.argv:
        call_command("migrate", verbosity=0)
        fill(Amount())
    if not ConnectionSession.objects.exists():
        surround(Around())
    root, _ = User.objects.get_or_create(username="bench", is_staff=True, is_superuser=True)
    client = Client()
    client.force_login(root)
    if "--pages" not in sys.argv:
        _measure_lists(client, root)
    if "--lists" not in sys.argv:
        _measure_pages(client)


def _measure_lists(client: Any, root: Any) -> None:
    from django.db import connection
    from django.test import RequestFactory
    from django.urls import reverse

    _say(f"| {connection.vendor} | first | middle | last |\n|---|---:|---:|---:|")
    for listed in lists():
        url = reverse(f"admin:{listed.name}_changelist")
        request = RequestFactory().get(url, listed.query)
        request.user = root
        token = middle(listed, request)
        places: list[dict[str, str] | None] = [{}, {"after": token} if token else None, {"before": "end"}]
        cells = [
            "" if place is None else _cell(_best(client, url, {**listed.query, **place})) for place in places
        ]
        _say(f"| {listed.name.split('_')[1]}: {listed.words} | {' | '.join(cells)} |")


def _measure_pages(client: Any) -> None:
    from django.db import connection

    from tests.bench.console_pages import pages

    _say(f"| {connection.vendor} | ms |\n|---|---:|")
    for words, url in pages():
        _say(f"| {words} | {_cell(_best(client, url, {}))} |")


def _best(client: Any, url: str, query: dict[str, str]) -> float:
    """The time of a page in ms; one that takes seconds is asked for once more only."""
    times = [_ask(client, url, query) for _ in range(2)]
    if times[-1] < 4 * BUDGET:
        times += [_ask(client, url, query) for _ in range(TIMES - 1)]
    return min(times[1:])


def _ask(client: Any, url: str, query: dict[str, str]) -> float:
    clock = _processor if "--processor" in sys.argv else time.perf_counter
    begun = clock()
    reply = client.get(url, query, follow=False) if query else client.get(url, follow=False)
    if reply.streaming:
        async_to_sync(_first_of)(reply.streaming_content)
    if reply.status_code != 200:
        raise ValueError(f"{url} {query}: {reply.status_code}")
    return (clock() - begun) * 1000


def _processor() -> float:
    """Seconds of processor that this process had, and with it the one of PostgreSQL that answers it."""
    from django.db import connection

    if connection.vendor != "postgresql":
        return time.process_time()
    connection.ensure_connection()
    running = Path(f"/proc/{connection.connection.info.backend_pid}/schedstat").read_text().split()[0]
    return time.process_time() + int(running) / 1e9


async def _first_of(chunks: Any) -> bytes:
    """Of an export only how soon it begins is told."""
    async for chunk in chunks:
        return bytes(chunk)
    return b""


def _cell(milliseconds: float) -> str:
    return f"{milliseconds:.0f}{'' if milliseconds <= BUDGET else ' **over**'}"


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
