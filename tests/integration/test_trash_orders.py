"""Orders on the trash: everything that a filter finds, once, whatever happens to the worker."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command

from cleanup import operations, tasks
from cleanup.models import AuditEntry, CleanupItem, OrderVerb, TrashOrder
from cleanup.operations import OperationRefused, orders
from cleanup.stores.sql import database_now
from tests.retention import ANNA, BEN, Staging, write

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    made = Staging(tmp_path)
    made.fill(6)
    made.run(made.policy())
    return made


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "BATCH", 2)


class Killed(BaseException):
    """Ends a worker where it stands."""


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> Any:
    def arm(function: Any, name: str, *, call: int) -> None:
        calls, real = [0], getattr(function, name)

        def dies(*given: Any, **options: Any) -> Any:
            calls[0] += 1
            if calls[0] == call:
                raise Killed
            return real(*given, **options)

        monkeypatch.setattr(function, name, dies)

    return arm


def order(verb: str, found_by: dict[str, Any] | None = None, **options: Any) -> TrashOrder:
    return orders.order(
        OrderVerb(verb), {"area": "area"} if found_by is None else found_by, actor=BEN, **options
    )


def states() -> dict[str, int]:
    found = list(CleanupItem.objects.values_list("state", flat=True))
    return {state: found.count(state) for state in sorted(set(found))}


def entries(action: str) -> list[AuditEntry]:
    return list(AuditEntry.objects.filter(action=action))


def leave(made: TrashOrder) -> None:
    """The lease of a worker that was killed runs out."""
    TrashOrder.objects.filter(pk=made.pk).update(lease_until=database_now() - timedelta(seconds=1))


def test_a_worker_restores_everything_and_each_file_is_audited_with_the_order(staging, small_batches):
    made = order("restore")
    assert (made.files, made.state) == (6, "queued")
    tasks.order(str(made.pk))
    made.refresh_from_db()
    assert (made.state, made.done_files, made.done_bytes, made.kept, made.pending) == ("done", 6, 42, {}, [])
    assert len(staging.files()) == 6
    restored = entries("restored")
    assert len(restored) == 6
    assert {json.loads(entry.evidence)["order"] for entry in restored} == {str(made.pk)}
    assert {entry.actor for entry in restored} == {BEN.name}
    assert entries("order_given")[0].actor == BEN.name


@pytest.mark.sqlite_only
def test_what_comes_into_the_trash_later_is_not_meant(staging):
    made = order("restore")
    write(staging.root / "later")
    staging.run(operations.find_policy("policy"))
    orders.carry_out_order(made.pk)
    assert "later" not in staging.files()
    assert states() == {"restored": 6, "trashed": 1}


@pytest.mark.sqlite_only
def test_a_taken_name_stays_in_the_trash_or_comes_back_under_another(staging):
    write(staging.root / "d1" / "f1", "younger", age=timedelta(0))
    first = orders.carry_out_order(order("restore").pk)
    assert (first.done_files, first.kept) == (5, {"the name is taken": 1})
    assert first.conflicts[0]["path"] == "d1/f1"
    again = orders.carry_out_order(order("restore", rename="back").pk)
    assert (again.done_files, again.kept, again.state) == (1, {}, "done")
    assert (staging.root / "d1/f1").read_text() == "younger"
    assert (staging.root / "d1/f1.back").read_text() == "content"


def test_a_grace_period_is_extended_once_though_the_worker_was_killed(staging, small_batches, kill_at):
    before = dict(CleanupItem.objects.values_list("pk", "purge_after"))
    made = order("extend", by=timedelta(days=7))
    kill_at(orders, "extend_grace", call=2)
    with pytest.raises(Killed):
        orders.carry_out_order(made.pk)
    leave(made)
    assert orders.abandoned_orders(database_now()) == [made.pk]
    found = orders.carry_out_order(made.pk)
    assert (found.state, found.done_files) == ("done", 6)
    after = dict(CleanupItem.objects.values_list("pk", "purge_after"))
    assert {pk: after[pk] - moment for pk, moment in before.items()} == dict.fromkeys(
        before, timedelta(days=7)
    )
    assert len(entries("grace_extended")) == 6


@pytest.mark.parametrize("verb", ["restore", "purge"])
def test_a_crash_between_the_files_and_the_note_counts_every_file_once(staging, small_batches, kill_at, verb):
    made = order(verb, reason="disk is full")
    kill_at(orders._Worker, "note_done", call=2)
    with pytest.raises(Killed):
        orders.carry_out_order(made.pk)
    leave(made)
    found = orders.carry_out_order(made.pk)
    assert (found.state, found.done_files, found.done_bytes, found.seen, found.kept) == ("done", 6, 42, 6, {})
    assert len(entries({"restore": "restored", "purge": "purged"}[verb])) == 6
    assert staging.in_trash() == 0


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    ("verb", "point"), [("restore", "restore.before_commit"), ("purge", "run.after_purge_intent")]
)
def test_a_crash_in_the_middle_of_a_batch_is_recovered_and_gone_on_with(
    staging, small_batches, monkeypatch, verb, point
):
    from cleanup.operations import purging, restoring

    def dies(name: str) -> None:
        if name == point:
            raise Killed

    made = order(verb, reason="disk is full")
    with monkeypatch.context() as patch:
        patch.setattr(restoring, "crash_point", dies)
        patch.setattr(purging, "crash_point", dies)
        with pytest.raises(Killed):
            orders.carry_out_order(made.pk)
    leave(made)
    found = orders.carry_out_order(made.pk)
    assert (found.state, found.done_files, found.seen) == ("done", 6, 6)
    assert staging.in_trash() == 0


@pytest.mark.sqlite_only
def test_an_order_stops_after_the_batch_at_hand_and_what_is_done_stays_done(staging, small_batches):
    made = order("restore")

    def stop(_: TrashOrder) -> None:
        if not TrashOrder.objects.get(pk=made.pk).stop_requested:
            orders.stop_order(made, actor=ANNA)

    found = orders.carry_out_order(made.pk, on_progress=stop)
    assert (found.state, found.done_files) == ("stopped", 2)
    assert states() == {"restored": 2, "trashed": 4}
    with pytest.raises(OperationRefused, match="over"):
        orders.stop_order(found, actor=ANNA)


@pytest.mark.sqlite_only
def test_an_order_that_nobody_is_at_stops_at_once(staging):
    made = orders.stop_order(order("restore"), actor=ANNA)
    assert (made.state, states()) == ("stopped", {"trashed": 6})
    orders.carry_out_order(made.pk)
    assert states() == {"trashed": 6}


@pytest.mark.sqlite_only
def test_a_purge_leaves_what_a_hold_keeps_and_says_so(staging):
    operations.hold(staging.area, "d1/**", None, "asked for", ANNA)
    found = orders.carry_out_order(order("purge", reason="disk is full").pk)
    assert (found.done_files, found.kept) == (5, {"held": 1})
    assert {entry.reason for entry in entries("purged")} == {"disk is full"}


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    ("found_by", "number"),
    [
        ({"policy": "policy"}, 6),
        ({"path": "d1/*"}, 1),
        ({"begins": "d0/"}, 2),
        ({"contains": "f5"}, 1),
        ({"reason": "older_than_age"}, 6),
        ({"trashed_before": "2000-01-01T00:00:00+00:00"}, 0),
        ({"purge_from": "2000-01-01T00:00:00+00:00", "min_size": 7}, 6),
        ({"min_size": 8}, 0),
    ],
)
def test_a_filter_finds_what_it_says(staging, found_by, number):
    if number:
        assert orders.carry_out_order(order("restore", found_by).pk).done_files == number
    else:
        with pytest.raises(OperationRefused, match="nothing"):
            order("restore", found_by)


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    ("verb", "options", "words"),
    [
        ("purge", {}, "needs a reason"),
        ("extend", {"by": timedelta(0)}, "not shortened"),
        ("restore", {"rename": "a/b"}, "cannot be a part"),
        ("restore", {"files": 5}, "6 files, not 5"),
        ("restore", {"found_by": {"area": "nowhere"}}, "nowhere"),
        ("restore", {"found_by": {"policy": "none"}}, "no policy"),
        ("restore", {"found_by": {"colour": "red"}}, "colour"),
        ("restore", {"found_by": {"run": "x"}}, "run"),
    ],
)
def test_what_makes_no_sense_is_refused(staging, verb, options, words):
    with pytest.raises(OperationRefused, match=words):
        order(verb, **options)
    assert TrashOrder.objects.count() == 0


def shell(capsys: Any, *words: str) -> dict[str, Any]:
    capsys.readouterr()
    with suppress(SystemExit):
        call_command("cleanup", *words, "--json")
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.sqlite_only
def test_the_commands_order_list_and_carry_out(staging, capsys):
    made = shell(capsys, "extend", "--area", "area", "--by", "7d", "--queue")
    assert (made["files"], made["state"]) == (6, "queued")
    assert shell(capsys, "orders", "run", made["order"])["done"] == 6
    stopped = shell(capsys, "restore", "--area", "area", "--policy", "policy", "--queue")["order"]
    assert shell(capsys, "orders", "stop", stopped)["state"] == "stopped"
    found = shell(capsys, "orders", "list")["orders"]
    assert [one["state"] for one in found] == ["stopped", "done"]
    assert shell(capsys, "extend", "--area", "area", "--path", "d1/*", "--by", "1d") == {
        "extended": 1,
        "bytes": 7,
    }
    write(staging.root / "d1" / "f1", "younger", age=timedelta(0))
    back = shell(capsys, "restore", "--area", "area", "--rename", "back", "--path", "d1/*")
    assert (back["restored"], back["conflicts"]) == (1, [])
    purged = shell(capsys, "purge", "--now", "--area", "area", "--reason", "full", "--why", "older_than_age")
    assert purged["purged"] == 5
