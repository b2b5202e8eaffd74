"""How verifiers are asked: canaries, counters, what the registry knows, pauses, and what is written down."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command

from cleanup import operations, verifiers
from cleanup.conf import problems
from cleanup.engine.errors import VerifierFailed
from cleanup.engine.verify import Subject
from cleanup.models import AuditEntry, CleanupItem, PolicyVersion, StagedFile, VerifierTotal
from cleanup.operations.purging import count_due, has_due
from cleanup.verifiers import KINDS, asking, with_registry
from tests.chaos.doubts import bulk
from tests.chaos.liars import Liar, Turn, breaks_off, redis_questions
from tests.retention import ANNA, DAY, Staging, later, write

pytestmark = pytest.mark.django_db

HOUR = timedelta(hours=1)


class Tasks:
    """A server that knows the states of tasks, as Redis would: by key, and what is not set is absent."""

    def __init__(self, server: Liar) -> None:
        self.server, self.states = server, dict[str, str]()
        #: The tasks that it was asked about, in order.
        self.asked: list[str] = []
        #: Told of every question before it is answered.
        self.on_question: Callable[[Sequence[str]], None] = lambda tasks: None
        server.answer = self.answer

    def answer(self, turn: Turn) -> bool:
        words = turn.question.decode().split("\r\n")
        tasks = [word.split(":")[1] for word in words if word.startswith("task:")]
        self.on_question(tasks)
        self.asked += tasks
        found = [self.states.get(task) for task in tasks]
        parts = [b"$-1\r\n" if one is None else bulk(one.encode()).partition(b"\r\n")[2] for one in found]
        return turn.say(b"*%d\r\n" % len(parts) + b"".join(parts))


@pytest.fixture
def tasks(settings: Any) -> Any:
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


def fill(staging: Staging, tasks: Tasks, count: int) -> None:
    for number in range(count):
        write(staging.root / f"task-{number}")
        tasks.states[str(number)] = "Complete"


CANARIES = "redis_task:canary_present=alive,canary_absent=never"


# Canaries


def test_canaries_are_asked_before_and_after_the_plan_the_move_and_the_purge(
    staging: Staging, tasks: Tasks
) -> None:
    fill(staging, tasks, 1)
    tasks.states["alive"] = "Complete"
    run = staging.run(staging.policy(verifiers=[CANARIES], grace_period=timedelta(0)))
    assert (run.state, run.trashed) == ("done", 1), run.message
    pass_over = ["alive", "never", "0", "alive", "never"]
    assert tasks.asked == pass_over * 2
    assert operations.purge_due(now=later(1)).purged == 1
    assert tasks.asked == pass_over * 3


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    ("states", "canary"),
    [
        ({}, "alive"),
        ({"alive": "Running"}, "alive"),
        ({"alive": "Complete", "never": "Complete"}, "never"),
    ],
)
def test_a_canary_that_answers_wrongly_stops_the_run_before_anything_is_planned(
    staging: Staging, tasks: Tasks, states: dict[str, str], canary: str
) -> None:
    fill(staging, tasks, 2)
    tasks.states |= states
    run = staging.run(staging.policy(verifiers=[CANARIES]))
    assert (run.state, run.trashed, run.planned_files) == ("failed", 0, 0)
    assert f"its canary {canary} must" in run.message
    assert len(staging.files()) == 2
    with pytest.raises(VerifierFailed, match="cannot be trusted"):
        operations.preview(staging.area.policies.get())


@pytest.mark.sqlite_only
def test_a_canary_that_dies_while_files_are_moved_stops_the_run_and_what_was_moved_can_be_restored(
    staging: Staging, tasks: Tasks
) -> None:
    fill(staging, tasks, 2)
    tasks.states["alive"] = "Complete"
    run = staging.run(staging.policy(verifiers=[CANARIES], max_files=1))
    operations.approve(run, files=2, actor=ANNA)
    tasks.asked.clear()

    def empty_after_the_files(asked: Sequence[str]) -> None:
        if "alive" in asked and "0" in tasks.asked:
            tasks.states.clear()

    tasks.on_question = empty_after_the_files
    run = operations.execute(run.pk)
    assert (run.state, run.trashed) == ("failed", 2)
    assert "canary alive must pass" in run.message
    assert operations.restore(staging.items(), actor=ANNA).restored == 2


def test_a_canary_that_answers_wrongly_keeps_everything_in_the_trash(staging: Staging, tasks: Tasks) -> None:
    fill(staging, tasks, 3)
    tasks.states["alive"] = "Complete"
    staging.run(staging.policy(verifiers=[CANARIES], grace_period=timedelta(0)))

    def empty_after_the_files(asked: Sequence[str]) -> None:
        if "0" in tasks.asked and "alive" in asked:
            tasks.states.clear()

    tasks.asked.clear()
    tasks.on_question = empty_after_the_files
    report = operations.purge_due(now=later(1))
    assert (report.purged, report.kept) == (0, {"unverified": 3})
    assert ["cannot be trusted" in error for error in report.errors] == [True]
    assert operations.purge_now(staging.items(), reason="now", actor=ANNA).purged == 0
    assert staging.in_trash() == 3


@pytest.mark.sqlite_only
def test_an_error_in_between_is_not_hidden_by_the_second_look_at_the_canaries(tasks: Tasks) -> None:
    tasks.states["alive"] = "Complete"

    def fail() -> None:
        with asking([CANARIES]):
            tasks.states.clear()
            raise KeyError

    with pytest.raises(KeyError):
        fail()


# A server that is down


@pytest.mark.sqlite_only
def test_a_verifier_that_fails_batch_after_batch_is_not_asked_any_more(tasks: Tasks) -> None:
    tasks.server.answer = breaks_off()
    with asking(["redis_task"]) as ask:
        for _ in range(6):
            (checked,) = ask([Subject(path="a", task_id="1")])
            assert checked.answer == "unknown"
        assert "given up" in checked.evidence["redis_task"]
    assert tasks.server.asked == 3


# Counters


def test_answers_are_counted_by_policy_and_kind_and_a_preview_counts_nothing(
    staging: Staging, tasks: Tasks
) -> None:
    fill(staging, tasks, 3)
    tasks.states["2"] = "Running"
    policy = staging.policy("nightly", verifiers=["redis_task"])
    operations.preview(policy)
    assert not VerifierTotal.objects.exists()
    staging.run(policy)
    counts = {(row.verifier, row.answer): row.count for row in VerifierTotal.objects.all()}
    # Three for the plan, and two again before the move.
    assert counts == {("nightly/redis_task", "pass"): 4, ("nightly/redis_task", "fail"): 1}


def test_counting_costs_a_statement_for_each_answer_of_a_batch(
    tasks: Tasks, django_assert_max_num_queries: Any
) -> None:
    subjects = [Subject(path=f"f{n}", task_id=str(n)) for n in range(600)]
    tasks.states = {str(n): "Complete" for n in range(300)}
    with asking(["redis_task"], policy="p") as ask:
        ask(subjects)
        with django_assert_max_num_queries(2):
            ask(subjects)
    assert VerifierTotal.objects.get(answer="fail").count == 600


# The registry


def test_the_path_names_the_task_before_the_registry_does(staging: Staging) -> None:
    uuid = str(staging.area.uuid)
    StagedFile.objects.create(area=staging.area, path="a", task_id="r", sha256="f" * 64)
    (named, asked, other) = with_registry(
        [
            Subject(path="a", task_id="p", area=uuid),
            Subject(path="a", area=uuid),
            Subject(path="a", area="elsewhere"),
        ],
        digests=True,
    )
    assert (named.task_id, named.sha256) == ("p", "f" * 64)
    assert (asked.task_id, other.task_id) == ("r", None)


def test_of_a_trashed_file_the_row_counts_that_was_alive_then(staging: Staging) -> None:
    uuid, now = str(staging.area.uuid), datetime.now(UTC)
    for task, made, deleted in [("old", 9, 5), ("trashed", 4, 2), ("new", 1, None)]:
        row = StagedFile.objects.create(area=staging.area, path="a", task_id=task)
        StagedFile.all_objects.filter(pk=row.pk).update(
            created_at=now - made * DAY, deleted_at=deleted and now - deleted * DAY
        )

    def task_of(trashed_at: datetime | None) -> str | None:
        return with_registry([Subject(path="a", area=uuid, trashed_at=trashed_at)])[0].task_id

    assert task_of(None) == "new"
    assert task_of(now - 2 * DAY) == "trashed"
    assert task_of(now - 6 * DAY) == "old"
    assert task_of(now - 20 * DAY) is None


def test_a_file_of_the_registry_is_purged_although_its_row_went_to_the_trash_with_it(
    staging: Staging, tasks: Tasks
) -> None:
    write(staging.root / "a.bin")
    StagedFile.objects.create(area=staging.area, path="a.bin", task_id="77")
    tasks.states["77"] = "Complete"
    run = staging.run(staging.policy(verifiers=["redis_task"], grace_period=timedelta(0)))
    assert run.trashed == 1
    assert operations.purge_due(now=later(1)).purged == 1


# What is written down


def test_the_audit_holds_what_verifiers_said_at_the_trash_and_at_the_purge(
    staging: Staging, tasks: Tasks
) -> None:
    fill(staging, tasks, 1)
    staging.run(staging.policy(verifiers=["redis_task"], grace_period=timedelta(0)))
    operations.purge_due(now=later(1))
    for action in ("trashed", "purged"):
        evidence = json.loads(AuditEntry.objects.get(action=action).evidence)
        assert evidence["verifiers"] == {"redis_task": "pass: task:0:status = Complete"}


def test_what_a_server_says_is_written_down_in_a_form_that_every_database_takes(
    staging: Staging, tasks: Tasks
) -> None:
    fill(staging, tasks, 2)
    policy = staging.policy(verifiers=["redis_task"], grace_period=timedelta(0))
    staging.run(policy)
    tasks.states = {"0": "\0\x1b[31m\u202e" + "x" * 5_000, "1": "\ud800".encode("utf-8", "replace").decode()}
    assert operations.purge_due(now=later(1)).kept == {"verifier_failed": 2}
    for item in CleanupItem.objects.filter(state="trashed"):
        assert item.detail.isprintable()
        assert len(item.detail) <= 500


# Pauses


def test_what_is_kept_is_asked_about_again_after_longer_and_longer_pauses(
    staging: Staging, tasks: Tasks
) -> None:
    fill(staging, tasks, 1)
    staging.run(staging.policy(verifiers=["redis_task"], grace_period=timedelta(0)))
    tasks.states["0"] = "Running"
    item = CleanupItem.objects.get()
    due = item.purge_after
    pauses = []
    now = due
    for _ in range(9):
        assert has_due(now)
        assert operations.purge_due(now=now).kept == {"verifier_failed": 1}
        assert not has_due(now)
        assert count_due(now=now) == []
        assert operations.purge_due(now=now).kept == {}
        item.refresh_from_db()
        pauses.append((item.ask_again_at - now) / HOUR)
        now = item.ask_again_at
    assert pauses == [1, 1, 2, 4, 8, 16, 24, 24, 24]
    assert item.detail == "verifier_failed: redis_task fail: task:0:status = Running"
    tasks.states["0"] = "Complete"
    assert operations.purge_due(now=now).purged == 1
    item.refresh_from_db()
    assert item.detail == "", "why it was kept is no longer so"


@pytest.mark.sqlite_only
def test_a_person_who_purges_now_asks_at_once(staging: Staging, tasks: Tasks) -> None:
    fill(staging, tasks, 1)
    staging.run(staging.policy(verifiers=["redis_task"], grace_period=timedelta(0)))
    tasks.states["0"] = "Running"
    operations.purge_due(now=later(1))
    tasks.states["0"] = "Complete"
    assert operations.purge_due(now=later(1)).kept == {}
    assert operations.purge_now(staging.items(), reason="done", actor=ANNA).purged == 1


def test_a_released_hold_and_a_saved_policy_make_it_due_at_once(staging: Staging, tasks: Tasks) -> None:
    fill(staging, tasks, 2)
    policy = staging.policy(verifiers=["redis_task"], grace_period=timedelta(0))
    staging.run(policy)
    held = operations.hold(staging.area, "task-0", None, "look", ANNA)
    tasks.states["1"] = "Running"
    assert operations.purge_due(now=later(1)).kept == {"held": 1, "verifier_failed": 1}
    assert CleanupItem.objects.get(path="task-0").detail == "held: task-0"
    operations.release(held, ANNA)
    report = operations.purge_due(now=later(1))
    assert (report.purged, report.kept) == (1, {"verifier_failed": 1})
    assert not has_due(later(1))
    tasks.states["1"] = "Complete"
    operations.save_policy(policy, ANNA)
    assert operations.purge_due(now=later(1)).purged == 1


@pytest.mark.sqlite_only
def test_a_hold_that_ends_sooner_than_the_pause_is_not_waited_out(staging: Staging) -> None:
    write(staging.root / "a")
    staging.run(staging.policy(grace_period=timedelta(0)))
    until = later(10.01)
    operations.hold(staging.area, "a", until, "look", ANNA)
    assert operations.purge_due(now=later(10)).kept == {"held": 1}
    assert CleanupItem.objects.get().ask_again_at == until
    assert operations.purge_due(now=until).purged == 1


def test_what_was_kept_before_is_told_when_the_disk_is_full(staging: Staging, tasks: Tasks) -> None:
    fill(staging, tasks, 2)
    staging.run(staging.policy(verifiers=["redis_task"], grace_period=timedelta(0)))
    tasks.states["1"] = "Running"
    now = later(1)
    assert operations.purge_due(now=now).kept == {"verifier_failed": 1}
    tasks.asked.clear()
    report = operations.purge_due(now=now, area=staging.area, under_pressure=True)
    assert (report.purged, report.kept, report.kept_bytes) == (
        0,
        {"verifier_failed": 1},
        {"verifier_failed": 7},
    )
    assert tasks.asked == []


@pytest.mark.sqlite_only
def test_a_policy_that_can_no_longer_be_obeyed_keeps_what_it_trashed(staging: Staging, tasks: Tasks) -> None:
    fill(staging, tasks, 1)
    staging.run(staging.policy(verifiers=["redis_task"], grace_period=timedelta(0)))
    version = PolicyVersion.objects.get()
    version.document["verifiers"] = ["http:url=http://no.longer.listed/{task_id}"]
    version.save()
    report = operations.purge_due(now=later(1))
    assert (report.purged, report.kept) == (0, {"unverified": 1})
    assert "not in CLEANUP" in CleanupItem.objects.get().detail


# The verb


@pytest.mark.sqlite_only
def test_the_kinds_are_listed_with_every_option() -> None:
    out = StringIO()
    call_command("cleanup", "policies", "verifiers", "--json", stdout=out)
    listed = {one["kind"]: one for one in json.loads(out.getvalue())["verifiers"]}
    assert set(listed) == set(KINDS)
    for name, kind in KINDS.items():
        assert [option["name"] for option in listed[name]["options"]] == list(kind.options)
        assert listed[name]["summary"]
        assert all(option["meaning"] for option in listed[name]["options"])
    out = StringIO()
    call_command("cleanup", "policies", "verifiers", stdout=out)
    assert all(f"\n{name}: " in out.getvalue() for name in KINDS)


@pytest.mark.sqlite_only
def test_a_specification_that_cannot_be_obeyed_is_shown_as_it_was_written() -> None:
    assert verifiers.describe({"kind": "redis_task", "value": "a,b"}) == '{"kind":"redis_task","value":"a,b"}'
    assert verifiers.describe("oracle") == "oracle"
    assert json.loads(verifiers.describe({"kind": "oracle", "x": "1"})) == {"kind": "oracle", "x": "1"}


# Settings


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"VERIFIER_TIMEOUT": timedelta(0)}, "VERIFIER_TIMEOUT"),
        ({"VERIFIER_TIMEOUT": timedelta(seconds=30)}, "VERIFIER_BATCH_TIMEOUT no less"),
        ({"VERIFIER_BATCH_TIMEOUT": timedelta(seconds=60)}, "RUN_LEASE more"),
        ({"QDRANT_URL": "localhost:6333"}, "QDRANT_URL"),
    ],
)
def test_settings_that_make_no_sense_are_named(given: dict[str, Any], complaint: str, settings: Any) -> None:
    assert problems() == []
    settings.CLEANUP = {**settings.CLEANUP, **given}
    assert [complaint in problem for problem in problems()] == [True]
