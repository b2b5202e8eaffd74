"""Areas and holds in the console: trouble in words, every change with its person, no walk and no sum."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from cleanup import operations
from cleanup.models import AreaUsage, AuditEntry, Hold, StagingArea
from cleanup.operations import measuring
from cleanup.operations.grounds import trouble_of
from cleanup.stores.sql import database_now
from cleanup.tasks import measure_area
from tests.retention import ANNA, Staging, fill_up

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("refusals_unlogged")]

LIST = "admin:cleanup_stagingarea_changelist"


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    made = Staging(tmp_path, "staged")
    made.fill(4)
    return made


def client_of(person: User) -> Client:
    client = Client()
    client.force_login(person)
    return client


def page_of(client: Client, name: str, *args: Any, **query: Any) -> str:
    reply = client.get(reverse(name, args=args), query)
    assert reply.status_code == 200, reply.status_code
    return str(reply.content.decode())


def do(person: User, verb: str, area: StagingArea, **answers: str) -> str:
    url = reverse("admin:cleanup_stagingarea_do", args=[verb])
    reply = client_of(person).post(url, {"ids": str(area.pk), **answers}, follow=True)
    return str(reply.content.decode())


def last_entry(action: str) -> AuditEntry:
    return AuditEntry.objects.filter(action=action).latest("seq")


def test_an_area_that_was_never_measured_says_so_and_then_what_it_holds(people, staging):
    client = client_of(people["viewer"])
    assert "not measured yet" in page_of(client, LIST)
    staging.policy("old")
    measure_area(str(staging.area.pk))
    for shown in (
        page_of(client, LIST), page_of(client, "admin:cleanup_stagingarea_change", staging.area.pk)
    ):  # fmt: skip
        assert "not measured yet" not in shown
        assert "28\u00a0B" in shown
    assert "eligible 4\u00a0files" in page_of(client, LIST)


def test_pages_sum_no_big_trash_and_walk_no_tree(people, staging, monkeypatch):
    staging.run(staging.policy("old"))
    monkeypatch.setattr(measuring, "SMALL", 1)
    AreaUsage.objects.update_or_create(
        area=staging.area,
        defaults={"trash_at": database_now(), "purges": {"2030-01-01": [1234, 5_000_000]}},
    )
    client = client_of(people["viewer"])
    for name, args in ((LIST, ()), ("admin:cleanup_stagingarea_change", (staging.area.pk,))):
        with CaptureQueriesContext(connection) as queries:
            shown = page_of(client, name, *args)
        assert "1,234" in shown
        assert not [
            one["sql"] for one in queries if "SUM(" in one["sql"] and "cleanup_cleanupitem" in one["sql"]
        ]


@pytest.mark.sqlite_only
def test_the_list_needs_no_more_queries_for_each_policy(people, staging):
    client = client_of(people["viewer"])
    page_of(client, LIST)
    with CaptureQueriesContext(connection) as few:
        page_of(client, LIST)
    for number in range(6):
        staging.policy(f"p{number}")
    with CaptureQueriesContext(connection) as many:
        assert "p5" in page_of(client, LIST)
    assert len(many) == len(few)


@pytest.mark.sqlite_only
def test_a_missing_marker_is_told_in_words_with_what_to_do(people, staging):
    (staging.root / ".staging-area").unlink()
    client = client_of(people["viewer"])
    assert "not usable" in page_of(client, LIST)
    shown = page_of(client, "admin:cleanup_stagingarea_change", staging.area.pk)
    assert "No run can start here" in shown
    assert "Mount its disk" in shown


@pytest.mark.sqlite_only
def test_each_trouble_has_its_own_remedy(staging):
    area = staging.area
    assert trouble_of(area) is None
    area.device = "1"
    assert (trouble := trouble_of(area)) is not None
    assert (trouble.code, "use Move" in trouble.remedy) == ("other_device", True)
    area.device, area.path = "", str(staging.root / "away")
    assert (trouble := trouble_of(area)) is not None
    assert trouble.code == "missing"
    assert "bring the directory back" in trouble.remedy


@pytest.mark.sqlite_only
def test_the_page_draws_the_last_week_and_says_it_in_words(people, staging):
    client, url = client_of(people["viewer"]), "admin:cleanup_stagingarea_change"
    assert "Nothing to draw yet" in page_of(client, url, staging.area.pk)
    fill_up(staging.area, rate=10**9)
    shown = page_of(client, url, staging.area.pk)
    assert "<polyline" in shown
    assert "Between 50 % and 56 % of the disk in the last 7 days" in shown


def test_an_area_is_switched_off_and_on_by_a_person(people, staging):
    assert "Disabled: staged." in do(people["operator"], "disable", staging.area)
    staging.area.refresh_from_db()
    assert not staging.area.enabled
    assert last_entry("area_disabled").actor == "operator"
    do(people["admin"], "enable", staging.area)
    staging.area.refresh_from_db()
    assert staging.area.enabled
    assert last_entry("area_enabled").actor == "admin"


@pytest.mark.sqlite_only
def test_two_people_approve_from_now_on(people, staging):
    do(people["admin"], "set_guard", staging.area, people="2")
    do(people["admin"], "set_guard", staging.area, people="2")
    staging.area.refresh_from_db()
    assert staging.area.protected
    assert AuditEntry.objects.filter(action="area_protected").count() == 1
    call_command("cleanup", "areas", "protect", "staged", "--off", "--json")
    staging.area.refresh_from_db()
    assert not staging.area.protected


@pytest.mark.sqlite_only
def test_a_copy_is_no_move_and_the_refusal_stands_on_the_form(people, staging, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    assert "marker" in do(people["admin"], "move", staging.area, path=str(other))
    staging.root.rename(tmp_path / "moved")
    assert "is " in do(people["admin"], "move", staging.area, path=str(tmp_path / "moved"))
    staging.area.refresh_from_db()
    assert staging.area.path == str(tmp_path / "moved")


def test_an_area_is_let_go_only_by_its_name_disabled_and_with_an_empty_trash(people, staging):
    boss, files = people["admin"], staging.files()
    assert "disable it first" in do(boss, "remove", staging.area, name="staged")
    operations.set_enabled(staging.area, False, ANNA)
    assert "not &#x27;other&#x27;" in do(boss, "remove", staging.area, name="other")
    assert "staged is let go" in do(boss, "remove", staging.area, name="staged")
    assert not StagingArea.objects.exists()
    assert staging.files() == files
    assert last_entry("area_removed").actor == "admin"


@pytest.mark.sqlite_only
def test_a_hold_says_what_it_keeps_right_now(people, staging):
    staging.run(staging.policy("old"))
    operations.hold(staging.area, "d1/**", None, "asked for", ANNA)
    client = client_of(people["viewer"])
    assert "1 in the trash, 0 staged" in page_of(client, "admin:cleanup_hold_changelist")
    hold = Hold.objects.get()
    assert "1 in the trash, 0 staged" in page_of(client, "admin:cleanup_hold_change", hold.pk)


@pytest.mark.sqlite_only
def test_holds_of_restores_are_shown_apart(people, staging):
    staging.run(staging.policy("old"))
    operations.restore(staging.items(), actor=ANNA)
    operations.hold(staging.area, "legal/**", None, "asked for", ANNA)
    client, name = client_of(people["viewer"]), "admin:cleanup_hold_changelist"
    people_s, restores = page_of(client, name), page_of(client, name, maker="restores")
    assert "legal/**" in people_s
    assert "4 restored files" not in people_s
    assert "legal/**" not in restores
    assert "4 restored files" in restores


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    ("pattern", "said"),
    [("d*/**", "4 in the trash"), ("nothing", "0 in the trash"), ("re:(", "cannot be compiled"), ("", "")],
)
def test_the_hint_counts_what_a_pattern_would_keep(people, staging, pattern, said):
    staging.run(staging.policy("old"))
    url, asked = reverse("admin:cleanup_hold_hint"), {"area": staging.area.pk, "pattern": pattern}
    reply = client_of(people["operator"]).get(url, asked)
    assert said in json.loads(reply.content)["text"]
    assert client_of(people["viewer"]).get(url, asked).status_code == 403
    wrong = client_of(people["operator"]).get(url, {**asked, "area": "٣"})
    assert json.loads(wrong.content) == {"text": ""}


@pytest.mark.sqlite_only
def test_a_hold_begins_with_the_path_that_a_link_names(people, staging):
    shown = page_of(
        client_of(people["operator"]), "admin:cleanup_hold_add", area=staging.area.pk, pattern="a/b"
    )
    assert 'value="a/b"' in shown
    assert "bus/console/hold.js" in shown
