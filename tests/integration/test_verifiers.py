"""The Redis verifier against a real server that answers, lies, freezes and dies; how policies name it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis

from cleanup import operations, verifiers
from cleanup.engine.errors import PolicyInvalid
from cleanup.engine.verify import Answer, Subject, ask
from cleanup.models import StagedFile
from tests.retention import ANNA, DAY, Staging, write
from tests.servers import Valkey


@pytest.fixture
def valkey(own_valkey: Valkey, settings: Any) -> Valkey:
    """A server that the verifiers of this test ask, with little patience."""
    settings.CLEANUP = {
        **settings.CLEANUP,
        "REDIS_URL": own_valkey.url,
        "VERIFIER_TIMEOUT": timedelta(milliseconds=300),
    }
    return own_valkey


@pytest.fixture
def client(valkey: Valkey) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey.url) as client:
        yield client


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    return Staging(tmp_path)


def answers(specification: Any, *task_ids: str | None) -> list[Answer]:
    subjects = [Subject(path=f"file {n}", task_id=id) for n, id in enumerate(task_ids)]
    found = ask(verifiers.build([specification]), subjects, on_error=lambda verifier, error: None)
    return [checked.answer for checked in found]


PASS, FAIL, UNKNOWN = Answer.PASS, Answer.FAIL, Answer.UNKNOWN


def test_only_the_very_value_passes(client: redis.Redis) -> None:
    values = {"a": "Complete", "b": "Running", "c": "complete", "d": "Complete ", "e": "", "f": b"\xff"}
    for name, value in values.items():
        client.set(f"task:{name}:status", value)
    assert answers("redis_task", *"abcdef") == [PASS, FAIL, FAIL, FAIL, FAIL, FAIL]
    assert answers("redis_task:value=Running", *"ab") == [FAIL, PASS]


def test_an_absent_task_fails_and_no_task_is_unknown(client: redis.Redis) -> None:
    assert answers("redis_task", "nobody", None) == [FAIL, UNKNOWN]


def test_a_hash_is_asked_for_its_field(client: redis.Redis) -> None:
    client.hset("job:1", mapping={"state": "done", "other": "x"})
    client.hset("job:2", mapping={"state": "running"})
    client.set("job:3", "done")
    specification = {"kind": "redis_task", "key": "job:{task_id}", "field": "state", "value": "done"}
    assert answers(specification, "1", "2", "3", "4") == [PASS, FAIL, UNKNOWN, FAIL]


def test_a_key_of_another_type_never_passes(client: redis.Redis) -> None:
    client.lpush("task:list:status", "Complete")
    assert answers("redis_task", "list")[0] is not PASS


def test_answers_belong_to_their_questions_over_many_batches(client: redis.Redis) -> None:
    with client.pipeline() as pipeline:
        for number in range(0, 1_700, 3):
            pipeline.set(f"task:{number}:status", "Complete")
        pipeline.execute()
    found = answers("redis_task", *[str(number) for number in range(1_700)])
    assert found == [FAIL if number % 3 else PASS for number in range(1_700)]


def test_a_server_that_is_down_frozen_or_refuses_is_unknown(valkey: Valkey, client: redis.Redis) -> None:
    client.set("task:a:status", "Complete")
    assert answers("redis_task", "a") == [PASS]
    valkey.freeze()
    assert answers("redis_task", "a", "b") == [UNKNOWN, UNKNOWN]
    valkey.thaw()
    assert answers("redis_task", "a") == [PASS]
    client.config_set("requirepass", "secret")
    assert answers("redis_task", "a") == [UNKNOWN]
    valkey.kill()
    assert answers("redis_task", "a") == [UNKNOWN]


def test_an_emptied_server_keeps_everything(client: redis.Redis) -> None:
    client.set("task:a:status", "Complete")
    client.flushall()
    assert answers("redis_task", "a") == [FAIL]


@pytest.mark.django_db
def test_only_files_of_complete_tasks_are_trashed(staging: Staging, client: redis.Redis) -> None:
    for name in ("task-1", "task-2", "task-3", "other"):
        write(staging.root / name / "part.bin")
    client.set("task:1:status", "Complete")
    client.set("task:2:status", "Running")
    policy = staging.policy(verifiers=["redis_task"], max_percent=100)
    run = staging.run(policy)
    # One of four could not be asked about, which is above the 5 % that a run puts up with.
    assert run.state == "refused"
    (staging.root / "other" / "part.bin").unlink()
    run = staging.run(policy)
    assert (run.state, run.trashed, run.kept["verifier_failed"], run.residue) == ("done", 1, 2, 0)
    assert staging.files() == {"task-2/part.bin", "task-3/part.bin"}


@pytest.mark.django_db
def test_while_the_server_is_frozen_nothing_is_touched(
    staging: Staging, valkey: Valkey, client: redis.Redis
) -> None:
    for number in range(10):
        write(staging.root / f"task-{number}")
        client.set(f"task:{number}:status", "Complete")
    before = staging.files()
    policy = staging.policy(verifiers=["redis_task"])
    valkey.freeze()
    run = staging.run(policy)
    assert (run.state, run.trashed) == ("refused", 0)
    assert "verifiers could not tell" in run.message
    assert staging.files() == before
    valkey.thaw()
    assert staging.run(policy).trashed == 10


@pytest.mark.django_db
def test_verifiers_are_asked_again_before_the_move_and_before_the_purge(
    staging: Staging, valkey: Valkey, client: redis.Redis
) -> None:
    for number in range(4):
        write(staging.root / f"task-{number}")
        client.set(f"task:{number}:status", "Complete")
    policy = staging.policy(verifiers=["redis_task"], max_files=1, grace_period=timedelta(0))
    run = staging.run(policy)
    client.set("task:0:status", "Running")
    operations.approve(run, files=4, actor=ANNA)
    run = operations.execute(run.pk)
    assert (run.state, run.trashed, run.skipped, run.residue) == ("done", 3, 1, 0)

    client.set("task:1:status", "Running")
    due = datetime.now(UTC) + DAY
    report = operations.purge_due(now=due)
    assert (report.purged, report.kept) == (2, {"verifier_failed": 1})
    valkey.kill()
    assert operations.purge_due(now=due).kept == {}, "kept once, it is not asked about at every tick"
    assert operations.purge_due(now=due + DAY).kept == {"unverified": 1}
    assert operations.purge_now(staging.items(), reason="now", actor=ANNA).kept == {"unverified": 1}
    assert operations.restore(staging.items(), actor=ANNA).restored == 1


@pytest.mark.django_db
def test_a_server_that_dies_between_plan_and_move_stops_the_run(
    staging: Staging, valkey: Valkey, client: redis.Redis
) -> None:
    for number in range(4):
        write(staging.root / f"task-{number}")
        client.set(f"task:{number}:status", "Complete")
    run = staging.run(staging.policy(verifiers=["redis_task"], max_files=1))
    operations.approve(run, files=4, actor=ANNA)
    valkey.kill()
    run = operations.execute(run.pk)
    assert (run.state, run.trashed) == ("failed", 0)
    assert len(staging.files()) == 4


@pytest.mark.django_db
def test_the_registry_knows_the_task_of_a_file_whose_name_does_not(
    staging: Staging, client: redis.Redis
) -> None:
    write(staging.root / "a.bin")
    StagedFile.objects.create(area=staging.area, path="a.bin", task_id="77")
    client.set("task:77:status", "Complete")
    assert staging.run(staging.policy(verifiers=["redis_task"])).trashed == 1


@pytest.mark.django_db
def test_a_policy_can_say_where_a_path_names_its_task(staging: Staging, client: redis.Redis) -> None:
    write(staging.root / "2026" / "job_42.json")
    client.set("task:42:status", "Complete")
    policy = staging.policy(verifiers=["redis_task"], task_id_pattern=r"job_(?P<task_id>\d+)\.json$")
    assert staging.run(policy).trashed == 1
    entry = operations.find_run(staging.area.runs.get().pk).items.get()
    assert entry.task_id == "42"


# Specifications


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("redis_task", "redis_task"),
        ("redis_task:key=task:{task_id}:status,value=Complete", "redis_task"),
        ("redis_task:key=job:{task_id},value=done", "redis_task:key=job:{task_id},value=done"),
        ({"kind": "redis_task", "value": "done"}, "redis_task:value=done"),
        ({"kind": "redis_task", "key": "j:{task_id}", "field": "s"}, "redis_task:key=j:{task_id},field=s"),
        ({"kind": "redis_task", "value": "a,b"}, '{"kind":"redis_task","value":"a,b"}'),
    ],
)
def test_a_specification_has_one_spelling(given: Any, expected: str) -> None:
    assert verifiers.canonical(given) == expected
    assert verifiers.canonical(expected) == expected


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("nobody", "unknown verifier 'nobody'"),
        ("", "unknown verifier"),
        ("redis_task:key=constant", "no {task_id}"),
        ("redis_task:colour=red", "no option 'colour'"),
        ("redis_task:value=", "value is empty"),
        ("redis_task:value", "not NAME=VALUE"),
        ({"kind": "redis_task", "value": 1}, "printable text"),
        ({"kind": "redis_task", "value": "a\nb"}, "printable text"),
        ("redis_task:key=task:{task}:{task_id}", "unknown placeholder {task}"),
        ("redis_task:key=task:{task_id}:{", "a lone brace"),
        ("redis_task:exists=maybe", "yes or no"),
        ("redis_task:canary_present=a,canary_absent=a", "present and absent"),
        ("redis_task:key={path}{task_id},canary_present=a", "only placeholder"),
        ("{broken", "not JSON"),
        ({"value": "x"}, "unknown verifier"),
        (7, "named by text"),
    ],
)
def test_a_specification_that_could_not_be_obeyed_is_refused(given: Any, complaint: str) -> None:
    with pytest.raises(PolicyInvalid, match=complaint.replace("{", r"\{")):
        verifiers.canonical(given)
