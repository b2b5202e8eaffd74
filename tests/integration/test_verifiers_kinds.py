"""What each kind of verifier asks, and which answer passes: Qdrant, rows, HTTP, files."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from qdrant_client import QdrantClient, models

from cleanup import operations, verifiers
from cleanup.engine.errors import PolicyInvalid
from cleanup.engine.verify import Answer, Subject, ask
from cleanup.models import StagedFile
from cleanup.operations.areas import opened
from cleanup.verifiers import Surroundings
from cleanup.verifiers.bounded import may_be_reached
from tests.chaos.doubts import reply
from tests.chaos.liars import Liar, Turn, breaks_off, http_questions, says
from tests.retention import ANNA, DAY, Staging, write

PASS, FAIL, UNKNOWN = Answer.PASS, Answer.FAIL, Answer.UNKNOWN

#: Nobody here is meant to be late.
PATIENT = {"VERIFIER_TIMEOUT": timedelta(seconds=20), "VERIFIER_BATCH_TIMEOUT": timedelta(seconds=40)}


def findings(specification: Any, subjects: list[Subject], **surroundings: Any) -> list[tuple[Answer, str]]:
    """What one verifier says, with its evidence."""
    made = verifiers.build([specification], Surroundings(**surroundings))
    checked = ask(made, subjects, on_error=lambda verifier, error: None)
    return [(one.answer, one.evidence[made[0].name]) for one in checked]


def answers(specification: Any, *task_ids: str | None) -> list[Answer]:
    subjects = [Subject(path=f"file-{n}", task_id=id) for n, id in enumerate(task_ids)]
    return [answer for answer, _ in findings(specification, subjects)]


def refused(specification: Any) -> str:
    with pytest.raises(PolicyInvalid) as caught:
        verifiers.canonical(specification)
    return str(caught.value)


# Qdrant


@pytest.fixture
def qdrant(tmp_path: Path, settings: Any) -> None:
    """An embedded Qdrant with points of three tasks: one of `one`, two of `two`, and one of a task 7."""
    folder = tmp_path / "qdrant"
    settings.CLEANUP = {**settings.CLEANUP, **PATIENT, "QDRANT_URL": f"file://{folder}"}
    client = QdrantClient(path=str(folder))
    client.create_collection("chunks", models.VectorParams(size=2, distance=models.Distance.DOT))
    tasks = ["one", "two", "two", "7"]
    points = [
        models.PointStruct(id=number, vector=[1.0, 0.0], payload={"task_id": task, "kind": "text"})
        for number, task in enumerate(tasks)
    ]
    client.upsert("chunks", points)
    client.close()


@pytest.mark.sqlite_only
@pytest.mark.usefixtures("qdrant")
def test_points_of_a_task_are_counted() -> None:
    asked = ("one", "two", "nobody", None)
    assert answers("qdrant_points:collection=chunks", *asked) == [PASS, PASS, FAIL, UNKNOWN]
    assert answers("qdrant_points:collection=chunks,at_least=2", *asked) == [FAIL, PASS, FAIL, UNKNOWN]
    assert answers("qdrant_points:collection=chunks,exactly=1", *asked) == [PASS, FAIL, FAIL, UNKNOWN]


@pytest.mark.sqlite_only
@pytest.mark.usefixtures("qdrant")
def test_a_whole_filter_can_be_given_and_what_is_filled_in_stays_one_value() -> None:
    match = {
        "must": [
            {"key": "task_id", "match": {"value": "{task_id}"}},
            {"key": "kind", "match": {"value": "text"}},
        ]
    }
    given = {"kind": "qdrant_points", "collection": "chunks", "filter": json.dumps(match)}
    spelled = verifiers.canonical(given)
    assert verifiers.canonical(spelled) == spelled
    nasty = '"}}], "should": [{"is_empty": {"key": "x"}}], "x": [{"y": {"z": "'
    assert answers(spelled, "one", nasty) == [PASS, FAIL]


@pytest.mark.sqlite_only
@pytest.mark.usefixtures("qdrant")
def test_a_collection_that_is_not_there_is_no_answer() -> None:
    assert answers("qdrant_points:collection=other", "one", "nobody") == [UNKNOWN, UNKNOWN]


@pytest.mark.sqlite_only
@pytest.mark.django_db
@pytest.mark.usefixtures("qdrant")
def test_the_number_of_points_can_stand_in_a_companion(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    wanted = {"one": '{"points": 1}', "two": '{"points": 3}', "7": '{"points": "1"}'}
    for task, content in wanted.items():
        (staging.root / f"{task}.json").write_text(content)
    subjects = [Subject(path=f"{task}.bin", task_id=task) for task in [*wanted, "nobody"]]
    specification = "qdrant_points:collection=chunks,exactly_from={stem}.json"
    with opened(staging.area) as area:
        found = findings(specification, subjects, area=area)
    assert [answer for answer, _ in found] == [PASS, FAIL, UNKNOWN, FAIL]
    assert found[1][1] == "fail: 2 points, 3 expected"


@pytest.mark.sqlite_only
def test_no_address_of_qdrant_is_no_answer(settings: Any) -> None:
    settings.CLEANUP = {**settings.CLEANUP, "QDRANT_URL": ""}
    assert answers("qdrant_points:collection=chunks", "one") == [UNKNOWN]


@pytest.mark.sqlite_only
def test_qdrant_is_asked_with_its_key_and_once_for_all_files_of_a_task(settings: Any) -> None:
    with Liar(http_questions) as server:
        questions: list[bytes] = []

        def note(turn: Turn) -> bool:
            questions.append(turn.question)
            return turn.say(reply(b'{"result": {"count": 1}, "status": "ok", "time": 0.1}'))

        server.answer = note
        settings.CLEANUP = {
            **settings.CLEANUP,
            **PATIENT,
            "QDRANT_URL": f"http://127.0.0.1:{server.port}",
            "QDRANT_API_KEY": "k3y",
        }
        with warnings.catch_warnings():
            # The client warns of a key over plain HTTP, rightly; here it stays on this machine.
            warnings.simplefilter("ignore", UserWarning)
            assert answers("qdrant_points:collection=chunks", "one", "one", "two") == [PASS] * 3
        assert (server.asked, server.accepted) == (2, 1)
    assert b"api-key: k3y" in questions[0].lower()
    assert b"POST /collections/chunks/points/count" in questions[0]


# Rows


@pytest.fixture
def rows(tmp_path: Path) -> Staging:
    staging = Staging(tmp_path)
    for task, size in [("a", 1), ("b", 2), ("c", 1), ("c", 2)]:
        StagedFile.objects.create(area=staging.area, path=f"{task}/{size}", task_id=task, size=size)
    StagedFile.objects.create(area=staging.area, path="gone", task_id="d", size=1).delete()
    return staging


@pytest.mark.django_db
@pytest.mark.usefixtures("rows")
def test_a_row_exists_or_holds_the_value_in_every_one_of_several() -> None:
    asked = ("a", "b", "c", "d", "nobody", None)
    exists = "record:model=cleanup.StagedFile"
    assert answers(exists, *asked) == [PASS, PASS, PASS, FAIL, FAIL, UNKNOWN]
    holds = "record:model=cleanup.StagedFile,check=size,equals=1"
    assert answers(holds, *asked) == [PASS, FAIL, FAIL, FAIL, FAIL, UNKNOWN]


@pytest.mark.django_db
def test_a_value_that_the_field_cannot_hold_is_no_answer(rows: Staging) -> None:
    key = str(StagedFile.objects.get(task_id="a").pk)
    specification = "record:model=cleanup.StagedFile,field=pk"
    assert answers(specification, key, "999999", "no number", "9" * 40) == [PASS, FAIL, UNKNOWN, UNKNOWN]
    by_uuid = "record:model=cleanup.StagingArea,field=uuid"
    assert answers(by_uuid, str(rows.area.uuid), "no uuid") == [PASS, UNKNOWN]


@pytest.mark.django_db
def test_rows_can_be_found_by_the_path_of_the_file(rows: Staging) -> None:
    specification = "record:model=cleanup.StagedFile,field=path,value={path}"
    subjects = [Subject(path="a/1"), Subject(path="a/2")]
    assert [answer for answer, _ in findings(specification, subjects)] == [PASS, FAIL]


@pytest.mark.django_db
def test_after_an_answer_the_database_waits_as_long_as_before(rows: Staging) -> None:
    def limit() -> Any:
        with connection.cursor() as cursor:
            cursor.execute("SELECT current_setting('statement_timeout')")
            return cursor.fetchone()

    if connection.vendor != "postgresql":
        assert answers("record:model=cleanup.StagedFile", "a") == [PASS]
        assert StagedFile.objects.filter(task_id="a").exists()
        return
    before = limit()
    assert answers("record:model=cleanup.StagedFile", "a") == [PASS]
    assert limit() == before


# HTTP


@pytest.fixture
def service(settings: Any) -> Iterator[Liar]:
    """A service that knows the tasks `done` and `running`, and no other."""
    with Liar(http_questions) as server:
        server.answer = _tasks
        settings.CLEANUP = {**settings.CLEANUP, **PATIENT, "VERIFIER_HOSTS": [f"127.0.0.1:{server.port}"]}
        yield server


def _tasks(turn: Turn) -> bool:
    task = turn.question.split(b" ")[1].rpartition(b"/")[2]
    if task in (b"done", b"running", b"a%2Fb%3Fc%23d"):
        state = b"running" if task == b"running" else b"done"
        return turn.say(reply(b'{"result": [{"state": "%s", "ok": true, "left": 0}]}' % state))
    return turn.say(reply(b"{}", status="404 Not Found"))


def url(server: Liar, rest: str = "/tasks/{task_id}") -> str:
    return f"http:url=http://127.0.0.1:{server.port}{rest}"


@pytest.mark.sqlite_only
def test_a_service_says_yes_no_or_that_it_knows_nobody(service: Liar) -> None:
    asked = ("done", "running", "nobody", None)
    at = ",at=result.0.state,equals=done"
    assert answers(url(service) + at, *asked) == [PASS, FAIL, FAIL, UNKNOWN]
    assert answers(url(service), *asked) == [PASS, PASS, FAIL, UNKNOWN]
    assert answers(url(service) + ",at=result.0.ok,equals=true", "done") == [PASS]
    assert answers(url(service) + ",at=result.0.left,equals=0", "done") == [PASS]
    assert answers(url(service) + ",at=result.0.left,equals=1", "done") == [FAIL]
    assert answers(url(service) + ",at=result.1.state,equals=done", "done") == [UNKNOWN]


@pytest.mark.sqlite_only
def test_what_is_filled_into_an_address_stays_one_part_of_it(service: Liar) -> None:
    assert answers(url(service), "a/b?c#d", "..", ".") == [PASS, UNKNOWN, UNKNOWN]
    assert service.asked == 1


@pytest.mark.sqlite_only
def test_a_service_is_asked_once_for_all_files_of_a_task_over_few_connections(service: Liar) -> None:
    asked = [f"done-{number % 40}" for number in range(200)]
    assert answers(url(service), *asked) == [FAIL] * 200
    assert service.asked == 40
    assert service.accepted <= 4


@pytest.mark.sqlite_only
def test_after_an_error_the_rest_of_the_batch_is_not_asked(service: Liar) -> None:
    service.answer = breaks_off(b"HTTP/1.1 200 OK\r\n")
    assert answers(url(service), *[str(number) for number in range(200)]) == [UNKNOWN] * 200
    assert service.asked <= 8, "each of four connections asks one more at most"


@pytest.mark.sqlite_only
def test_a_connection_with_an_answer_that_nobody_asked_for_is_not_used_again(service: Liar) -> None:
    double = reply(b'{"state": "running"}') + reply(b'{"state": "done"}')
    service.answer = says(double)
    specification = url(service) + ",at=state,equals=done"
    for _ in range(3):
        assert PASS not in answers(specification, *map(str, range(12)))


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("ftp://tasks.example/{task_id}", "begins with http"),
        ("http:///{task_id}", "and a host"),
        ("http://tasks.example/", "no placeholder"),
        ("http://{task_id}.example/x", "not filled in"),
        ("http://me:secret@tasks.example/{task_id}", "no user"),
        ("http://tasks.example/{task_id}#x", "no fragment"),
        ("http://tasks.example/{task_id} x", "without a space"),
        ("http://tasks.example:x/{task_id}", "no url"),
        ("http://other.example/{task_id}", "not in CLEANUP"),
        ("http://tasks.example:8080/{task_id}", "'tasks.example:8080' is not in CLEANUP"),
        ("http://tasks.example/{colour}", "unknown placeholder"),
    ],
)
def test_an_address_that_nobody_allowed_is_refused(address: str, complaint: str, settings: Any) -> None:
    settings.CLEANUP = {**settings.CLEANUP, "VERIFIER_HOSTS": ["tasks.example"]}
    assert complaint in refused({"kind": "http", "url": address})
    assert verifiers.canonical({"kind": "http", "url": "https://tasks.example/{task_id}"})


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    "address", ["169.254.169.254", "224.0.0.1", "::", "fe80::1%eth0", "240.0.0.1", "::ffff:169.254.169.254"]
)
def test_a_listed_name_never_leads_to_an_address_that_is_no_host(address: str) -> None:
    assert not may_be_reached("tasks.example", address)
    assert may_be_reached(address, address)
    assert may_be_reached("tasks.example", "10.0.0.7")
    assert may_be_reached("tasks.example", "127.0.0.1")


# Files


@pytest.mark.sqlite_only
@pytest.mark.django_db
def test_a_companion_is_there_or_says_so(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    write(staging.root / "d" / "a.done", "")
    write(staging.root / "d" / "b.done", '{"job": {"state": "done"}}')
    write(staging.root / "d" / "c.done", '{"job": {"state": "running"}}')
    subjects = [Subject(path=f"d/{name}.bin") for name in "abcx"]
    with opened(staging.area) as area:
        there = findings("sidecar", subjects, area=area)
        said = findings("sidecar:at=job.state,equals=done", subjects, area=area)
        itself = findings("sidecar:name={stem}.done", [Subject(path="d/a.done")], area=area)
    assert [answer for answer, _ in there] == [PASS, PASS, PASS, FAIL]
    assert [answer for answer, _ in said] == [UNKNOWN, PASS, FAIL, FAIL]
    assert itself[0][0] is UNKNOWN


@pytest.mark.sqlite_only
@pytest.mark.django_db
def test_a_companion_behind_a_link_or_with_a_name_from_elsewhere_is_not_read(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    write(tmp_path / "victim" / "a.done", "")
    (staging.root / "d").symlink_to(tmp_path / "victim")
    write(staging.root / "a.done", "")
    with opened(staging.area) as area:
        linked = findings("sidecar", [Subject(path="d/a.bin")], area=area)
        named = findings("sidecar:name={task_id}.done", [Subject(path="e/x", task_id="../a")], area=area)
        closed = findings("sidecar", [Subject(path="a.bin")])
    assert [found[0][0] for found in (linked, named, closed)] == [UNKNOWN] * 3


@pytest.mark.django_db
def test_a_file_may_go_when_what_it_became_is_there(tmp_path: Path) -> None:
    staging, distilled = Staging(tmp_path), Staging(tmp_path, "distilled")
    for name in ("whole", "empty", "older", "missing"):
        write(staging.root / "2026" / f"{name}.txt", age=5 * DAY)
    write(distilled.root / "2026" / "whole.json", age=4 * DAY)
    write(distilled.root / "2026" / "empty.json", "", age=4 * DAY)
    write(distilled.root / "2026" / "older.json", age=6 * DAY)
    policy = staging.policy(verifiers=["sibling:area=distilled,suffix=.json"], grace_period=timedelta(0))
    run = staging.run(policy)
    assert (run.state, run.trashed, run.kept["verifier_failed"]) == ("done", 1, 3), run.message
    assert "2026/whole.txt" not in staging.files()
    (distilled.root / "2026" / "whole.json").unlink()
    assert operations.purge_due(now=staging.area.items.get().purge_after + DAY).kept == {"verifier_failed": 1}
    assert operations.restore(staging.items(), actor=ANNA).restored == 1


@pytest.mark.sqlite_only
@pytest.mark.django_db
def test_a_sibling_can_lie_in_the_same_directory_and_is_never_the_file_itself(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    for name in ("a.txt", "a.json", "b.json"):
        write(staging.root / name)
    stamp = os.stat(staging.root / "a.txt").st_mtime_ns
    subjects = [Subject(path=path, mtime_ns=stamp - 10**12) for path in ("a.txt", "b.json", "c.txt")]
    with opened(staging.area) as area:
        found = findings("sibling:suffix=.json", subjects, area=area)
        unknown_time = findings("sibling:suffix=.json", [Subject(path="a.txt")], area=area)
    assert [answer for answer, _ in found] == [PASS, UNKNOWN, FAIL]
    assert unknown_time[0][0] is UNKNOWN


# What cannot be obeyed


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("qdrant_points", "names a collection"),
        ("qdrant_points:collection=a/b", "names a collection"),
        ("qdrant_points:collection=c,value=constant", "no placeholder"),
        ("qdrant_points:collection=c,at_least=0", "no points are no proof"),
        ("qdrant_points:collection=c,exactly=0", "no points are no proof"),
        ("qdrant_points:collection=c,exactly=many", "whole number"),
        ("qdrant_points:collection=c,exactly=1,exactly_from={stem}.x", "exclude each other"),
        ("qdrant_points:collection=c,exactly_from={stem}.x,canary_present=a", "only placeholder"),
        (
            {"kind": "qdrant_points", "collection": "c", "filter": '{"must": "{task_id}"'},
            "no filter of Qdrant",
        ),
        (
            {"kind": "qdrant_points", "collection": "c", "filter": '{"colour": "{task_id}"}'},
            "no filter of Qdrant",
        ),
        (
            {"kind": "qdrant_points", "collection": "c", "filter": '{"must": [{"has_id": [1]}]}'},
            "no placeholder",
        ),
        ("record:model=nobody.Knows", "no model"),
        ("record:model=StagedFile", "no model"),
        ("record:model=cleanup.StagedFile,field=colour", "no field named 'colour'"),
        ("record:model=cleanup.StagedFile,field=area__name", "no field named"),
        ("record:model=cleanup.StagedFile,value=x", "no placeholder"),
        ("record:model=cleanup.StagedFile,check=size,equals=large", "must be an integer"),
        ("record:model=cleanup.StagedFile,equals=1", "check"),
        ("sidecar:name=done", "no placeholder"),
        ("sidecar:name=../{stem}", "no slash"),
        ("sidecar:name={name}", "name of the companion"),
        ("sidecar:at=state", "belong together"),
        ("sibling", "another suffix, another area or both"),
        ("sibling:suffix=/x", "no slash"),
        ("sibling:area=nowhere", "no area 'nowhere'"),
        ("http:url=http://tasks.example/{task_id}", "not in CLEANUP"),
    ],
)
def test_what_could_not_be_obeyed_is_refused_with_the_reason(given: Any, complaint: str) -> None:
    assert complaint in refused(given)
