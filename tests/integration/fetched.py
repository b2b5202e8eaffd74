"""For the tests of sources: one on a web server of the test's own, asked when the test wants it."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

from cleanup.models import AuditEntry, Source
from cleanup.staging import sources
from cleanup.staging.sources import Refreshed
from cleanup.stores.sql import database_now
from tests.retention import ANNA, Staging
from tests.web import Web

HOUR = timedelta(hours=1)


def notes(web: Web, staging: Staging) -> Source:
    """A source whose server has something."""
    web.serve("/notes.txt", b"first\n", ETag='"1"')
    return sources.add("notes", web.url(), staging.area, ANNA)


def refreshed(source: Source) -> Refreshed:
    """Ask now, as a person wants it, and say what came of it."""
    sources.queue(source, ANNA)
    done = sources.refresh(source.pk)
    assert done is not None
    source.refresh_from_db()
    return done


def told(action: str) -> list[dict[str, Any]]:
    """What the audit says of each time that something was done."""
    entries = AuditEntry.objects.filter(action=action).order_by("seq")
    return [json.loads(entry.evidence) for entry in entries]


def make_due(source: Source) -> datetime:
    """Let its time come; return the moment."""
    now = database_now()
    Source.objects.filter(pk=source.pk).update(next_check_at=now - HOUR)
    return now
