"""`cleanup audit list`: entries of a time are found among the numbers, and every one with `--scan`."""

from __future__ import annotations

import io
import json
from random import Random
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext

from bus.halving import first_since
from cleanup.models import AuditEntry
from cleanup.operations.excerpts import MARGIN, entries_of
from cleanup.stores import DatabaseAuditSink
from tests.auditing import happened

pytestmark = pytest.mark.django_db

MINUTE = 60_000_000
NOON = 1_900_000_000_000_000
COUNT = 400


def chain(moments: list[int]) -> None:
    DatabaseAuditSink().write([happened(at) for at in moments])


def place(moment: int) -> int:
    return first_since(AuditEntry, "at_us", moment)


def numbers(*, scan: bool = False, **wanted: Any) -> list[int]:
    return list(entries_of(wanted, scan=scan).values_list("seq", flat=True))


def test_within_the_margin_every_entry_is_found_however_clocks_differ() -> None:
    dice = Random(7)
    half = int(MARGIN.total_seconds() * 1_000_000) // 2
    chain([NOON + number * MINUTE + dice.randint(-half, half) for number in range(COUNT)])
    for _ in range(20):
        since, until = sorted(NOON + dice.randint(-60, COUNT + 60) * MINUTE for _ in range(2))
        assert numbers(since=since, until=until) == numbers(since=since, until=until, scan=True)
        assert numbers(since=since) == numbers(since=since, scan=True)
        assert numbers(until=until) == numbers(until=until, scan=True)


def test_an_entry_of_a_clock_that_was_far_off_is_found_by_looking_at_all() -> None:
    chain([NOON + number * MINUTE for number in range(50)])
    chain([NOON - 10_000 * MINUTE, NOON + 51 * MINUTE])
    assert 51 not in numbers(until=NOON)
    assert numbers(until=NOON, scan=True) == [51]
    assert numbers(since=NOON + 50 * MINUTE) == [52], "what comes after is found all the same"


def test_few_rows_are_looked_at_whatever_the_length_of_the_chain() -> None:
    chain([NOON + number * MINUTE for number in range(COUNT)])
    with CaptureQueriesContext(connection) as asked:
        assert numbers(since=NOON + 390 * MINUTE) == list(range(COUNT, 390, -1))
    assert len(asked) <= 3 + COUNT.bit_length()
    assert '"seq" >= 381' in asked.captured_queries[-1]["sql"]


def test_an_empty_chain_and_times_outside_of_it_find_nothing() -> None:
    assert (numbers(since=NOON), place(NOON)) == ([], 0)
    chain([NOON, NOON + MINUTE])
    assert numbers(since=NOON + 60 * MINUTE) == numbers(until=NOON - 60 * MINUTE) == []
    assert [place(NOON), place(NOON + 1), place(NOON + 2 * MINUTE)] == [1, 2, 3]


def test_the_command_looks_at_all_if_it_is_told_to() -> None:
    chain([NOON + number * MINUTE for number in range(50)])
    chain([NOON - 10_000 * MINUTE])

    def listed(*words: str) -> list[int]:
        out = io.StringIO()
        until = ("--until", "2030-03-17T00:00:00Z")
        call_command("cleanup", "audit", "list", *until, *words, "--json", stdout=out)
        return [entry["seq"] for entry in json.loads(out.getvalue())["entries"]]

    assert listed() == []
    assert listed("--scan") == [51]
