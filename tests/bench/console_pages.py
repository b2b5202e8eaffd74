"""The pages of the console beside its three great lists, on rows of `console_fill` and `console_around`.

The other lists, each with its filters and as far into it as it can be turned; the pages of single rows that
have much to look up; the parts that pages ask for by themselves; the pages that ask before a change.
"""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlencode

from tests.bench.console_around import FLAPPING, QUIET

#: What a page is called, and its address.
Page = tuple[str, str]


def pages() -> Iterator[Page]:
    """All of them."""
    yield from _lists()
    yield from _rows()
    yield from _parts()
    yield from _asking()


def _list(model: str, **query: str) -> str:
    from django.urls import reverse

    return f"{reverse(f'admin:{model}_changelist')}?{urlencode(query)}"


def _page(model: str, row: object, **query: str) -> str:
    from django.urls import reverse

    return f"{reverse(f'admin:{model}_change', args=[row])}?{urlencode(query)}"


def _lists() -> Iterator[Page]:
    for model, asked in _queries():
        for words, query in asked.items():
            yield f"{model.split('_')[1]}: {words}", _list(model, **query)


def _queries() -> Iterator[tuple[str, dict[str, dict[str, str]]]]:
    for name, asked in routed():
        yield name, {**asked, "last": {"before": "end"}}
    yield from _plain()
    yield from _plain_of_cleanup()


def routed() -> Iterator[tuple[str, dict[str, dict[str, str]]]]:
    """Lists that follow routes beside the great three, by `app_model`: what is asked of each, in words.

    The tests ask the databases to explain these.
    """
    yield "bus_connectionsession", {
        "all": {}, "a transport": {"transport": "plain"}, "a rare transport": {"transport": "sse"},
        "an agent": {"q": FLAPPING}, "another agent": {"q": QUIET}, "a client": {"q": "c-1234"},
        "none": {"q": "nobody"}, "a transport of an agent": {"q": FLAPPING, "transport": "sse"},
    }  # fmt: skip
    yield "bus_agent", {
        "all": {}, "online": {"now": "online"}, "away": {"now": "away"}, "search": {"q": "a77"},
        "none": {"q": "nobody"}, "search online": {"q": "a99", "now": "online"},
    }  # fmt: skip
    yield "bus_topic", {"all": {}, "search": {"q": "job-77"}, "none": {"q": "nothing"}}
    yield "bus_cursor", {"all": {}, "search": {"q": "a77"}, "none": {"q": "nobody"}, "falling": {"o": "-0"}}
    yield from _routed_of_cleanup()


def _routed_of_cleanup() -> Iterator[tuple[str, dict[str, dict[str, str]]]]:
    from cleanup.models import StagingArea, VerifierCheck

    results, _, attic = (str(row.pk) for row in StagingArea.objects.order_by("pk")[:3])
    yield "cleanup_stagedfile", {
        "all": {}, "living": {"state": "living"}, "soft-deleted": {"state": "gone"},
        "an area": {"area": results}, "a tiny area": {"area": attic}, "a task": {"task": "job-77"},
        "an uploader": {"uploader": "loader"}, "a rare uploader": {"uploader": "bob"},
        "search": {"q": "staged-77"}, "none": {"q": "nowhere"}, "no such uploader": {"uploader": "nobody"},
    }  # fmt: skip
    verifier = VerifierCheck.objects.order_by("pk")[0].verifier
    yield "cleanup_verifiercheck", {
        "all": {}, "not sound": {"sound": "0"}, "a verifier": {"q": verifier}, "none": {"q": "nothing"},
        "not sound of a verifier": {"q": verifier, "sound": "0"},
    }  # fmt: skip


def _plain() -> Iterator[tuple[str, dict[str, dict[str, str]]]]:
    yield "bus_activeconnection", {
        "all": {}, "page 15": {"p": "15"}, "frozen": {"standing": "frozen"}, "owing": {"standing": "owing"},
        "people": {"who": "people"}, "agents": {"who": "agents"}, "search": {"q": "a77"},
        "a transport": {"transport__exact": "plain"}, "none": {"q": "nobody"},
        "a server": {"server_instance__name__exact": "web-1"},
    }  # fmt: skip
    yield "bus_runningtask", {"all": {}, "silent": {"worker": "silent"}, "search": {"q": "task:7"}}
    for model in ("apikey", "tokenrevocation", "serverinstance"):
        yield f"bus_{model}", {"all": {}}


def _plain_of_cleanup() -> Iterator[tuple[str, dict[str, dict[str, str]]]]:
    from cleanup.models import RetentionPolicy, StagingArea

    results = str(StagingArea.objects.order_by("pk")[0].pk)
    old = str(RetentionPolicy.objects.get(name="old").pk)
    yield "cleanup_cleanuprun", {
        "all": {}, "page 190": {"p": "190"}, "a state": {"state__exact": "failed"}, "a policy": {"q": "old"},
        "a state that none has": {"state__exact": "refused"}, "an area": {"area__id__exact": results},
        "report only": {"dry_run__exact": "1"}, "by bytes": {"o": "-2"}, "none": {"q": "nothing"},
    }  # fmt: skip
    yield "cleanup_policyversion", {
        "all": {}, "page 19": {"p": "19"}, "a policy": {"policy__id__exact": old}, "search": {"q": "rule-7"},
    }  # fmt: skip
    yield "cleanup_hold", {
        "all": {}, "page 19": {"p": "19"}, "of restores": {"maker": "restores"}, "search": {"q": "in/77"},
        "an area": {"area__id__exact": results},
    }  # fmt: skip
    for model in ("stagingarea", "retentionpolicy", "policypreview", "trashorder", "auditcheckpoint"):
        yield f"cleanup_{model}", {"all": {}}


