"""The page of the verifiers, Test now and its command, and what runs leave in the history of canaries."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from cleanup import operations
from cleanup.engine.errors import VerifierFailed
from cleanup.models import AuditEntry, CleanupItem, VerifierCheck
from cleanup.operations.outcomes import NotFound, OperationRefused
from cleanup.operations.verifying import answers_of, failed_checks, last_checks, verifiers_in_use
from cleanup.verifiers.checks import key_of, note
from tests.chaos.liars import Liar, breaks_off, redis_questions
from tests.integration import console_rows as given
from tests.integration.test_verifiers_asking import CANARIES, Tasks, fill
from tests.retention import ANNA, Staging, later, write

pytestmark = pytest.mark.django_db

PAGE = "admin:cleanup_verifiercheck_changelist"
DO = "admin:cleanup_verifiercheck_do"


@pytest.fixture
def tasks(settings: Any) -> Iterator[Tasks]:
    with Liar(redis_questions) as server:
        settings.CLEANUP = {
            **settings.CLEANUP,
            "REDIS_URL": f"redis://127.0.0.1:{server.port}/0",
            "VERIFIER_TIMEOUT": timedelta(seconds=20),
            "VERIFIER_BATCH_TIMEOUT": timedelta(seconds=40),
        }
        yield Tasks(server)


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    return Staging(tmp_path)


def client_of(role: str) -> Client:
    client = Client()
    client.force_login(given.people()[role])
    return client


def said(name: str = CANARIES) -> list[tuple[bool, str]]:
    return [(check.sound, check.asked_by) for check in last_checks(name)]


# By hand


def test_right_canaries_are_sound_and_wrong_ones_are_not(staging: Staging, tasks: Tasks) -> None:
    staging.policy(verifiers=[CANARIES])
    tasks.states["alive"] = "Complete"
    check = operations.check_verifier(CANARIES, ANNA).check
    assert (check.sound, check.asked_by, check.verifier) == (True, "anna", CANARIES)
    assert check.detail == "2 canaries answered as they must"
    assert failed_checks() == []
    tasks.states.clear()
    check = operations.check_verifier(CANARIES, ANNA).check
    assert not check.sound
    assert "canary alive must pass, and it said fail: task:alive:status is absent" in check.detail
    assert failed_checks() == [check]
    tasks.states["alive"] = "Complete"
    operations.check_verifier(CANARIES, ANNA)
    assert failed_checks() == [], "the last check counts"


@pytest.mark.sqlite_only
def test_without_canaries_it_asks_about_what_does_not_exist(staging: Staging, tasks: Tasks) -> None:
    staging.policy(verifiers=["redis_task"])
    check = operations.check_verifier("redis_task", ANNA).check
    assert check.sound
    assert "without canaries more is not known" in check.detail
    assert len(tasks.asked) == 3
    assert tasks.asked[0].startswith("no-such-task-")


@pytest.mark.sqlite_only
def test_a_verifier_that_passes_what_does_not_exist_is_not_sound(staging: Staging, tasks: Tasks) -> None:
    class Everything(dict[str, str]):
        def get(self, key: str, default: Any = None) -> str:
            return "Complete"

    tasks.states = Everything()
    staging.policy(verifiers=["redis_task"])
    check = operations.check_verifier("redis_task", ANNA).check
    assert (check.sound, check.detail.startswith("it passes what does not exist: no-such-task-")) == (
        False,
        True,
    )


@pytest.mark.sqlite_only
@pytest.mark.parametrize("spec", ["redis_task", CANARIES])
def test_a_server_that_is_away_is_not_sound(staging: Staging, tasks: Tasks, spec: str) -> None:
    tasks.server.answer = breaks_off()
    staging.policy(verifiers=[spec])
    assert not operations.check_verifier(spec, ANNA).check.sound


@pytest.mark.sqlite_only
def test_a_file_and_a_task_can_be_asked_about(staging: Staging, tasks: Tasks) -> None:
    fill(staging, tasks, 1)
    staging.policy(verifiers=["redis_task"])
    path = str(staging.root / "task-0")
    assert operations.check_verifier("redis_task", ANNA, path=path).answer == (
        "pass: task:0:status = Complete"
    )
    told = operations.check_verifier("redis_task", ANNA, task_id="7").answer
    assert told == "fail: task:7:status is absent"
    with pytest.raises(OperationRefused, match="no area whose policy asks it"):
        operations.check_verifier("redis_task", ANNA, path="/etc/passwd")
    with pytest.raises(OperationRefused, match="No such file"):
        operations.check_verifier("redis_task", ANNA, path=f"{path}1")
    assert staging.files() == {"task-0"}


@pytest.mark.sqlite_only
def test_a_verifier_beside_the_file_is_tested_in_its_area(staging: Staging) -> None:
    staging.policy(verifiers=["sidecar"])
    assert operations.check_verifier("sidecar", ANNA).check.sound
    write(staging.root / "a.bin")
    write(staging.root / "a.done")
    answer = operations.check_verifier("sidecar", ANNA, path=str(staging.root / "a.bin")).answer
    assert answer == "pass: a.done is there"
    (staging.root / ".staging-area").unlink()
    check = operations.check_verifier("sidecar", ANNA).check
    assert (check.sound, "cannot be opened" in check.detail) == (False, True)


@pytest.mark.sqlite_only
def test_only_what_a_policy_asks_is_tested(staging: Staging) -> None:
    with pytest.raises(NotFound, match="no policy asks the verifier redis_task"):
        operations.check_verifier("redis_task", ANNA)


@pytest.mark.sqlite_only
def test_one_row_for_each_verifier_however_it_is_spelt(staging: Staging) -> None:
    staging.policy("one", verifiers=["redis_task:value=done"])
    staging.policy("two", verifiers=[{"kind": "redis_task", "value": "done"}, "sidecar"])
    found = {used.name: [policy.name for policy in used.policies] for used in verifiers_in_use()}
    assert found == {"redis_task:value=done": ["one", "two"], "sidecar": ["two"]}


# Of runs


def test_a_run_and_a_purge_leave_one_sound_check_each(staging: Staging, tasks: Tasks) -> None:
    fill(staging, tasks, 2)
    tasks.states["alive"] = "Complete"
    policy = staging.policy("nightly", verifiers=[CANARIES], grace_period=timedelta(0))
    operations.preview(policy)
    assert said() == [], "a preview writes nothing"
    staging.run(policy)
    assert said() == [(True, "policy nightly")]
    VerifierCheck.objects.update(at=timezone.now() - timedelta(hours=1))
    assert operations.purge_due(now=later(1)).purged == 2
    assert said() == [(True, "policy nightly")] * 2
    assert answers_of(verifiers_in_use()[0]) == {"pass": 6}


def test_a_run_that_its_canary_stops_leaves_the_reason(staging: Staging, tasks: Tasks) -> None:
    fill(staging, tasks, 1)
    run = staging.run(staging.policy("nightly", verifiers=[CANARIES]))
    assert run.state == "failed"
    (check,) = failed_checks()
    assert (check.sound, check.asked_by) == (False, "policy nightly")
    assert check.detail in run.message
    assert not CleanupItem.objects.filter(state="trashed").exists()


@pytest.mark.sqlite_only
def test_every_failure_is_kept_and_the_first_success_after_it(staging: Staging, tasks: Tasks) -> None:
    policy = staging.policy("nightly", verifiers=[CANARIES])
    for states in ({}, {}, {"alive": "Complete"}, {"alive": "Complete"}):
        tasks.states = dict(states)
        staging.fill(1)
        staging.run(policy)
    assert [sound for sound, _ in said()] == [True, False, False]


@pytest.mark.sqlite_only
def test_checks_are_forgotten_after_30_days() -> None:
    for days in (31, 29, 0):
        check = note("redis_task", sound=True, detail="", seconds=0.1, asked_by="anna")
        VerifierCheck.objects.filter(pk=check.pk).update(at=timezone.now() - timedelta(days=days))
    note("redis_task", sound=True, detail="", seconds=0.1, asked_by="anna")
    assert VerifierCheck.objects.count() == 3


@pytest.mark.sqlite_only
def test_two_long_names_that_begin_alike_are_told_apart() -> None:
    one, two = (f"redis_task:key={'x' * 600}{end}" for end in "ab")
    assert key_of(one) != key_of(two)
    assert len(key_of(one)) == 500


# The page and the command


@pytest.mark.sqlite_only
def test_the_page_says_what_to_do_when_there_is_none() -> None:
    assert "No policy asks a verifier" in client_of("viewer").get(reverse(PAGE)).content.decode()


def test_the_page_shows_each_verifier_with_its_policies_canaries_and_history(
    staging: Staging, tasks: Tasks
) -> None:
    staging.policy("nightly", verifiers=[CANARIES, "redis_task"])
    tasks.states["alive"] = "Complete"
    client = client_of("viewer")
    assert "never tested" in client.get(reverse(PAGE)).content.decode()
    operations.check_verifier(CANARIES, ANNA)
    tasks.states.clear()
    operations.check_verifier(CANARIES, ANNA)
    shown = client.get(reverse(PAGE)).content.decode()
    assert CANARIES in shown
    assert "nightly" in shown
    assert "1 of the last 2 checks were sound" in shown
    assert shown.count('class="x-t-good"') == shown.count('class="x-t-bad"') == 1
    assert "Without canaries nobody would notice" in shown
    assert "/do/test/" not in shown, "a viewer is not offered the test"


@pytest.mark.sqlite_only
def test_a_verifier_that_cannot_be_obeyed_is_shown_as_such(staging: Staging) -> None:
    policy = staging.policy("nightly")
    type(policy).objects.update(verifiers=["oracle:x=1"])
    client = client_of("admin")
    shown = client.get(reverse(PAGE)).content.decode()
    assert "unknown verifier &#x27;oracle&#x27;" in shown
    form = client.get(reverse(DO, args=["test"])).content.decode()
    assert "No policy asks a verifier yet" in form


def test_test_now_asks_and_tells_and_audits_nothing(staging: Staging, tasks: Tasks) -> None:
    staging.policy("nightly", verifiers=[CANARIES, "redis_task"])
    entries = AuditEntry.objects.count()
    client, url = client_of("operator"), reverse(DO, args=["test"])
    assert client.get(url).status_code == 200
    assert tasks.asked == []
    shown = client.post(url, {"verifier": "all"}, follow=True).content.decode()
    assert "NOT SOUND: redis_task:canary_present=alive" in shown
    assert "Sound: redis_task: " in shown
    assert AuditEntry.objects.count() == entries
    assert {check.asked_by for check in VerifierCheck.objects.all()} == {"operator"}
    shown = client.post(url, {"verifier": "redis_task", "task_id": "7"}, follow=True).content.decode()
    assert "About 7 it said fail: task:7:status is absent" in shown
    before = VerifierCheck.objects.count()
    shown = client.post(url, {"verifier": "all", "task_id": "7"}).content.decode()
    assert "choose it" in shown
    shown = client.post(url, {"verifier": "redis_task", "path": "/etc/passwd"}).content.decode()
    assert "no area whose policy asks it" in shown
    assert VerifierCheck.objects.count() == before


def run(*words: str) -> tuple[int, str]:
    out, code = StringIO(), 0
    try:
        call_command("cleanup", "verifiers", *words, stdout=out)
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    return code, out.getvalue()


@pytest.mark.sqlite_only
def test_the_command_says_the_same(staging: Staging, tasks: Tasks) -> None:
    assert run("list") == (
        0,
        "No policy asks a verifier. `cleanup policies verifiers` says whom it can ask.\n",
    )
    staging.policy("nightly", verifiers=[CANARIES, "sidecar"])
    tasks.states["alive"] = "Complete"
    code, text = run("test", "--all", "--json")
    assert (code, json.loads(text)["sound"]) == (0, True)
    assert [one["verifier"] for one in json.loads(text)["tests"]] == [CANARIES, "sidecar"]
    tasks.states.clear()
    code, text = run("test", CANARIES)
    assert (code, text.startswith("NOT SOUND: ")) == (1, True)
    listed = json.loads(run("list", "--json")[1])["verifiers"]
    assert [(one["verifier"], one["policies"], one["last_check"]["sound"]) for one in listed] == [
        (CANARIES, ["nightly"], False),
        ("sidecar", ["nightly"], True),
    ]
    assert "NOT SOUND" in run("list")[1]


@pytest.mark.sqlite_only
def test_one_that_cannot_be_obeyed_does_not_keep_the_others_from_being_tested(
    staging: Staging, tasks: Tasks
) -> None:
    policy = staging.policy("nightly")
    type(policy).objects.update(verifiers=["oracle", "redis_task"])
    code, text = run("test", "--all", "--json")
    assert code == 1
    assert [(one["verifier"], one["sound"]) for one in json.loads(text)["tests"]] == [
        ("oracle", None),
        ("redis_task", True),
    ]
    shown = client_of("operator").post(reverse(DO, args=["test"]), {"verifier": "all"}, follow=True)
    assert "oracle was not tested: unknown verifier" in shown.content.decode()


@pytest.mark.sqlite_only
def test_explaining_a_path_leaves_no_check(staging: Staging, tasks: Tasks) -> None:
    fill(staging, tasks, 1)
    policy = staging.policy(verifiers=[CANARIES])
    operations.explain(str(staging.root / "task-0"))
    with pytest.raises(VerifierFailed):
        operations.preview(policy)
    assert not VerifierCheck.objects.exists()
