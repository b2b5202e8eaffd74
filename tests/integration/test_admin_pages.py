"""Every page of the console opens, says what there is, and does what its form says; GET changes nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from django.utils.html import escape

from bus import acks
from bus.access.tokens import check_api_key
from bus.log.current import event_log
from bus.models import Agent, ApiKey, Event, RunningTask, Topic
from bus.publishing import publish
from cleanup.models import AuditEntry, CleanupItem, Hold, PolicyPreview, RetentionPolicy, StagingArea
from cleanup.operations.previews import carry_out_preview, order_preview
from tests.integration import console_rows as given
from tests.retention import ANNA, Staging, fill_up

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("refusals_unlogged")]

#: Rows that become many; no list may count them all.
MANY = ("bus_event", "bus_topic", "bus_connectionsession", "cleanup_cleanupitem", "cleanup_auditentry")


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    return given.everything(tmp_path)


def client_of(person: User) -> Client:
    client = Client()
    client.force_login(person)
    return client


@pytest.fixture
def boss(people: dict[str, User]) -> Client:
    return client_of(people["admin"])


def page_urls() -> list[str]:
    """The list of every page, and the page of one row of it."""
    found = []
    for model in admin.site._registry:
        name = f"admin:{model._meta.app_label}_{model._meta.model_name}"
        found.append(reverse(f"{name}_changelist"))
        if (pk := model._default_manager.values_list("pk", flat=True).first()) is not None:
            found.append(reverse(f"{name}_change", args=[pk]))
    return found


def text_of(reply: Any) -> str:
    assert reply.status_code == 200, reply.status_code
    return str(reply.content.decode())


def test_every_page_opens_and_changes_nothing(boss, staging):
    before, urls = given.rows(), page_urls()
    assert len(urls) > 30
    for url in [reverse("admin:index"), *urls]:
        text_of(boss.get(url))
    assert given.rows() == before


def test_a_viewer_sees_every_page_of_bus_and_cleanup_but_no_person(people, staging):
    client = client_of(people["viewer"])
    for url in page_urls():
        hidden = "/auth/" in url
        assert client.get(url).status_code == (403 if hidden else 200), url


def test_a_viewer_is_offered_nothing_that_changes(people, staging):
    client = client_of(people["viewer"])
    for url in page_urls():
        if "/auth/" in url:
            continue
        shown = text_of(client.get(url))
        offered = set(re.findall(r"/do/(\w+)/", shown))
        assert offered <= {"verify"}, (url, offered)
        assert 'name="_save"' not in shown, url


def test_staff_without_a_role_is_told_whom_to_ask(people, staging):
    shown = text_of(client_of(people["nobody"]).get(reverse("admin:index")))
    assert "You have no role yet" in shown
    assert "In trash" not in shown


def test_lists_count_no_table_that_grows(boss, staging):
    for model in admin.site._registry:
        if model._meta.db_table not in MANY:
            continue
        url = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")
        with CaptureQueriesContext(
            connection,
        ) as queries:
            text_of(boss.get(url))
        counts = [query["sql"] for query in queries if re.search(r"COUNT\(", query["sql"])]
        assert not [sql for sql in counts if f'FROM "{model._meta.db_table}"' in sql], counts


def test_lists_need_few_queries_however_many_rows(boss, staging):
    for number in range(40):
        publish("broadcast", "agent.message", {"n": number})
        given.connection(f"agent-{number}")
    for name in ("bus_activeconnection", "bus_event", "bus_agent", "cleanup_cleanupitem"):
        with CaptureQueriesContext(connection) as queries:
            text_of(boss.get(reverse(f"admin:{name}_changelist")))
        assert len(queries) < 20, (name, len(queries))


def test_moments_carry_their_zone_and_how_long_ago(boss, staging):
    shown = text_of(boss.get(reverse("admin:cleanup_cleanupitem_changelist")))
    assert re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC <span>in 6 d \d+ h</span>", shown)


def test_nothing_says_delete_of_a_move_to_the_trash(boss, staging):
    for name in ("cleanupitem", "cleanuprun", "retentionpolicy"):
        shown = text_of(boss.get(reverse(f"admin:cleanup_{name}_changelist")))
        assert "elete" not in re.sub(r"<script.*?</script>", "", shown, flags=re.S), name


def test_names_with_markup_are_shown_as_text(boss, staging):
    item = CleanupItem.objects.first()
    CleanupItem.objects.filter(pk=item.pk).update(path="<script>alert(1)</script>")
    for url in (
        reverse("admin:cleanup_cleanupitem_changelist"),
        reverse("admin:cleanup_cleanupitem_change", args=[item.pk]),
        reverse("admin:cleanup_cleanupitem_do", args=["restore"]) + f"?ids={item.pk}",
    ):
        shown = text_of(boss.get(url))
        assert "<script>alert" not in shown
        assert escape("<script>alert(1)</script>") in shown


def test_a_topic_is_browsed_by_offset(boss):
    for number in range(1, 121):
        publish("broadcast", "agent.message", {"number": f"n{number}."})
    url = reverse("admin:bus_topic_change", args=[Topic.objects.get().pk])
    newest, middle = text_of(boss.get(url)), text_of(boss.get(url, {"before": "71"}))
    assert "n120." in newest
    assert "n71." in newest
    assert "n70." not in newest
    assert "?before=71" in newest
    assert "n70." in middle
    assert "n21." in middle
    assert "n20." not in middle
    assert "?before=121" in middle


@pytest.mark.parametrize("before", ["", "x", "-5", "9" * 40, "٣"])
def test_a_nonsense_offset_shows_the_newest_events(boss, before):
    publish("broadcast", "agent.message", {"text": "only one"})
    url = reverse("admin:bus_topic_change", args=[Topic.objects.get().pk])
    assert "only one" in text_of(boss.get(url, {"before": before}))


def test_events_are_found_by_the_whole_name_of_their_topic(boss):
    publish("broadcast", "agent.message", {"text": "to all"})
    publish("task:1", "output", {"text": "of one"})
    url = reverse("admin:bus_event_changelist")
    shown = text_of(boss.get(url, {"q": "task:1"}))
    assert "of one" in shown
    assert "to all" not in shown
    assert "of one" not in text_of(boss.get(url, {"q": "task:"}))


def test_an_event_says_who_has_acknowledged_it(boss, staging):
    read, unread = (Event.objects.get(topic__name="broadcast", offset=offset) for offset in (2, 3))
    assert "crawler" in text_of(boss.get(reverse("admin:bus_event_change", args=[read.pk])))
    assert "nobody yet" in text_of(boss.get(reverse("admin:bus_event_change", args=[unread.pk])))


def test_an_event_says_when_it_was_acknowledged(boss):
    for number in range(4):
        publish("broadcast", "agent.message", number)
    acks.ack("exact", "broadcast", 2)
    acks.ack("further", "broadcast", 4)
    event = Event.objects.get(topic__name="broadcast", offset=2)
    shown = text_of(boss.get(reverse("admin:bus_event_change", args=[event.pk])))
    lines = re.findall(r'<li><span class="x-mono">(\w+)</span> ([\w ]+) <time', shown)
    assert sorted(lines) == [("exact", "at"), ("further", "not after")]
    assert shown.index("further") < shown.index("exact"), "who acknowledged last comes first"


def test_topics_show_the_cursor_that_is_furthest_behind(boss):
    for number in range(4):
        publish("lab:1", "output", number)
    publish("lab:2", "output", 1)
    url = reverse("admin:bus_topic_changelist")
    assert text_of(boss.get(url)).count("no cursor") == 2
    acks.ack("fast", "lab:1", 4)
    acks.ack("slow", "lab:1", 1)
    acks.ack("done", "lab:2", 1)
    shown = text_of(boss.get(url))
    assert re.search(r"slow</span><small>3 events to do", shown)
    assert "fast" not in shown
    assert "all are done" in shown
    page = text_of(boss.get(reverse("admin:bus_topic_change", args=[Topic.objects.get(name="lab:1").pk])))
    assert page.index("slow") < page.index("fast")


def test_what_was_trimmed_from_an_inbox_does_not_wait_in_it(boss):
    for number in range(6):
        publish("agent:a7", "agent.message", number)
    Agent.objects.create(agent_id="a7")
    url = reverse("admin:bus_agent_changelist")
    assert "6 events" in text_of(boss.get(url))
    event_log().trim("agent:a7", max_age=None, max_events=2)
    assert "2 events" in text_of(boss.get(url))
    acks.ack("a7", "agent:a7", 5)
    assert "1 event<" in text_of(boss.get(url))


def test_a_volatile_log_is_told_wherever_its_rows_are_shown(boss, staging, settings):
    pages = [reverse(f"admin:bus_{name}_changelist") for name in ("topic", "event", "cursor", "agent")]
    index = reverse("admin:index")
    assert not any("in memory only" in text_of(boss.get(url)) for url in [*pages, index])
    settings.BUS = {**settings.BUS, "VOLATILE": True}
    for url in [*pages, index]:
        assert "in memory only" in text_of(boss.get(url)), url


def test_jobs_under_way_say_who_holds_them(boss, staging):
    url = reverse("admin:bus_runningtask_changelist")
    shown = text_of(boss.get(url))
    assert "nightly" in shown
    assert "running" in shown
    RunningTask.objects.update(lease_until=timezone.now(), doubted_at=timezone.now())
    assert "not heard of" in text_of(boss.get(url))


def test_an_agent_that_is_away_shows_what_waits_for_it(boss, staging):
    from bus.models import ActiveConnection

    url = reverse("admin:bus_agent_changelist")
    assert "online" in text_of(boss.get(url))
    ActiveConnection.objects.all().delete()
    shown = text_of(boss.get(url))
    assert "away" in shown
    assert "1 event" in shown


POLICY = {
    "name": "fresh", "mode": "report", "rule": "age", "age": "3d", "age_by": "m", "include": "*.json\n*.txt",
    "exclude": "", "verifiers": "redis_task", "task_id_pattern": "", "grace_period": "5d", "floor": "2d",
    "schedule": "30 2 * * *", "catch_up": "skip", "unit": "file", "order_by": "age",
    "stamp_field": "created_at", "row_filter": "",
    "max_files": "100", "max_bytes": "2.5 GB", "max_percent": "50",
    "max_median_factor": "7", "max_unknown_percent": "3",
}  # fmt: skip


def test_a_new_policy_begins_with_what_it_would_have_anyway(boss):
    form = boss.get(reverse("admin:cleanup_retentionpolicy_add")).context["adminform"].form
    shown = {name: form[name].value() for name in ("grace_period", "max_bytes", "row_filter", "schedule")}
    assert shown == {"grace_period": "1w", "max_bytes": "100 GB", "row_filter": "{}", "schedule": "6h"}


def test_a_policy_is_made_as_people_write_it(boss, staging):
    boss.post(reverse("admin:cleanup_retentionpolicy_add"), {**POLICY, "area": staging.area.pk})
    made = RetentionPolicy.objects.get(name="fresh")
    assert made.include == ["*.json", "*.txt"]
    assert made.max_bytes == 2_500_000_000
    assert (made.grace_period.days, made.floor.days) == (5, 2)
    assert (made.schedule, made.catch_up) == ("30 2 * * *", "skip")
    assert (made.max_median_factor, made.max_unknown_percent) == (7, 3)
    assert made.versions.get().created_by == "admin"
    assert AuditEntry.objects.filter(action="policy_saved").latest("seq").actor == "admin"


def test_saving_a_policy_again_makes_the_next_version(boss, staging):
    policy = RetentionPolicy.objects.get()
    number = policy.versions.count()
    url = reverse("admin:cleanup_retentionpolicy_change", args=[policy.pk])
    boss.post(url, {**POLICY, "name": policy.name, "area": staging.area.pk})
    assert policy.versions.count() == number + 1


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("age", "soon", "is not understood"),
        ("include", "re:(", "cannot be compiled"),
        ("verifiers", "oracle", "oracle"),
        ("verifiers", "{broken", "not JSON"),
        ("max_bytes", "much", "Write a size"),
        ("grace_period", "-1d", "is not understood"),
        ("max_percent", "120", "above 100"),
        ("name", "two words", "slug"),
        ("schedule", "61 2 * * *", "minute is not understood"),
        ("floor", "6d", "floor is between zero and grace_period"),
        ("keep", "3", "keep"),
        ("row_filter", "{broken", "valid JSON"),
    ],
)
def test_a_policy_that_could_not_be_obeyed_is_not_saved(boss, staging, field, value, complaint):
    before = given.rows()
    given_form = {**POLICY, "area": staging.area.pk, field: value}
    shown = text_of(boss.post(reverse("admin:cleanup_retentionpolicy_add"), given_form))
    assert complaint in shown
    assert escape(value) in shown, "what was written is still there"
    assert given.rows() == before


def test_a_schedule_is_shown_in_words_and_an_area_with_its_watermarks(boss, staging):
    policy = RetentionPolicy.objects.get()
    boss.post(
        reverse("admin:cleanup_retentionpolicy_change", args=[policy.pk]),
        {**POLICY, "name": policy.name, "area": staging.area.pk},
    )
    page = reverse("admin:cleanup_retentionpolicy_change", args=[policy.pk])
    assert "At 02:30 every day (UTC)" in text_of(boss.get(page))
    fill_up(staging.area, rate=10**9)
    shown = text_of(boss.get(reverse("admin:cleanup_stagingarea_change", args=[staging.area.pk])))
    assert "above 90 % of its disk it is cleared down to 80 %" in shown
    assert "7 h" in shown, "when the disk will be full"


def test_a_viewer_can_post_no_form(people, staging):
    before, client = given.rows(), client_of(people["viewer"])
    policy = RetentionPolicy.objects.get()
    forms = {
        "cleanup_retentionpolicy": {**POLICY, "area": staging.area.pk},
        "cleanup_stagingarea": {"name": "other", "path": str(staging.root.parent)},
        "cleanup_hold": {"area": staging.area.pk, "pattern": "*", "reason": "because"},
        "bus_apikey": {"name": "mine", "scopes": "publish"},
    }
    for name, data in forms.items():
        assert client.post(reverse(f"admin:{name}_add"), data).status_code == 403, name
    change = reverse("admin:cleanup_retentionpolicy_change", args=[policy.pk])
    assert client.post(change, {**POLICY, "area": staging.area.pk}).status_code == 403
    assert given.rows() == before


def test_an_area_is_registered_with_its_marker(boss, tmp_path):
    (tmp_path / "new").mkdir()
    data = {"name": "new", "path": str(tmp_path / "new"), "protected": "on"}
    boss.post(reverse("admin:cleanup_stagingarea_add"), data)
    assert StagingArea.objects.get(name="new").protected
    assert (tmp_path / "new" / ".staging-area").is_file()


@pytest.mark.parametrize("path", ["/", "/etc", "relative/path", "/no/such/place"])
def test_a_dangerous_area_is_refused_on_the_form(boss, path):
    data = {"name": "new", "path": path}
    shown = text_of(boss.post(reverse("admin:cleanup_stagingarea_add"), data))
    assert "errornote" in shown or 'role="alert"' in shown or "bg-red-100" in shown
    assert not StagingArea.objects.exists()


def test_an_operator_holds_files(people, staging):
    data = {"area": staging.area.pk, "pattern": "d1/**", "reason": "audit"}
    client_of(people["operator"]).post(reverse("admin:cleanup_hold_add"), data)
    assert Hold.objects.get(pattern="d1/**").created_by == "operator"


def test_an_api_key_is_shown_once_and_works(boss, people):
    data = {"name": "importer", "agent_id": "crawler", "scopes": "publish:task\npublish", "topics": "task:*"}
    reply = boss.post(reverse("admin:bus_apikey_add"), data)
    shown = re.search(r'id="x-key"[^>]*value="([^"]+)"', text_of(reply))
    assert shown is not None
    key = shown[1]
    proof = check_api_key(key)
    assert (proof.identity.agent_id, proof.identity.topic_patterns) == ("crawler", ("task:*",))
    assert "no-store" in reply["Cache-Control"]
    row = ApiKey.objects.get()
    secret = key.removeprefix(row.prefix)
    later = [text_of(boss.get(url)) for url in (
        reverse("admin:bus_apikey_changelist"), reverse("admin:bus_apikey_change", args=[row.pk])
    )]  # fmt: skip
    assert not any(secret in page for page in later)
    assert secret not in str(dict(boss.session)) + str(boss.cookies)


def test_a_second_key_of_the_same_name_is_refused(boss, staging):
    shown = text_of(boss.post(reverse("admin:bus_apikey_add"), {"name": "importer"}))
    assert "already exists" in shown
    assert ApiKey.objects.count() == 1


def test_a_preview_says_what_would_go_what_stays_and_why(boss, staging):
    url = reverse("admin:cleanup_policypreview_change", args=[PolicyPreview.objects.get().pk])
    before = given.rows()
    shown, kept = text_of(boss.get(url)), text_of(boss.get(f"{url}?tab=stays"))
    assert "3\u00a0files, 21\u00a0B</strong> would go to the trash" in shown
    assert "3 files, where 1 is the limit" in shown
    assert all(name in shown + kept for name in staging.files())
    assert "not older than 3d" in kept
    assert given.rows() == before


def test_a_preview_of_an_area_that_is_away_says_so(boss, staging):
    (staging.root / ".staging-area").unlink()
    policy = RetentionPolicy.objects.get()
    made = order_preview(policy, ANNA)
    carry_out_preview(made.pk)
    shown = text_of(boss.get(reverse("admin:cleanup_policypreview_change", args=[made.pk])))
    assert "No preview" in shown
    assert ".staging-area" in shown


def test_verify_turns_red_when_an_entry_was_changed(boss, staging):
    if connection.vendor == "postgresql":
        connection.cursor().execute("ALTER TABLE cleanup_auditentry DISABLE TRIGGER USER")
    AuditEntry.objects.filter(seq=2).update(actor="nobody")
    shown = text_of(boss.post(reverse("admin:cleanup_auditentry_do", args=["verify"]), follow=True))
    assert "TAMPERED at entry 2" in shown
    assert "Sound:" not in shown
