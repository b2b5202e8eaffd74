"""What judge decides, and how a policy is stored."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import msgspec
import pytest

from cleanup.engine.errors import PolicyInvalid
from cleanup.engine.expiry import companion_name, moment, read_expiry, zone_from_name, zone_name
from cleanup.engine.policy import (
    Candidate,
    Companion,
    Policy,
    Reason,
    Verdict,
    canonical_filter,
    judge,
    policy_from_json,
    policy_to_json,
    task_id_of,
)
from tests.unit.cleanup_engine.kit import AGE, DAY, EXPIRY, NOW, a_stat, ns


def changed(policy: Policy, **changes: object) -> Policy:
    return msgspec.structs.replace(policy, **changes)


def judged(policy: Policy, path: bytes = b"a/file", **stat: object) -> Verdict:
    return judge(policy, Candidate(path, a_stat(**stat)), now=NOW)


def pair(expires_at: datetime | None, *, error: str | None = None, **stat: object) -> Candidate:
    companion = Companion(b"r.metadata.json", a_stat(inode=3, size=20, **stat), expires_at, error)
    return Candidate(b"r.result.json.lz4", a_stat(), companion)


def test_an_old_file_goes_alone() -> None:
    assert judged(AGE) == Verdict("trash", Reason.OLDER_THAN_AGE, (b"a/file",))


def test_a_stamp_exactly_at_the_cut_off_keeps_the_file() -> None:
    cutoff = ns(NOW - 2 * DAY)
    assert judged(AGE, mtime_ns=cutoff).reason is Reason.YOUNGER_THAN_AGE
    assert judged(AGE, mtime_ns=cutoff - 1).action == "trash"


@pytest.mark.parametrize("letter", ["a", "b", "c", "m"])
def test_any_selected_stamp_that_is_young_keeps_the_file(letter: str) -> None:
    stamp = {f"{letter}time_ns": ns(NOW - DAY)}
    assert judged(changed(AGE, age_by=frozenset("abcm")), **stamp).reason is Reason.YOUNGER_THAN_AGE
    assert judged(changed(AGE, age_by=frozenset("abcm") - {letter}), **stamp).action == "trash"


def test_a_future_stamp_survives_even_age_zero() -> None:
    verdict = judged(changed(AGE, age=timedelta(0)), mtime_ns=ns(NOW + DAY))
    assert verdict == Verdict("keep", Reason.FUTURE_TIMESTAMP)


def test_an_unknown_birth_keeps_the_file() -> None:
    assert judged(changed(AGE, age_by=frozenset("bm")), btime_ns=None).reason is Reason.UNKNOWN_TIMESTAMP


@pytest.mark.parametrize(
    ("path", "stat", "reason"),
    [
        (b"a", {"kind": "dir"}, Reason.NOT_A_FILE),
        (b"a", {"kind": "symlink"}, Reason.NOT_A_FILE),
        (b"a", {"nlink": 2}, Reason.HARD_LINKED),
        (b"../a", {}, Reason.OUTSIDE),
        (b".trash/a", {}, Reason.INTERNAL),
        (b".staging-area", {}, Reason.INTERNAL),
    ],
)
def test_what_no_policy_may_touch_is_kept(path: bytes, stat: dict[str, object], reason: Reason) -> None:
    assert judged(AGE, path, **stat) == Verdict("keep", reason)


def test_a_hard_link_goes_when_the_policy_allows_it() -> None:
    assert judged(changed(AGE, allow_hardlinks=True), nlink=2).action == "trash"


def test_exclude_wins_over_include_and_names_the_pattern() -> None:
    policy = changed(AGE, include=("*.txt",), exclude=("keep",))
    assert judged(policy, b"a/b.txt").action == "trash"
    assert judged(policy, b"a/b.bin").reason is Reason.NOT_INCLUDED
    assert judged(policy, b"keep/b.txt") == Verdict("keep", Reason.EXCLUDED, (), "keep")


def test_now_needs_a_zone() -> None:
    with pytest.raises(ValueError, match="zone"):
        judge(AGE, Candidate(b"a", a_stat()), now=datetime(2026, 1, 1))  # noqa: DTZ001


def test_an_expired_result_goes_with_its_metadata_last() -> None:
    verdict = judge(EXPIRY, pair(NOW - timedelta(microseconds=1)), now=NOW)
    assert verdict.action == "trash"
    assert verdict.reason is Reason.EXPIRED
    assert verdict.members == (b"r.result.json.lz4", b"r.metadata.json")


def test_a_result_is_not_expired_at_its_very_moment() -> None:
    assert judge(EXPIRY, pair(NOW), now=NOW).reason is Reason.NOT_EXPIRED


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        (Candidate(b"r.result.json.lz4", a_stat()), Reason.NO_COMPANION),
        (pair(None, error="no expires_at"), Reason.BAD_COMPANION),
        (pair(None), Reason.BAD_COMPANION),
        (pair(NOW - DAY, kind="symlink"), Reason.BAD_COMPANION),
        (pair(NOW - DAY, nlink=2), Reason.BAD_COMPANION),
        (pair(datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14)))), Reason.BAD_COMPANION),
        (
            Candidate(b"r.result.json.lz4", a_stat(), Companion(b"q.metadata.json", a_stat(), NOW - DAY)),
            Reason.BAD_COMPANION,
        ),
    ],
)
def test_a_result_without_a_good_companion_stays(candidate: Candidate, reason: Reason) -> None:
    assert judge(EXPIRY, candidate, now=NOW).reason is reason


def test_the_rule_itself_touches_nothing_but_results() -> None:
    everything = changed(EXPIRY, include=())
    assert judge(everything, Candidate(b"notes.txt", a_stat()), now=NOW).reason is Reason.NOT_INCLUDED


def test_a_naive_expiry_is_read_in_the_policys_zone() -> None:
    tokyo = changed(EXPIRY, naive_timezone=ZoneInfo("Asia/Tokyo"))
    naive = datetime(2026, 11, 22, 20, 30)  # noqa: DTZ001 - 11:30 UTC, half an hour ago
    assert judge(tokyo, pair(naive), now=NOW).action == "trash"
    assert judge(EXPIRY, pair(naive), now=NOW).reason is Reason.NOT_EXPIRED


def test_a_wall_clock_time_that_happens_twice_counts_as_the_later() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    assert moment(datetime(2026, 10, 25, 2, 30), berlin) == datetime(2026, 10, 25, 1, 30, tzinfo=UTC)  # noqa: DTZ001


def test_a_wall_clock_time_that_is_skipped_counts_as_the_later() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    assert moment(datetime(2026, 3, 29, 2, 30), berlin) == datetime(2026, 3, 29, 1, 30, tzinfo=UTC)  # noqa: DTZ001


@pytest.mark.parametrize(
    "text", ["2025-11-18T12:00:00", "2025-11-18T12:00:00Z", "2025-11-18 12:00:00.5+02:00", "20251118T120000Z"]
)
def test_iso_8601_times_are_read(text: str) -> None:
    assert read_expiry(b'{"expires_at": "%s", "other": [1]}' % text.encode()).expires_at is not None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not json",
        b"[]",
        b"null",
        b"{}",
        b'{"expires_at": null}',
        b'{"expires_at": 1700000000}',
        b'{"expires_at": "soon"}',
        b'{"expires_at": "2025-11-18"}',
        b'{"expires_at": "2025-13-40T00:00:00"}',
        b'{"expires_at": "2025-11-18T12:00:00", "expires_at": "2035-11-18T12:00:00"}',
        b'{"expires_at": "2025-11-18T12:00:00", "x": NaN}',
        b'{"expires_at": "2025-11-18T12:00:00"',
        b'\xff{"expires_at": "2025-11-18T12:00:00"}',
        b'{"expires_at": "2025-11-18T12:00:00", "x": ' + b"[" * 30_000,
        b'{"expires_at": "2025-11-18T12:00:00", "x": "' + b"y" * 65536 + b'"}',
    ],
)
def test_a_companion_that_is_not_plainly_a_moment_is_an_error(data: bytes) -> None:
    expiry = read_expiry(data)
    assert expiry.expires_at is None
    assert expiry.error


def test_only_a_full_result_name_has_a_companion() -> None:
    assert companion_name(b"a/x.result.json.lz4") == b"a/x.metadata.json"
    assert companion_name(b"a/.result.json.lz4") is None
    assert companion_name(b"x.json") is None


def test_a_task_id_comes_from_the_named_group_or_the_first() -> None:
    assert task_id_of(changed(AGE, task_id_pattern=r"task-(\d+)"), b"a/task-17/x") == "17"
    assert task_id_of(changed(AGE, task_id_pattern=r"(t)-(?P<task_id>\w+)"), b"t-9") == "9"
    assert task_id_of(changed(AGE, task_id_pattern=r"task-(\d+)"), b"other") is None
    assert task_id_of(AGE, b"task-17") is None


@pytest.mark.parametrize(
    "policy",
    [
        AGE,
        EXPIRY,
        changed(AGE, include=("*.txt", "re:^a"), exclude=("keep/",), verifiers=("redis",), mode="enforce"),
        changed(AGE, naive_timezone=ZoneInfo("Europe/Berlin"), max_files=None, grace_period=timedelta(0)),
        changed(EXPIRY, naive_timezone=timezone(-timedelta(hours=3, minutes=30))),
        changed(AGE, unit="bundle", age_by=frozenset("mMB"), floor=DAY, max_median_factor=3),
        changed(AGE, unit="bundle", bundle_pattern=r"(?P<key>\d+)", rule="watermark", order_by="size"),
        changed(AGE, rule="keep_newest", keep=3, group_pattern=r"^(\w+)-", age=None),
        changed(
            AGE, rule="rows", model="app.Thing", stamp_field="done_at", row_filter='{"a":[1,"x"],"b":null}'
        ),
    ],
)
def test_a_stored_policy_reads_back_equal(policy: Policy) -> None:
    assert policy_from_json(policy_to_json(policy)) == policy


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"name": " "}, "name"),
        ({"age": None}, "age"),
        ({"age": -DAY}, "negative"),
        ({"age_by": frozenset()}, "age_by"),
        ({"age_by": frozenset("x")}, "age_by"),
        ({"rule": "whim"}, "rule"),
        ({"mode": "maybe"}, "mode"),
        ({"grace_period": -DAY}, "grace_period"),
        ({"max_files": -1}, "max_files"),
        ({"max_percent": 101}, "max_percent"),
        ({"include": ("re:(",)}, "include"),
        ({"exclude": ("",)}, "exclude"),
        ({"task_id_pattern": "x"}, "task_id_pattern"),
        ({"unit": "heap"}, "unit"),
        ({"bundle_pattern": "(a)"}, "bundle_pattern means nothing"),
        ({"unit": "bundle", "bundle_pattern": "a"}, "bundle_pattern needs a group"),
        ({"unit": "bundle", "bundle_pattern": "("}, "bundle_pattern cannot"),
        ({"unit": "bundle", "bundle_pattern": "(a)", "age_by": frozenset("mM")}, "A B C M only"),
        ({"age_by": frozenset("M")}, "A B C M only"),
        ({"keep": 3}, "keep means nothing to rule age"),
        ({"group_pattern": "(a)"}, "group_pattern means nothing"),
        ({"order_by": "size"}, "order_by means nothing"),
        ({"model": "app.Thing"}, "model means nothing"),
        ({"row_filter": '{"a":1}'}, "row_filter means nothing"),
        ({"floor": -DAY}, "floor"),
        ({"floor": 8 * DAY}, "floor"),
        ({"rule": "keep_newest"}, "needs keep"),
        ({"rule": "keep_newest", "keep": 0}, "needs keep"),
        ({"rule": "keep_newest", "keep": 1, "group_pattern": "x"}, "group_pattern needs a group"),
        ({"rule": "orphan", "age": None}, "needs an age"),
        ({"rule": "orphan", "unit": "bundle"}, "unit means nothing"),
        ({"rule": "expires_at", "unit": "bundle"}, "unit means nothing"),
        ({"rule": "watermark", "order_by": "whim"}, "order_by"),
        ({"rule": "rows"}, "needs a model"),
        ({"rule": "rows", "model": "Thing"}, "needs a model"),
        ({"rule": "rows", "model": "app.Thing", "age": None}, "needs an age"),
        ({"rule": "rows", "model": "app.Thing", "include": ("*",)}, "include is about files"),
        ({"rule": "rows", "model": "app.Thing", "verifiers": ("redis",)}, "verifiers is about files"),
        ({"rule": "rows", "model": "app.Thing", "row_filter": "[1]"}, "row_filter"),
        ({"rule": "rows", "model": "app.Thing", "stamp_field": "a b"}, "stamp_field"),
    ],
)
def test_a_policy_that_could_not_be_obeyed_is_refused(changes: dict[str, object], word: str) -> None:
    with pytest.raises(PolicyInvalid, match=word):
        changed(AGE, **changes).validate()


def test_a_document_of_before_bundles_reads_as_the_same_policy_and_is_written_again_the_same() -> None:
    old = (
        '{"age":"2d","age_by":["m"],"allow_hardlinks":false,"exclude":[],"grace_period":"1w","include":[],'
        '"max_bytes":100000000000,"max_files":50000,"max_median_factor":10,"max_percent":50,'
        '"max_unknown_percent":5,"mode":"report","naive_timezone":"UTC","name":"old files","rule":"age",'
        '"task_id_pattern":null,"verifiers":[]}'
    )
    assert policy_from_json(old) == AGE
    assert policy_to_json(AGE) == old


def test_equal_filters_are_one_policy_however_they_were_written() -> None:
    assert canonical_filter({"b": 1, "a": [2]}) == canonical_filter({"a": [2], "b": 1}) == '{"a":[2],"b":1}'
    for nonsense in ([], "text", None, {"a": object()}, {"a": float("nan")}):
        with pytest.raises(PolicyInvalid):
            canonical_filter(nonsense)


def test_all_complaints_come_in_one_message() -> None:
    with pytest.raises(PolicyInvalid, match=r"age is negative.*max_files"):
        changed(AGE, age=-DAY, max_files=-1).validate()


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "nonsense", '{"name": 7}', policy_to_json(AGE)[:-1] + ',"x":1}']
)
def test_what_is_no_stored_policy_is_refused(text: str) -> None:
    with pytest.raises(PolicyInvalid):
        policy_from_json(text)


@pytest.mark.parametrize("name", ["UTC", "Europe/Berlin", "+05:45", "-03:30"])
def test_zones_have_names_that_read_back(name: str) -> None:
    assert zone_name(zone_from_name(name)) == name


@pytest.mark.parametrize("name", ["", "Mars/Olympus", "../../etc/passwd", "+99:00", "/etc/localtime"])
def test_an_unknown_zone_is_refused(name: str) -> None:
    with pytest.raises(PolicyInvalid):
        zone_from_name(name)


def test_every_reason_has_a_meaning() -> None:
    assert all(reason.meaning and reason.meaning != reason for reason in Reason)
