"""Rules that see more than one file: keep_newest, watermark, bundles; the pure parts of orphan and rows."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest

from cleanup.engine.candidates import NOTHING
from cleanup.engine.errors import TreeChanged
from cleanup.engine.plan import Hold, Plan, build_plan
from cleanup.engine.policy import Candidate, Policy, Reason, judge, judge_row
from cleanup.engine.verify import Answer, Checked, Subject
from tests.unit.cleanup_engine.kit import AGE, DAY, NOW, a_stat, ns

NEWEST = Policy(name="backups", rule="keep_newest", keep=2)
SPACE = Policy(name="space", rule="watermark")
WHOLE = Policy(name="jobs", rule="age", age=2 * DAY, unit="bundle")
ROWS = Policy(name="rows", rule="rows", age=2 * DAY, model="app.Thing")


def changed(policy: Policy, **changes: object) -> Policy:
    return msgspec.structs.replace(policy, **changes)


def a_file(path: str, *, days: float = 10, **stat: Any) -> Candidate:
    stamp = ns(NOW - timedelta(days=days))
    inode = int.from_bytes(hashlib.sha256(path.encode()).digest()[:6])
    return Candidate(path.encode(), a_stat(**{"mtime_ns": stamp, "inode": inode, **stat}))


def barred(path: str, reason: Reason) -> Candidate:
    return Candidate(path.encode(), NOTHING, None, reason)


def plan(policy: Policy, candidates: Sequence[Candidate], **options: Any) -> Plan:
    return build_plan(policy, candidates, now=NOW, area_uuid="area", **options)


def gone(policy: Policy, candidates: Sequence[Candidate], **options: Any) -> set[str]:
    made = plan(policy, candidates, **options)
    return {member.path.decode() for item in made.items for member in item.members}


# keep_newest


def test_the_newest_of_each_directory_stay() -> None:
    files = [a_file(f"{folder}/{days}", days=days) for folder in "ab" for days in (1, 2, 3, 4)]
    made = plan(NEWEST, files)
    assert {item.shown for item in made.items} == {"a/3", "a/4", "b/3", "b/4"}
    assert {item.reason for item in made.items} == {Reason.BEYOND_KEEP}
    assert made.kept == {"among_newest": 4}


def test_of_equal_stamps_the_last_name_counts_as_newest() -> None:
    files = [a_file(name) for name in ("c", "a", "d", "b")]
    assert gone(NEWEST, files) == {"a", "b"}


def test_a_stamp_of_the_future_counts_as_newest_and_never_goes() -> None:
    files = [a_file("soon", days=-1), a_file("later", days=-2), a_file("latest", days=-3), a_file("old")]
    made = plan(NEWEST, files)
    assert [item.shown for item in made.items] == ["old"]
    assert made.kept == {"among_newest": 2, "future_timestamp": 1}


def test_keep_newest_heeds_a_least_age_if_it_has_one() -> None:
    files = [a_file(str(days), days=days) for days in (1, 2, 3, 20)]
    made = plan(changed(NEWEST, age=7 * DAY), files)
    assert [item.shown for item in made.items] == ["20"]
    assert made.kept == {"among_newest": 2, "younger_than_age": 1}


def test_groups_follow_a_key_and_what_has_none_stays() -> None:
    policy = changed(NEWEST, keep=1, group_pattern=r"(?P<key>db|web)-")
    files = [a_file("x/db-1", days=5), a_file("y/db-2", days=4), a_file("x/web-1"), a_file("x/other")]
    made = plan(policy, files)
    assert [item.shown for item in made.items] == ["x/db-1"]
    assert made.kept == {"among_newest": 2, "no_key": 1}


def test_what_is_barred_or_of_unknown_age_takes_no_place_among_the_newest() -> None:
    policy = changed(NEWEST, keep=1, exclude=("*.part",), age_by=frozenset("bm"))
    files = [
        a_file("a.part", days=1, btime_ns=1), a_file("linked", days=1, nlink=2, btime_ns=1),
        a_file("unborn", days=1, btime_ns=None), a_file("old", days=20, btime_ns=1),
    ]  # fmt: skip
    assert gone(policy, files) == set()


def test_a_held_file_takes_its_place_and_stays() -> None:
    files = [a_file("1", days=1), a_file("2", days=2), a_file("3", days=3), a_file("4", days=4)]
    assert gone(NEWEST, files, holds=[Hold(pattern="1"), Hold(pattern="4")]) == {"3"}


def test_a_file_that_the_walk_met_twice_pushes_nobody_out() -> None:
    moved = [a_file("a/new", days=1, inode=7), a_file("a/renamed", days=1, inode=7)]
    assert gone(NEWEST, [*moved, a_file("a/old", days=9)]) == set()


# watermark


def test_a_watermark_takes_the_oldest_until_it_is_enough_and_not_one_more() -> None:
    files = [a_file(f"{days:02}", days=days, size=100) for days in range(1, 11)]
    made = plan(SPACE, files, needed=250)
    assert [item.shown for item in made.items] == ["08", "09", "10"]
    assert made.kept == {"not_needed": 7}
    assert made.kept_bytes == {"not_needed": 700}
    assert gone(SPACE, files, needed=300) == {"08", "09", "10"}
    assert gone(SPACE, files, needed=301) == {"07", "08", "09", "10"}


def test_a_watermark_by_size_takes_the_largest() -> None:
    files = [a_file(f"f{size}", size=size) for size in (1, 50, 7, 50_000)]
    assert gone(changed(SPACE, order_by="size"), files, needed=50_010) == {"f50000", "f50"}


def test_a_watermark_that_is_not_reached_takes_nothing() -> None:
    assert gone(SPACE, [a_file("a")]) == set()


def test_a_watermark_heeds_holds_bars_and_its_least_age_and_says_what_they_block() -> None:
    files = [
        a_file("held", days=40), a_file("linked", days=40, nlink=2), a_file("young", days=1),
        a_file("free", days=3), a_file("future", days=-1),
    ]  # fmt: skip
    made = plan(changed(SPACE, age=2 * DAY), files, needed=10**6, holds=[Hold(pattern="held")])
    assert [item.shown for item in made.items] == ["free"]
    assert made.kept_bytes == {
        "future_timestamp": 100, "hard_linked": 100, "held": 100, "younger_than_age": 100,
    }  # fmt: skip


def test_where_verifiers_keep_the_oldest_a_watermark_goes_on_and_stops_in_time() -> None:
    asked: list[str] = []

    def ask(subjects: Sequence[Subject]) -> list[Checked]:
        asked.extend(subject.path for subject in subjects)
        return [Checked(Answer.FAIL if one.path in ("10", "08") else Answer.PASS) for one in subjects]

    files = [a_file(f"{days:02}", days=days) for days in range(1, 11)]
    policy = changed(SPACE, verifiers=("v",))
    made = plan(policy, files, needed=150, ask=ask)
    assert {item.shown for item in made.items} == {"09", "07"}
    assert made.kept == {"not_needed": 6, "verifier_failed": 2}
    asked.clear()
    assert gone(policy, files, needed=0, ask=ask) == set()
    assert asked == []


# Bundles


def test_a_directory_goes_as_one_thing_when_its_newest_file_may_go() -> None:
    old = [a_file("job-1/a", days=9), a_file("job-1/sub/b", days=3)]
    young = [a_file("job-2/a", days=9), a_file("job-2/b", days=1)]
    made = plan(WHOLE, [*old, *young, a_file("loose")])
    assert [[one.path for one in item.members] for item in made.items] == [
        [b"job-1/a", b"job-1/sub/b"], [b"loose"],
    ]  # fmt: skip
    assert made.items[0].detail == "bundle job-1"
    assert made.items[0].bytes == 200
    assert (made.files, made.kept) == (3, {"younger_than_age": 2})


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (a_file("job-1/x", nlink=2), "hard_linked"),
        (a_file("job-1/x.part"), "excluded"),
        (barred("job-1/x", Reason.SYMLINK), "symlink"),
        (barred("job-1/x", Reason.SPECIAL), "special"),
        (barred("job-1/x", Reason.MOUNT_POINT), "mount_point"),
        (barred("job-1/x", Reason.NESTED_AREA), "nested_area"),
        (barred("job-1/x", Reason.UNREADABLE), "unreadable"),
        (barred("job-1/x", Reason.VANISHED), "vanished"),
        (a_file("job-1/held"), "held"),
        (a_file("job-1/x", days=-1), "future_timestamp"),
    ],
)
def test_one_member_that_must_stay_keeps_the_whole_bundle_and_is_named(bad: Candidate, reason: str) -> None:
    told: dict[bytes, tuple[str, str]] = {}
    made = plan(
        changed(WHOLE, exclude=("*.part",)), [a_file("job-1/a"), bad, a_file("job-1/z"), a_file("job-2/a")],
        holds=[Hold(pattern="held")],
        on_kept=lambda path, why, detail, _: told.__setitem__(path, (str(why), detail)),
    )  # fmt: skip
    assert [item.shown for item in made.items] == ["job-2/a"]
    assert told[b"job-1/a"] == told[b"job-1/z"]
    assert told[b"job-1/a"][0] == reason
    assert told[b"job-1/a"][1].startswith(bad.path.decode())


def test_files_of_one_key_go_together_wherever_they_are() -> None:
    policy = changed(WHOLE, bundle_pattern=r"(?P<key>\d+)\.(?:raw|json)$")
    files = [a_file("raw/1.raw"), a_file("meta/1.json", days=1), a_file("raw/2.raw"), a_file("meta/2.json")]
    made = plan(policy, [*files, a_file("notes")])
    assert [[one.path for one in item.members] for item in made.items] == [[b"meta/2.json", b"raw/2.raw"]]
    assert made.kept == {"no_key": 1, "younger_than_age": 2}


def test_the_stamps_of_directories_count_where_the_policy_says_so() -> None:
    touched = Candidate(b"job-1/sub", a_stat(kind="dir", mtime_ns=ns(NOW - DAY)))
    files = [a_file("job-1/a"), touched]
    assert gone(changed(WHOLE, age_by=frozenset("mM")), files) == set()
    assert gone(changed(WHOLE, age_by=frozenset("mA")), files) == {"job-1/a"}
    assert gone(changed(WHOLE, age_by=frozenset("M")), [a_file("loose")]) == set()


def test_a_bundle_takes_one_place_among_the_newest() -> None:
    policy = changed(NEWEST, unit="bundle", keep=1)
    ages = {"b-1/a": 9, "b-1/b": 1, "b-2/a": 2, "b-2/b": 3}
    files = [a_file(name, days=days) for name, days in ages.items()]
    assert gone(policy, files) == {"b-2/a", "b-2/b"}


def test_a_bundle_counts_whole_for_a_watermark() -> None:
    files = [a_file("b-1/a", days=9), a_file("b-1/b", days=8), a_file("b-2/a", days=2)]
    assert gone(changed(SPACE, unit="bundle"), files, needed=1) == {"b-1/a", "b-1/b"}


def test_every_member_of_a_bundle_is_asked_about() -> None:
    def ask(subjects: Sequence[Subject]) -> list[Checked]:
        said = {"job-1/b": Answer.FAIL, "job-2/b": Answer.UNKNOWN}
        return [Checked(said.get(one.path, Answer.PASS), {"v": one.path}) for one in subjects]

    files = [a_file(f"job-{number}/{name}") for number in (1, 2, 3) for name in "abc"]
    made = plan(changed(WHOLE, verifiers=("v",)), files, ask=ask)
    assert [item.shown for item in made.items] == ["job-3/a"]
    assert made.kept == {"unverified": 1, "verifier_failed": 1}


def test_a_bundle_of_several_tasks_cannot_be_verified() -> None:
    policy = changed(WHOLE, verifiers=("v",), task_id_pattern=r"t(\d)")
    files = [a_file("a/t1"), a_file("a/t2"), a_file("b/t3"), a_file("b/other")]
    made = plan(policy, files, ask=lambda subjects: [Checked(Answer.PASS)] * len(subjects))
    assert [(item.shown, item.task_id) for item in made.items] == [("b/other", "3")]
    assert made.kept == {"unverified": 2}


def test_a_walk_that_comes_back_to_a_directory_is_not_trusted() -> None:
    with pytest.raises(TreeChanged):
        plan(WHOLE, [a_file("a/1"), a_file("b/1"), a_file("a/2")])


@pytest.mark.parametrize("seed", range(20))
def test_the_order_of_the_walk_makes_no_difference(seed: int) -> None:
    draw = random.Random(seed)
    files = [a_file(f"d{draw.randrange(3)}/{n}", days=draw.randrange(-1, 8), size=n % 5) for n in range(40)]
    policies = [
        NEWEST, changed(NEWEST, group_pattern=r"/(\d)"), changed(WHOLE, bundle_pattern=r"(\d)$"),
        changed(SPACE, order_by=draw.choice(["age", "size"]), age=DAY),
    ]  # fmt: skip
    for policy in policies:
        one = plan(policy, files, needed=11)
        draw.shuffle(files)
        other = plan(policy, files, needed=11)
        assert (one.items, one.kept, one.kept_bytes) == (other.items, other.kept, other.kept_bytes)


# orphan, rows


def test_an_orphan_goes_when_it_is_older_than_the_longest_job() -> None:
    policy = changed(AGE, rule="orphan")
    assert judge(policy, a_file("a"), now=NOW).reason is Reason.ORPHANED
    assert judge(policy, a_file("a", days=1), now=NOW).reason is Reason.YOUNGER_THAN_AGE


def test_rules_that_compare_judge_no_file_alone() -> None:
    for policy in (NEWEST, SPACE, WHOLE, ROWS):
        with pytest.raises(ValueError, match="compares"):
            judge(policy, a_file("a"), now=NOW)


@pytest.mark.parametrize(
    ("stamp", "reason"),
    [
        (NOW - 2 * DAY - timedelta(microseconds=1), Reason.OLDER_THAN_AGE),
        (NOW - 2 * DAY, Reason.YOUNGER_THAN_AGE),
        (NOW + DAY, Reason.FUTURE_TIMESTAMP),
        (None, Reason.UNKNOWN_TIMESTAMP),
    ],
)
def test_a_row_goes_by_its_stamp(stamp: datetime | None, reason: Reason) -> None:
    verdict = judge_row(ROWS, b"app.Thing/7", stamp, now=NOW)
    assert verdict.reason is reason
    assert verdict.members == ((b"app.Thing/7",) if reason is Reason.OLDER_THAN_AGE else ())


def test_rows_and_files_are_not_mistaken_for_each_other() -> None:
    with pytest.raises(ValueError, match="files"):
        judge_row(AGE, b"x", NOW, now=NOW)
    with pytest.raises(ValueError, match="rows"):
        plan(ROWS, [a_file("a")])