def _rows() -> Iterator[Page]:
    from bus.models import ActiveConnection, Agent, ConnectionSession, Cursor, Event, Topic
    from cleanup.models import (
        AuditEntry,
        CleanupItem,
        CleanupRun,
        Hold,
        PolicyVersion,
        RetentionPolicy,
        StagedFile,
        StagingArea,
    )

    topic, event = Topic.objects.get(name="broadcast"), Event.objects.filter(topic__name="broadcast")[0]
    yield "topic: long", _page("bus_topic", topic.pk)
    yield "topic: in the middle", _page("bus_topic", topic.pk, before=str(topic.last_offset // 2))
    yield "topic: at a time", _page("bus_topic", topic.pk, at=event.created_at.isoformat())
    yield "topic: of a task", _page("bus_topic", Topic.objects.get(name="task:7").pk)
    yield "event", _page("bus_event", event.pk)
    for name in (FLAPPING, QUIET):
        yield f"agent: {name}", _page("bus_agent", Agent.objects.get(agent_id=name).pk)
    yield "connection", _page("bus_activeconnection", ActiveConnection.objects.get(agent_id="a7").pk)
    yield "session", _page("bus_connectionsession", ConnectionSession.objects.order_by("-pk")[0].pk)
    yield "cursor", _page("bus_cursor", Cursor.objects.order_by("pk")[0].pk)
    yield "trashed file", _page("cleanup_cleanupitem", CleanupItem.objects.order_by("pk")[0].pk)
    yield "staged file", _page("cleanup_stagedfile", StagedFile.all_objects.order_by("pk")[0].pk)
    yield "run", _page("cleanup_cleanuprun", CleanupRun.objects.order_by("-created_at")[0].pk)
    yield "run with files", _page("cleanup_cleanuprun", CleanupRun.objects.order_by("pk")[0].pk)
    yield "area", _page("cleanup_stagingarea", StagingArea.objects.order_by("pk")[0].pk)
    yield "policy", _page("cleanup_retentionpolicy", RetentionPolicy.objects.get(name="old").pk)
    yield "policy version", _page("cleanup_policyversion", PolicyVersion.objects.order_by("-pk")[0].pk)
    yield "hold", _page("cleanup_hold", Hold.objects.order_by("pk")[0].pk)
    yield "audit entry", _page("cleanup_auditentry", AuditEntry.objects.order_by("seq")[0].pk)


def _parts() -> Iterator[Page]:
    from django.urls import reverse

    from cleanup.models import CleanupItem, StagingArea

    area = StagingArea.objects.order_by("pk")[0]
    item = CleanupItem.objects.filter(area=area).order_by("pk")[0]
    yield "overview", reverse("admin:index")
    yield "overview: parts", reverse("overview-parts")
    for back in ("1h", "24h", "7d"):
        yield f"overview: history, {back}", f"{reverse('overview-history')}?back={back}"
    yield "live: page", reverse("dashboard")
    yield "live: state", reverse("dashboard-state")
    yield "live: trace", f"{reverse('dashboard-trace')}?of=a7"
    for words, path in (
        ("a path", f"{area.path}/{item.path}"), ("a path that is unknown", f"{area.path}/x/y"),
    ):  # fmt: skip
        yield f"explain: {words}", f"{reverse('cleanup-explain')}?{urlencode({'path': path})}"
    yield "orphans", _list("cleanup_orphanbatch")
    yield "orphans: in the middle", _list("cleanup_orphanbatch", area=str(area.pk), batch="10", at="100")
    hint = urlencode({"area": area.pk, "pattern": "in/7*/**"})
    yield "hold: hint", f"{reverse('admin:cleanup_hold_hint')}?{hint}"
    yield "audit: export, first bytes", reverse("admin:cleanup_auditentry_export")


def _asking() -> Iterator[Page]:
    from django.urls import reverse

    from cleanup.models import StagingArea

    attic = StagingArea.objects.get(name="attic").pk
    for verb in ("restore_found", "extend_found", "purge_found"):
        yield f"order: {verb}, all", reverse("admin:cleanup_trashorder_do", args=[verb])
    asked = {
        "a reason": {"reason": "expired"}, "a policy": {"policy": "old"}, "a tiny area": {"area": attic},
        "part of a path": {"q": "result-77"}, "part that none has": {"q": "nowhere"},
        "big files": {"size": "100000000"}, "beginning of a path": {"q": "in/12*"},
    }  # fmt: skip
    for words, query in asked.items():
        url = reverse("admin:cleanup_trashorder_do", args=["restore_found"])
        yield f"order: {words}", f"{url}?{urlencode(query)}"
