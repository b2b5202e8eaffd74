"""Lists of the console at scale: pages by key, no full scan, no sort of a table, no count, whatever is asked.

The tables hold some ten thousand rows, and the databases are asked how they answer each statement of each
list, with each filter, on the first page, in the middle and on the last.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlencode

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.auth.models import User
from django.contrib.messages.storage.cookie import CookieStorage
from django.db import connection
from django.test import Client, RequestFactory
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from bus import paging
from bus.models import Event, Topic
from bus.publishing import publish
from cleanup.models import AuditEntry, CleanupItem
from tests.bench.console_around import Around, surround
from tests.bench.console_bench import Listed, lists, middle
from tests.bench.console_fill import Amount, fill
from tests.bench.console_pages import routed

pytestmark = pytest.mark.django_db

#: The big three.
BIG = ("cleanup_cleanupitem", "bus_event", "cleanup_auditentry")
#: Others that grow.
OTHERS = (
    "bus_agent", "bus_topic", "bus_cursor", "bus_connectionsession", "cleanup_stagedfile",
    "cleanup_verifiercheck",
)  # fmt: skip
AMOUNT = Amount(items=12_000, events=12_000, entries=40_000)
AROUND = Around(
    agents=6_000, topics=6_000, cursors=6_000, sessions=6_000, files=6_000, checks=6_000, connections=20,
    orphans=10, runs=10, versions=20, holds=5, minutes=5,
)  # fmt: skip
#: More rows than a page looks at in these tests, and far fewer than there are.
FEW = 1_500


@pytest.fixture
def root() -> User:
    return User.objects.create_superuser("root")


@pytest.fixture
def client(root: User) -> Client:
    client = Client()
    client.force_login(root)
    return client


def address(name: str, **query: str) -> str:
    return f"{reverse(f'admin:{name}_changelist')}?{urlencode(query)}"


def text_of(reply: Any) -> str:
    assert reply.status_code == 200, reply.status_code
    return str(reply.content.decode())


def shown(client: Client, name: str, **query: str) -> Any:
    """A list as its page has it, without the page: that takes ten times as long."""
    request = RequestFactory().get(address(name, **query))
    request.user = User.objects.get(username="root")
    request._messages = CookieStorage(request)
    page = admin.site.get_model_admin(apps.get_model(*name.split("_", 1)))
    return page.get_changelist_instance(request)


def walk(client: Client, name: str, **query: str) -> list[Any]:
    """All rows of a list, by its Next links."""
    rows, place = [], {}
    while True:
        page = shown(client, name, **query, **place)
        rows += [row.pk for row in page.result_list]
        if not page.next_page:
            return rows
        place = {"after": page.next_page}


def walk_back(client: Client, name: str, **query: str) -> list[Any]:
    """All rows of a list, from the last page by its Previous links; the first page is always a full one."""
    rows: list[Any] = []
    place = {"before": "end"}
    while True:
        page = shown(client, name, **query, **place)
        seen = set(rows)
        rows = [row.pk for row in page.result_list if row.pk not in seen] + rows
        if not page.previous_page:
            return rows
        place = {"before": page.previous_page}


# How the databases answer ----------------------------------------------------------------------------------


def plan_of(sql: str) -> str:
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(f"EXPLAIN {sql}")
            return "\n".join(row[0] for row in cursor.fetchall())
        cursor.execute(f"EXPLAIN QUERY PLAN {sql}")
        return "\n".join(f"{'  ' if parent else ''}{step}" for _, parent, _, step in cursor.fetchall())


def complaints(sql: str, tables: Sequence[str] = BIG) -> Iterator[str]:
    """What is wrong with the way in which a statement over a big table is answered."""
    big = [name for name in tables if f'"{name}"' in sql]
    if not big or not sql.startswith("SELECT"):
        return
    if re.search(rf"COUNT\(|DISTINCT|GROUP BY| OFFSET (?!{FEW - 1}\b)", sql):
        yield "counts or skips"
    plan = plan_of(sql)
    # A table in the order of its own key is read up to the limit; that is a page.
    if " WHERE " not in sql and " LIMIT " in sql:
        by_key = [name for name in ("bus_event", "cleanup_stagedfile") if plan.startswith(f"SCAN {name}")]
        big = [name for name in big if name not in by_key]
    for name in big:
        if re.search(rf"(Seq Scan on|SCAN) {name}(?! USING)", plan):
            yield f"reads all of {name}"
    # Those alike in the first column are a batch, and are sorted; so are a few. More are not.
    sorted_rows = re.findall(r"(?:^|->)\s*Sort\s+\(cost=\S+ rows=(\d+)", plan, re.MULTILINE)
    # What a subquery sorts, indented by SQLite, is looked up for one row of the page.
    if any(int(rows) >= FEW for rows in sorted_rows) or "\nUSE TEMP B-TREE FOR ORDER BY" in plan:
        yield "sorts"


def test_no_page_of_a_big_list_reads_or_sorts_or_counts_a_table(client, root, monkeypatch):
    small_looks(monkeypatch)
    fill(AMOUNT)
    found: list[str] = []
    for listed in lists():
        request = RequestFactory().get("/", listed.query)
        request.user = root
        token = middle(listed, request)
        for place in ({}, {"after": token}, {"before": "end"}):
            with CaptureQueriesContext(connection) as queries:
                shown(client, listed.name, **listed.query, **place)
            for query in queries:
                found += [
                    f"{listed} {place}: {complaint}\n{query['sql']}\n{plan_of(query['sql'])}"
                    for complaint in complaints(query["sql"])
                    # The few entries of one file are found by it, and then put in order.
                    if not (listed.words == "a file" and complaint == "sorts")
                ]
    assert not found, "\n\n".join(found[:3])


def test_no_page_of_another_list_that_grows_reads_or_sorts_or_counts_its_table(client, root, monkeypatch):
    small_looks(monkeypatch, *(apps.get_model(*name.split("_", 1)) for name in OTHERS))
    fill(Amount(items=10, events=10, entries=10))
    surround(AROUND)
    asked = dict(routed())
    assert set(asked) == set(OTHERS)
    found: list[str] = []
    for name, queries in asked.items():
        for words, query in queries.items():
            request = RequestFactory().get("/", query)
            request.user = root
            token = middle(Listed(words=words, name=name, query=query), request)
            for place in ({}, {"after": token}, {"before": "end"}):
                with CaptureQueriesContext(connection) as statements:
                    shown(client, name, **query, **place)
                found += [
                    f"{name} {words} {place}: {complaint}\n{statement['sql']}\n{plan_of(statement['sql'])}"
                    for statement in statements
                    for complaint in complaints(statement["sql"], [name])
                    # Agents that are connected are found by their connections, and then put in order.
                    if not ("online" in words and complaint == "sorts")
                ]
    assert not found, "\n\n".join(found[:3])


def small_looks(monkeypatch: pytest.MonkeyPatch, *models: Any) -> None:
    """Have every list look at few rows only."""
    for model in models or (CleanupItem, Event, AuditEntry):
        page = admin.site.get_model_admin(model)
        routes = tuple(
            paging.Route(**{**{name: getattr(route, name) for name in route.__slots__}, "look_at": FEW})
            for route in page.routes
        )
        monkeypatch.setattr(page, "routes", routes, raising=False)


def test_the_walk_of_plans_finds_what_is_wrong(client):
    """The test above can fail: it complains of statements as a careless list would make them."""
    fill(Amount(items=3_000, events=100, entries=100))
    careless = (
        'SELECT COUNT(*) FROM "cleanup_cleanupitem"',
        'SELECT "id" FROM "cleanup_cleanupitem" ORDER BY "size" LIMIT 50',
        'SELECT "id" FROM "cleanup_cleanupitem" WHERE "detail" = \'x\' LIMIT 50',
        'SELECT DISTINCT "reason" FROM "cleanup_cleanupitem"',
        'SELECT "id" FROM "cleanup_cleanupitem" ORDER BY "id" LIMIT 50 OFFSET 2000',
    )
    assert [sql for sql in careless if not list(complaints(sql))] == []


# Pages ------------------------------------------------------------------------------------------------------


def test_pages_follow_each_other_without_a_gap_both_ways(client):
    fill(Amount(items=420, events=230, entries=130))
    orders = {
        "cleanup_cleanupitem": CleanupItem.objects.filter(state="trashed").order_by("-trashed_at", "-pk"),
        "bus_event": Event.objects.order_by("-id"),
        "cleanup_auditentry": AuditEntry.objects.order_by("-seq"),
    }
    for name, rows in orders.items():
        expected = list(rows.values_list("pk", flat=True))
        assert len(expected) > 100
        assert walk(client, name) == expected, name
        assert walk_back(client, name) == expected, name


def test_rows_without_a_time_come_last_and_are_all_there(client):
    fill(Amount(items=300, events=1, entries=1))
    some = CleanupItem.objects.filter(state="trashed").values_list("pk", flat=True)[:130]
    CleanupItem.objects.filter(pk__in=list(some)).update(purge_after=None)
    timed = CleanupItem.objects.filter(state="trashed", purge_after__isnull=False)
    for order, sign in (("6", ""), ("-6", "-")):
        expected = list(timed.order_by(f"{sign}purge_after", f"{sign}pk").values_list("pk", flat=True))
        found = walk(client, "cleanup_cleanupitem", o=order)
        assert found[: len(expected)] == expected
        assert set(found[len(expected) :]) == set(some)
        assert walk_back(client, "cleanup_cleanupitem", o=order) == found


def test_a_bookmarked_page_stays_while_new_rows_come(client):
    for number in range(120):
        publish("broadcast", "agent.message", {"n": number})
    second = shown(client, "bus_event", after=shown(client, "bus_event").next_page)
    mark = shown(client, "bus_event").next_page
    for number in range(60):
        publish("broadcast", "agent.message", {"n": 1000 + number})
    again = shown(client, "bus_event", after=mark)
    assert [row.pk for row in again.result_list] == [row.pk for row in second.result_list]


#: None of them was ever made by a list.
NONSENSE = (
    "x", "~", "=~", "=5", "=x~y", "=2020-01-01~1", "=0001-01-01T00:00:00+14:00~1", f"=1~{'9' * 40}", "\x00",
    "~7", f"={'9' * 40}~1", "=\ud83d~1".encode("utf-16", "surrogatepass").decode("utf-16", "replace"),
)  # fmt: skip


def test_a_token_that_is_none_shows_a_page_and_no_error(client):
    fill(Amount(items=60, events=60, entries=60))
    for name in BIG:
        first = [row.pk for row in shown(client, name).result_list]
        for token in NONSENSE:
            for side in ("after", "before"):
                # A moment long ago or a number is a place; what is none begins the list.
                found = [row.pk for row in shown(client, name, **{side: token}).result_list]
                assert found in (first, []) or set(found) < set(walk(client, name)), (name, side, token)
        assert client.get(address(name, after="=x~y")).status_code == 200


def test_a_page_before_the_first_row_is_the_first_page(client):
    fill(Amount(items=1, events=1, entries=130))
    first = shown(client, "cleanup_auditentry")
    place = first._token(first._key_of(first.result_list[3]))
    back = shown(client, "cleanup_auditentry", before=place)
    assert [row.pk for row in back.result_list] == [row.pk for row in first.result_list]
    assert not back.previous_page


def test_a_filter_begins_at_its_first_page_and_pages_keep_the_filter(client):
    fill(Amount(items=1, events=1, entries=300))
    page = text_of(client.get(address("cleanup_auditentry", after="=200~200")))
    assert not re.search(r'href="\?[^"]*action=[^"]*after', page)
    inside = text_of(client.get(address("cleanup_auditentry", action="purged")))
    assert re.search(r'href="\?action=purged&amp;after=', inside)
    assert re.search(r'href="\?action=purged&amp;before=end"', inside)


# Looking ----------------------------------------------------------------------------------------------------


def test_what_no_index_answers_is_looked_for_and_the_page_says_how_far(client, monkeypatch):
    fill(Amount(items=1, events=1, entries=4_000))
    small_looks(monkeypatch)
    AuditEntry.objects.bulk_create([
        AuditEntry(seq=seq, at_us=seq, actor="cleanup", actor_kind="system", action="purged", path="needle")
        for seq in (4_001, 5_000)
    ])  # fmt: skip
    page = text_of(client.get(address("cleanup_auditentry", q="result-12")))
    assert "Looked at 1,500 rows and found" in page
    assert "Look further" in page
    expected = AuditEntry.objects.filter(path__icontains="result-12").order_by("-seq")
    assert walk(client, "cleanup_auditentry", q="result-12") == list(expected.values_list("pk", flat=True))
    nothing = text_of(client.get(address("cleanup_auditentry", q="nowhere")))
    assert "found 0" in nothing
    assert walk(client, "cleanup_auditentry", q="needle") == [5_000, 4_001]
    assert walk_back(client, "cleanup_auditentry", q="needle") == [5_000, 4_001]


def test_a_list_that_was_looked_through_says_nothing(client):
    fill(Amount(items=1, events=1, entries=200))
    assert "Looked at" not in text_of(client.get(address("cleanup_auditentry", q="nowhere")))


# What is found ---------------------------------------------------------------------------------------------


def test_every_filter_finds_what_it_says(client):
    fill(Amount(items=1_200, events=600, entries=900))
    for listed in lists():
        found = walk(client, listed.name, **listed.query)
        expected = {
            ("cleanup_cleanupitem", "a reason"): CleanupItem.objects.filter(
                state="trashed", reason="expired"
            ),
            ("cleanup_cleanupitem", "purged"): CleanupItem.objects.filter(state="purged"),
            ("cleanup_cleanupitem", "one area"): CleanupItem.objects.filter(
                state="trashed", area__name="uploads"
            ),
            ("cleanup_cleanupitem", "a policy"): CleanupItem.objects.filter(state="trashed"),
            ("cleanup_cleanupitem", "beginning of a path"): CleanupItem.objects.filter(
                state="trashed", path__startswith="in/12"
            ),
            ("bus_event", "a long topic"): Event.objects.filter(topic__name="broadcast"),
            ("bus_event", "no such topic"): Event.objects.none(),
            ("bus_event", "a publisher"): Event.objects.filter(publisher="agent:a7"),
            ("cleanup_auditentry", "a person"): AuditEntry.objects.filter(actor="anna"),
            ("cleanup_auditentry", "the system"): AuditEntry.objects.filter(actor="cleanup"),
            ("cleanup_auditentry", "an action"): AuditEntry.objects.filter(action="restored"),
            ("cleanup_auditentry", "a number"): AuditEntry.objects.filter(seq=1),
            ("cleanup_auditentry", "a person and an action"): AuditEntry.objects.filter(
                actor="anna", action="purged"
            ),
        }.get((listed.name, listed.words))
        if expected is not None:
            assert set(found) == set(expected.values_list("pk", flat=True)), listed
            assert len(found) == len(set(found)), listed


def test_days_are_those_of_the_site_and_both_ends_are_within(client, settings):
    settings.TIME_ZONE = "UTC"
    fill(Amount(items=3, events=3, entries=30))
    day = 86_400_000_000
    if connection.vendor == "postgresql":
        connection.cursor().execute("ALTER TABLE cleanup_auditentry DISABLE TRIGGER USER")
    for entry in AuditEntry.objects.all():
        AuditEntry.objects.filter(pk=entry.pk).update(at_us=19_000 * day + entry.seq * day // 10)
    # Ten entries a day: 0.1 to 0.9 of the day 2022-01-08, then 1.0 to 1.9 of the next, and so on.
    found = walk(client, "cleanup_auditentry", at_from="2022-01-09", at_to="2022-01-09")
    assert sorted(found) == list(range(10, 20))
    assert sorted(walk(client, "cleanup_auditentry", at_from="2022-01-10")) == list(range(20, 31))
    assert sorted(walk(client, "cleanup_auditentry", at_to="2022-01-08")) == list(range(1, 10))


SENSELESS = (
    {"state": "gone"}, {"area": "x"}, {"purge_day": "soon"}, {"trashed_from": "2020-13-01"}, {"run": "x"},
    {"size": "-1"}, {"o": "99"}, {"nonsense": "1"}, {"path__regex": "("}, {"purge_day": "9999-12-31"},
    {"q": "\x00"}, {"policy": "none"}, {"q": "*"},
)  # fmt: skip


def test_a_filter_that_makes_no_sense_is_no_error(client):
    fill(Amount(items=60, events=1, entries=1))
    for query in SENSELESS:
        with contextlib.suppress(IncorrectLookupParameters):  # the page then shows the list as it is
            assert len(shown(client, "cleanup_cleanupitem", **query).result_list) <= 50, query
    reply = client.get(address("cleanup_cleanupitem", purge_day="soon"))
    assert (reply.status_code, reply["Location"]) == (302, "/admin/cleanup/cleanupitem/?e=1")


def test_only_columns_that_an_index_orders_can_be_sorted_by(client):
    fill(Amount(items=60, events=60, entries=60))
    page = shown(client, "cleanup_cleanupitem")
    assert set(page.sortable_by) == {"moved", "purge"}
    assert shown(client, "bus_event").sortable_by == []
    assert Topic.objects.count() == 2
