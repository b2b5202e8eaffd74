"""Every change of the console asks first: GET changes nothing, POST needs a CSRF token and the permission."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django_celery_beat.models import PeriodicTask

from bus.console import Change, ConsoleAdmin
from bus.models import ActiveConnection, ApiKey
from cleanup.models import AuditEntry, CleanupItem, CleanupRun, Hold, RetentionPolicy
from tests.integration import console_rows as given
from tests.retention import Staging
from xnai_site.roles import ROLES, changes

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("refusals_unlogged")]

#: What the forms of changes ask for.
ANSWERS = {"reason": "because", "number": "3", "by": "7d", "mode": "report"}


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    return given.everything(tmp_path)


def client_of(person: User, **options: Any) -> Client:
    client = Client(**options)
    client.force_login(person)
    return client


def address(page: ConsoleAdmin, change: Change) -> str:
    base = reverse(f"admin:{page.opts.app_label}_{page.opts.model_name}_do", args=[change.name])
    return base if not change.rows else f"{base}?ids={first(page)}"


def first(page: ConsoleAdmin) -> Any:
    model = page.model
    if model is CleanupRun:
        return CleanupRun.objects.get(state="awaiting_approval").pk
    return model.objects.order_by("pk").values_list("pk", flat=True)[0]


def every_change() -> Iterator[tuple[ConsoleAdmin, Change]]:
    found = list(changes())
    assert len(found) >= 14, "the walk has lost sight of the pages"
    yield from found


def test_get_of_every_change_shows_a_page_and_changes_nothing(people, staging):
    before = given.rows()
    client = client_of(people["admin"])
    for page, change in every_change():
        reply = client.get(address(page, change))
        assert reply.status_code == 200, (page, change.name)
        assert change.explain in reply.content.decode().replace("&#x27;", "'"), change.name
    assert given.rows() == before


def test_post_without_csrf_token_is_refused(people, staging):
    before = given.rows()
    client = client_of(people["admin"], enforce_csrf_checks=True)
    for page, change in every_change():
        assert client.post(address(page, change), ANSWERS).status_code == 403, (page, change.name)
    assert given.rows() == before


def test_post_without_the_permission_is_refused(people, staging):
    before = given.rows()
    for name, person in people.items():
        rank = ROLES.index(name) if name in ROLES else -1
        client = client_of(person)
        for page, change in every_change():
            if ROLES.index(change.role) > rank:
                for reply in (client.get(address(page, change)), client.post(address(page, change), ANSWERS)):
                    assert reply.status_code == 403, (name, page, change.name)
    assert given.rows() == before


def test_post_without_the_answers_changes_nothing(people, staging):
    """Forms that ask for a reason, a number or a length refuse an empty answer."""
    before = given.rows()
    client = client_of(people["admin"])
    for page, change in every_change():
        if any(field.required for field in change.form(rows=None).fields.values()):
            reply = client.post(address(page, change), {})
            assert reply.status_code == 200, change.name
            assert "This field is required" in reply.content.decode()
    assert given.rows() == before


def test_actions_of_lists_only_lead_to_the_page_that_asks(people, staging):
    before = given.rows()
    client = client_of(people["admin"])
    for page, change in every_change():
        if not change.bulk:
            continue
        listing = reverse(f"admin:{page.opts.app_label}_{page.opts.model_name}_changelist")
        reply = client.post(listing, {"action": change.name, "_selected_action": [str(first(page))]})
        assert reply.status_code == 302, (page, change.name)
        assert f"/do/{change.name}/?ids=" in reply["Location"]
    assert given.rows() == before


def test_no_page_offers_an_action_beside_the_changes(people, staging, rf):
    request = rf.get("/admin/")
    request.user = User.objects.create_superuser("root")
    for page in admin.site._registry.values():
        assert isinstance(page, ConsoleAdmin), f"{page} is not a page of the console"
        assert not page.actions_row
        assert not page.actions_detail
        assert not page.actions_list
        assert set(page.get_actions(request)) == {entry.name for entry in page.changes.values() if entry.bulk}


def test_the_page_that_asks_names_the_rows_with_their_bytes(people, staging):
    ids = ",".join(str(pk) for pk in CleanupItem.objects.values_list("pk", flat=True))
    base = reverse("admin:cleanup_cleanupitem_do", args=["purge_now"])
    shown = client_of(people["operator"]).get(f"{base}?ids={ids}").content.decode()
    assert "4\u00a0files, 28\u00a0B" in shown
    assert all(item.path in shown for item in CleanupItem.objects.all())


def test_rows_that_are_gone_meanwhile_lead_back_to_the_list_with_a_word(people, staging):
    before = given.rows()
    base = reverse("admin:cleanup_cleanupitem_do", args=["restore"])
    gone = {"ids": "00000000-0000-0000-0000-000000000000"}
    for method in ("get", "post"):
        reply = getattr(client_of(people["operator"]), method)(base, gone, follow=True)
        assert reply.redirect_chain[-1][0] == reverse("admin:cleanup_cleanupitem_changelist")
        assert "the chosen rows are gone meanwhile" in reply.content.decode()
    assert given.rows() == before


@pytest.mark.parametrize("ids", ["", "nonsense", "1" * 4000])
def test_rows_that_are_not_there_are_404(people, staging, ids):
    base = reverse("admin:cleanup_cleanupitem_do", args=["restore"])
    assert client_of(people["operator"]).get(base, {"ids": ids}).status_code == 404


def test_back_leads_to_no_other_site(people, staging):
    target = address(*next(pair for pair in changes() if pair[1].name == "release"))
    reply = client_of(people["operator"]).post(f"{target}&next=https://elsewhere.example/")
    assert reply.status_code == 302
    assert reply["Location"] == reverse("admin:cleanup_hold_changelist")


def do(person: User, name: str, model: str, ids: list[Any] | None = None, **answers: str) -> Any:
    base = reverse(f"admin:{model}_do", args=[name])
    given_ids = "" if ids is None else ",".join(str(pk) for pk in ids)
    return client_of(person).post(base, {"ids": given_ids, **answers}, follow=True)


def audited(action: str) -> AuditEntry:
    return AuditEntry.objects.filter(action=action).latest("seq")


def test_restore_brings_the_files_back_and_names_the_person(people, staging):
    one = CleanupItem.objects.filter(state="trashed").exclude(path__in=staging.files()).first()
    if one is None:  # the names were taken again by younger files: free one
        one = CleanupItem.objects.filter(state="trashed").first()
        (staging.root / one.path).unlink()
    reply = do(people["operator"], "restore", "cleanup_cleanupitem", [one.pk])
    assert "Restored 1\u00a0file, 7\u00a0B." in reply.content.decode()
    one.refresh_from_db()
    assert one.state == "restored"
    assert (staging.root / one.path).read_text() == "content"
    assert audited("restored").actor == "operator"


def test_restore_never_overwrites_and_says_which_name_is_taken(people, staging):
    taken = CleanupItem.objects.filter(state="trashed", path__in=staging.files()).first()
    (staging.root / taken.path).write_text("younger")
    reply = do(people["operator"], "restore", "cleanup_cleanupitem", [taken.pk])
    assert f"the name is taken: {taken.path}" in reply.content.decode()
    assert (staging.root / taken.path).read_text() == "younger"


def test_extend_grace_moves_the_purge_away(people, staging):
    one = CleanupItem.objects.filter(state="trashed").first()
    reply = do(people["operator"], "extend", "cleanup_cleanupitem", [one.pk], by="7d")
    assert "1 file stays 7 d longer" in reply.content.decode()
    promised = one.purge_after
    one.refresh_from_db()
    assert (one.purge_after - promised).days == 7


def test_extend_grace_refuses_nonsense(people, staging):
    one = CleanupItem.objects.filter(state="trashed").first()
    shown = do(people["operator"], "extend", "cleanup_cleanupitem", [one.pk], by="a while").content.decode()
    assert "is not understood" in shown


def test_purge_now_frees_the_space_for_the_reason_given(people, staging):
    ids = staging.items()
    reply = do(people["operator"], "purge_now", "cleanup_cleanupitem", ids, reason="disk is full")
    assert "Purged 4\u00a0files, 28\u00a0B." in reply.content.decode()
    assert staging.in_trash() == 0
    assert audited("purged").actor == "operator"


def test_approve_wants_the_very_number_of_files(people, staging):
    run = CleanupRun.objects.get(state="awaiting_approval")
    refused = do(people["operator"], "approve", "cleanup_cleanuprun", [run.pk], number="2")
    assert "the plan has 3 files, not 2" in refused.content.decode()
    run.refresh_from_db()
    assert run.state == "awaiting_approval"
    do(people["operator"], "approve", "cleanup_cleanuprun", [run.pk], number="3")
    run.refresh_from_db()
    assert run.state == "approved"
    assert run.approvals[0]["actor"] == "operator"


def test_reject_leaves_every_file(people, staging):
    files, run = staging.files(), CleanupRun.objects.get(state="awaiting_approval")
    do(people["operator"], "reject", "cleanup_cleanuprun", [run.pk], reason="too many")
    run.refresh_from_db()
    assert (run.state, staging.files()) == ("rejected", files)


def test_stop_ends_a_run_that_waits(people, staging):
    run = CleanupRun.objects.get(state="awaiting_approval")
    do(people["operator"], "stop", "cleanup_cleanuprun", [run.pk])
    run.refresh_from_db()
    assert run.state == "stopped"


def test_run_now_queues_a_run_of_the_person(people, staging):
    CleanupRun.objects.filter(state="awaiting_approval").update(state="rejected")
    policy = RetentionPolicy.objects.get()
    do(people["operator"], "run_now", "cleanup_retentionpolicy", [policy.pk], dry_run="on")
    run = CleanupRun.objects.latest("created_at")
    assert (run.state, run.actor, run.dry_run) == ("queued", "operator", True)


def test_run_now_says_that_the_area_is_busy(people, staging):
    reply = do(people["operator"], "run_now", "cleanup_retentionpolicy", [RetentionPolicy.objects.get().pk])
    assert "has an active run" in reply.content.decode()


def test_watermarks_are_set_and_refused_with_the_low_one_above_the_high_one(people, staging):
    area = [staging.area.pk]
    do(people["admin"], "set_marks", "cleanup_stagingarea", area, high="70", low="55")
    reply = do(people["admin"], "set_marks", "cleanup_stagingarea", area, high="50", low="60")
    assert "the low one below the high one" in reply.content.decode()
    staging.area.refresh_from_db()
    assert (staging.area.high_watermark, staging.area.low_watermark) == (70, 55)
    assert audited("watermarks_set").actor == "admin"


def test_set_mode_makes_a_new_version(people, staging):
    policy = RetentionPolicy.objects.get()
    do(people["admin"], "set_mode", "cleanup_retentionpolicy", [policy.pk], mode="off")
    policy.refresh_from_db()
    assert policy.mode == "off"
    assert policy.versions.latest("number").created_by == "admin"


def test_release_ends_a_hold(people, staging):
    hold = Hold.objects.get()
    do(people["operator"], "release", "cleanup_hold", [hold.pk])
    hold.refresh_from_db()
    assert hold.released_at is not None


def test_verify_says_that_the_audit_is_sound(people, staging):
    shown = do(people["viewer"], "verify", "cleanup_auditentry").content.decode()
    assert f"Sound: {AuditEntry.objects.count()} entries" in shown


def test_revoke_makes_a_key_useless(people, staging):
    do(people["admin"], "revoke", "bus_apikey", [ApiKey.objects.get().pk])
    assert given.revoked("importer")


def test_periodic_task_is_switched_off_and_on(people, staging):
    task = PeriodicTask.objects.get()
    for name, enabled in (("disable", False), ("enable", True)):
        do(people["admin"], name, "django_celery_beat_periodictask", [task.pk])
        task.refresh_from_db()
        assert task.enabled is enabled


def test_run_now_of_a_periodic_task_reaches_the_broker(people, staging):
    from django.conf import settings
    from redis import Redis

    do(people["operator"], "run_now", "django_celery_beat_periodictask", [PeriodicTask.objects.get().pk])
    with Redis.from_url(settings.CELERY_BROKER_URL) as broker:
        sent = [message for message in broker.lrange("celery", 0, -1) if b"cleanup.tasks.tick" in message]
        broker.delete("celery")
    assert sent


@pytest.mark.django_db(transaction=True)
def test_disconnect_tells_the_server_to_close_with_the_reason(bus_process):
    person = given.people()["operator"]
    row = given.connection()
    reply = do(person, "disconnect", "bus_activeconnection", [row.pk], reason="out of hand")
    assert "Told to close: crawler" in reply.content.decode()
    row = ActiveConnection.objects.filter(pk=row.pk).first()
    assert row is not None
    assert row.close_code == 3503
    assert row.close_reason == "out of hand"
