"""Policies, previews and versions in the console: the form as it stands, what the page says, who may what."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection, connections
from django.test import AsyncClient, Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from cleanup import operations
from cleanup.models import CleanupRun, JobState, PolicyPreview, RetentionPolicy
from cleanup.operations import previews
from cleanup.operations.tables import HEADER
from cleanup.stores.sql import database_now
from tests.integration import console_rows as given
from tests.retention import ANNA, DAY, Staging, write

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("refusals_unlogged")]

FORM = {
    "name": "fresh", "mode": "report", "rule": "age", "age": "2d", "age_by": "m", "include": "",
    "exclude": "", "verifiers": "", "task_id_pattern": "", "grace_period": "5d", "floor": "",
    "schedule": "6h", "catch_up": "once", "unit": "file", "order_by": "age", "stamp_field": "created_at",
    "row_filter": "{}", "max_files": "100", "max_bytes": "2 GB", "max_percent": "100",
    "max_median_factor": "10", "max_unknown_percent": "5",
}  # fmt: skip


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    staging = Staging(tmp_path)
    staging.fill(4)
    return staging


def client_of(person: User) -> Client:
    client = Client()
    client.force_login(person)
    return client


@pytest.fixture
def boss(people: dict[str, User]) -> Client:
    return client_of(people["admin"])


def page(preview: PolicyPreview, name: str = "change") -> str:
    return reverse(f"admin:cleanup_policypreview_{name}", args=[preview.pk])


def shown(client: Client, url: str) -> str:
    reply = client.get(url)
    assert reply.status_code == 200, reply.status_code
    return reply.content.decode()


def looked_at(policy: RetentionPolicy, **options: Any) -> PolicyPreview:
    made = previews.order_preview(policy, ANNA, **options)
    previews.carry_out_preview(made.pk)
    return previews.find_preview(made.pk)


def do(client: Client, model: str, name: str, key: Any, **answers: str) -> Any:
    return client.post(
        reverse(f"admin:cleanup_{model}_do", args=[name]), {"ids": str(key), **answers}, follow=True
    )


# The form


def test_preview_on_the_form_of_a_new_policy_saves_nothing_and_leads_to_the_preview(
    boss: Client, staging: Staging
) -> None:
    data = {**FORM, "area": staging.area.pk, "_preview": "1"}
    reply = boss.post(reverse("admin:cleanup_retentionpolicy_add"), data)
    made = PolicyPreview.objects.get()
    assert (reply.status_code, reply["Location"]) == (302, page(made))
    assert (made.name, made.actor, made.state, made.policy) == ("fresh", "admin", "queued", None)
    assert not RetentionPolicy.objects.exists()
    assert "Waits for a worker" in shown(boss, page(made))
    previews.carry_out_preview(made.pk)
    assert "4\u00a0files, 28\u00a0B</strong> would go to the trash" in shown(boss, page(made))


def test_preview_on_the_form_refuses_what_saving_would_refuse(boss: Client, staging: Staging) -> None:
    data = {**FORM, "area": staging.area.pk, "age": "soon", "_preview": "1"}
    reply = boss.post(reverse("admin:cleanup_retentionpolicy_add"), data)
    assert "is not understood" in reply.content.decode()
    assert not PolicyPreview.objects.exists()


def test_preview_of_an_edit_names_what_differs_and_save_this_version_saves_it(
    boss: Client, staging: Staging
) -> None:
    policy = staging.policy("old", age="10d")
    url = reverse("admin:cleanup_retentionpolicy_change", args=[policy.pk])
    boss.post(url, {**FORM, "name": "old", "area": staging.area.pk, "_preview": "1"})
    made = PolicyPreview.objects.get()
    previews.carry_out_preview(made.pk)
    text = shown(boss, page(made))
    assert "+4\u00a0files, +28\u00a0B against the saved version." in text
    assert "<b>age</b> 10d → 2d" in text
    assert "Save this version" in text
    assert "Run now" not in text
    policy.refresh_from_db()
    assert policy.age == "10d"
    assert "old is saved: version 2" in do(boss, "policypreview", "save_version", made.pk).content.decode()
    policy.refresh_from_db()
    assert (policy.age, policy.mode) == ("2d", "report")
    assert policy.versions.latest("number").created_by == "admin"


def test_the_form_says_in_words_what_it_would_do_and_what_is_wrong(boss: Client, staging: Staging) -> None:
    url, data = reverse("admin:cleanup_retentionpolicy_words"), {**FORM, "area": staging.area.pk}
    said = boss.post(url, {**data, "exclude": "*.tmp", "verifiers": "redis_task"}).json()
    assert said["words"].startswith(
        "Every 6h, files in area older than 2d but not *.tmp go to the trash if redis_task says so. "
        "They can be restored for 5d; after that they are purged."
    )
    assert said["problem"] == ""
    assert "is not understood" in boss.post(url, {**data, "age": "soon"}).json()["problem"]
    assert boss.get(url).status_code == 405
    assert not RetentionPolicy.objects.exists()


@pytest.mark.parametrize("rule", ["expires_at", "orphan", "watermark", "keep_newest", "rows"])
def test_every_rule_has_words(boss: Client, staging: Staging, rule: str) -> None:
    data = {**FORM, "area": staging.area.pk, "rule": rule, "keep": "3", "model": "cleanup.StagedFile"}
    assert "purged" in boss.post(reverse("admin:cleanup_retentionpolicy_words"), data).json()["words"]


# The page of a preview


@pytest.fixture
def preview(staging: Staging) -> PolicyPreview:
    write(staging.root / "=1+1", age=9 * DAY)
    write(staging.root / "two\nlines", age=9 * DAY)
    (staging.root / "young").write_text("x")
    return looked_at(staging.policy("old", mode="report"))


def test_tabs_reasons_and_prefixes_choose_the_files(boss: Client, preview: PolicyPreview) -> None:
    url = page(preview)
    assert "Nothing is deleted by this page" in shown(boss, url)
    kept = shown(boss, f"{url}?tab=stays&reason=younger_than_age")
    assert ">young<" in kept
    assert "d0/f0" not in kept
    narrow = shown(boss, f"{url}?tab=goes&prefix=d1/")
    assert "d1/f1" in narrow
    assert "d0/f0" not in narrow
    assert "No file of this tab fits" in shown(boss, f"{url}?prefix=nowhere")
    assert "Every file could be judged" in shown(boss, f"{url}?tab=doubt")


@pytest.mark.parametrize(
    "query", ["tab=../x", "after=9.9", "after=x", "reason=held", "prefix=%00", "after=99999999999.1"]
)
def test_nonsense_in_the_address_harms_nothing(boss: Client, preview: PolicyPreview, query: str) -> None:
    shown(boss, f"{page(preview)}?{query}")


def test_a_long_tab_is_read_page_by_page_and_every_file_comes_once(boss: Client, staging: Staging) -> None:
    staging.fill(450)
    url, seen = page(looked_at(staging.policy())), list[str]()
    query = ""
    while True:
        context = boss.get(f"{url}{query}").context
        seen += [line[0] for line in context["listing"]]
        if not context["next_url"]:
            break
        query = context["next_url"].removesuffix("#files")
    assert len(seen) == len(set(seen)) == 450


def table_of(text: str) -> dict[str, dict[str, str]]:
    rows = list(csv.DictReader(io.StringIO(text)))
    assert tuple(rows[0]) == HEADER
    return {row["path"]: row for row in rows}


def test_the_csv_has_every_file_and_no_formula(boss: Client, preview: PolicyPreview) -> None:
    reply = boss.get(page(preview, "files"))
    assert "attachment" in reply["Content-Disposition"]
    rows = table_of(reply.getvalue().decode())
    assert set(rows) == {"'=1+1", r"two\x0alines", "young", *(f"d{n}/f{n}" for n in range(4))}
    assert rows["d0/f0"]["bytes"] == "7"
    assert rows["d0/f0"]["why"] == "older than 2d"
    assert rows["young"]["verdict"] == "kept"
    assert rows["'=1+1"]["changed"].endswith("+00:00")


@pytest.mark.django_db(transaction=True)
async def test_the_csv_is_streamed_by_an_asynchronous_server_too(tmp_path: Path) -> None:
    from asgiref.sync import sync_to_async

    def prepare() -> tuple[User, PolicyPreview]:
        staging = Staging(tmp_path)
        staging.fill(3)
        return given.people()["viewer"], looked_at(staging.policy())

    person, made = await sync_to_async(prepare)()
    client = AsyncClient()
    await client.aforce_login(person)
    reply = await client.get(page(made, "files"))
    assert reply.is_async
    text = b"".join([part async for part in reply]).decode()
    await sync_to_async(connections.close_all)()
    assert len(table_of(text)) == 3


def test_run_now_asks_with_the_number_of_files(boss: Client, staging: Staging) -> None:
    made = looked_at(staging.policy())
    url = reverse("admin:cleanup_policypreview_do", args=["run_now"])
    assert "4\u00a0files, 28\u00a0B" in shown(boss, f"{url}?ids={made.pk}")
    assert not CleanupRun.objects.exists()
    assert "Queued:" in do(boss, "policypreview", "run_now", made.pk).content.decode()
    assert CleanupRun.objects.get().actor == "admin"


def test_a_preview_that_no_worker_takes_says_so(boss: Client, staging: Staging) -> None:
    made = previews.order_preview(staging.policy(), ANNA)
    assert boss.get(page(made, "state")).json() == {"state": "queued", "late": False}
    PolicyPreview.objects.update(created_at=database_now() - DAY / 24)
    assert boss.get(page(made, "state")).json() == {"state": "queued", "late": True}
    assert "No worker has taken it up yet" in shown(boss, page(made))
    do(boss, "policypreview", "cancel", made.pk)
    assert previews.find_preview(made.pk).state == JobState.STOPPED
    assert "stopped on request" in shown(boss, page(made))


def test_a_viewer_looks_and_orders_nothing(people: dict[str, User], preview: PolicyPreview) -> None:
    viewer, before = client_of(people["viewer"]), given.rows()
    assert "Run now" not in shown(viewer, page(preview))
    policy = preview.policy_id
    urls = [
        reverse("admin:cleanup_retentionpolicy_do", args=["preview"]),
        reverse("admin:cleanup_policypreview_do", args=["run_now"]),
    ]
    for url, key in zip(urls, (policy, preview.pk), strict=True):
        assert viewer.post(url, {"ids": str(key)}).status_code == 403
    change = reverse("admin:cleanup_retentionpolicy_change", args=[policy])
    assert viewer.post(change, {**FORM, "_preview": "1"}).status_code == 403
    assert given.rows() == before


def test_an_operator_previews_what_is_saved(people: dict[str, User], staging: Staging) -> None:
    policy = staging.policy()
    reply = do(client_of(people["operator"]), "retentionpolicy", "preview", policy.pk)
    made = PolicyPreview.objects.get()
    assert reply.redirect_chain[-1][0] == page(made)
    assert (made.draft, made.version, made.actor) == (None, 1, "operator")


# Versions


def test_versions_are_listed_with_what_changed_and_an_old_one_is_put_back(
    boss: Client, staging: Staging
) -> None:
    policy = staging.policy("old")
    policy.age = "3d"
    operations.save_policy(policy, ANNA)
    text = shown(boss, reverse("admin:cleanup_policyversion_changelist") + f"?policy__id__exact={policy.pk}")
    assert "<b>age</b> 2d → 3d" in text
    first = policy.versions.get(number=1)
    assert "3d → 2d" not in shown(boss, reverse("admin:cleanup_policyversion_change", args=[first.pk]))
    do(boss, "policyversion", "preview", first.pk)
    made = PolicyPreview.objects.get()
    assert (made.of_version, made.draft["age"]) == (1, "2d")
    said = do(boss, "policyversion", "put_back", first.pk).content.decode()
    assert "it is version 3" in said
    policy.refresh_from_db()
    assert policy.age == "2d"


def test_the_list_asks_as_often_for_many_policies_as_for_one(boss: Client, staging: Staging) -> None:
    address = reverse("admin:cleanup_retentionpolicy_changelist")

    def asked() -> int:
        with CaptureQueriesContext(connection) as queries:
            text = shown(boss, address)
        assert text.count("1, by ") == RetentionPolicy.objects.count()
        return len(queries)

    staging.policy("first")
    asked()
    once = asked()
    for number in range(5):
        staging.policy(f"more-{number}")
    assert asked() == once
