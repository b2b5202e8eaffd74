"""Plans: what goes in, the digest, the brakes, storage."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from datetime import timedelta

import msgspec
import pytest

from cleanup.engine.errors import PlanStale, PlanTampered, PolicyInvalid
from cleanup.engine.plan import Hold, Plan, brakes, build_plan, decode_items, encode_items
from cleanup.engine.policy import Candidate, Companion, Policy, Reason
from cleanup.engine.verify import Answer, Checked, Subject
from tests.unit.cleanup_engine.kit import AGE, DAY, EXPIRY, NOW, a_stat, ns

OLD = [Candidate(b"dir/b", a_stat(inode=5)), Candidate(b"dir/a\n", a_stat(inode=6, size=7))]
YOUNG = Candidate(b"young", a_stat(mtime_ns=ns(NOW)))


def plan(candidates: Sequence[Candidate] = (*OLD, YOUNG), policy: Policy = AGE, **options: object) -> Plan:
    return build_plan(policy, candidates, now=NOW, area_uuid="area-1", **options)  # type: ignore[arg-type]


def changed(policy: Policy, **changes: object) -> Policy:
    return msgspec.structs.replace(policy, **changes)


def test_a_plan_lists_what_goes_by_path_with_its_identity() -> None:
    made = plan()
    assert [item.path for item in made.items] == [b"dir/a\n", b"dir/b"]
    member = made.items[0].members[0]
    assert (member.path, member.device, member.inode, member.size) == (b"dir/a\n", 1, 6, 7)
    assert (made.files, made.bytes, made.scanned) == (2, 107, 3)
    assert made.kept == {"younger_than_age": 1}
    assert made.expires_at == NOW + DAY


def test_each_kept_candidate_is_told_with_its_reason() -> None:
    told: list[tuple[bytes, Reason, str, int]] = []
    plan(on_kept=lambda *kept: told.append(kept))
    assert told == [(b"young", Reason.YOUNGER_THAN_AGE, "", YOUNG.stat.size)]


def test_a_result_and_its_metadata_are_one_item_of_two_files() -> None:
    companion = Companion(b"r.metadata.json", a_stat(inode=9, size=20), NOW - DAY)
    made = plan([Candidate(b"r.result.json.lz4", a_stat(), companion)], EXPIRY)
    assert [member.path for member in made.items[0].members] == [b"r.result.json.lz4", b"r.metadata.json"]
    assert (len(made.items), made.files, made.bytes) == (1, 2, 120)


def test_a_bad_companion_is_an_error_in_the_plan() -> None:
    companion = Companion(b"r.metadata.json", a_stat(), None, "no expires_at")
    made = plan([Candidate(b"r.result.json.lz4", a_stat(), companion)], EXPIRY)
    assert made.errors == (("r.result.json.lz4", "no expires_at"),)
    assert made.items == ()


def test_a_hold_keeps_what_it_matches_until_it_ends() -> None:
    assert plan(holds=[Hold(pattern="dir/")]).kept["held"] == 2
    assert plan(holds=[Hold(pattern="b", until=NOW + DAY)]).kept["held"] == 1
    assert "held" not in plan(holds=[Hold(pattern="b", until=NOW)]).kept


def test_a_path_seen_twice_is_planned_once() -> None:
    assert len(plan([*OLD, *OLD]).items) == 2


def test_what_is_not_verified_is_kept() -> None:
    def ask(subjects: Sequence[Subject]) -> list[Checked]:
        said = {"t1": Answer.PASS, "t2": Answer.FAIL, None: Answer.UNKNOWN}
        return [Checked(said[subject.task_id], {"redis": "it says"}) for subject in subjects]

    candidates = [Candidate(name, a_stat()) for name in (b"t1.txt", b"t2.txt", b"other")]
    policy = changed(AGE, verifiers=("redis",), task_id_pattern=r"(t\d)\.txt")
    made = plan(candidates, policy, ask=ask)
    assert [item.path for item in made.items] == [b"t1.txt"]
    assert made.items[0].evidence == {"redis": "it says"}
    assert made.items[0].task_id == "t1"
    assert made.kept == {"unverified": 1, "verifier_failed": 1}


def test_verifiers_that_nobody_asks_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="verifiers"):
        plan(policy=changed(AGE, verifiers=("redis",)))


def test_a_policy_that_could_not_be_obeyed_makes_no_plan() -> None:
    with pytest.raises(PolicyInvalid):
        plan(policy=changed(AGE, age=None))


def test_the_digest_does_not_depend_on_the_order_of_the_walk() -> None:
    assert plan([*OLD, YOUNG]).digest == plan([YOUNG, *reversed(OLD)]).digest


@pytest.mark.parametrize(
    "other",
    [
        [Candidate(b"dir/b", a_stat(inode=55)), OLD[1]],
        [Candidate(b"dir/b", a_stat(inode=5, device=2)), OLD[1]],
        [Candidate(b"dir/b", a_stat(inode=5, size=1)), OLD[1]],
        [Candidate(b"dir/b", a_stat(inode=5, mtime_ns=7)), OLD[1]],
        [Candidate(b"dir/B", a_stat(inode=5)), OLD[1]],
        OLD[:1],
    ],
)
def test_any_change_changes_the_digest(other: list[Candidate]) -> None:
    assert plan(other).digest != plan(OLD).digest


def test_area_policy_and_time_are_part_of_the_digest() -> None:
    made = plan()
    for field, value in (("area_uuid", "x"), ("policy_json", "{}"), ("expires_at", NOW)):
        assert msgspec.structs.replace(made, **{field: value}).digest != made.digest


def test_an_expired_or_changed_plan_is_refused() -> None:
    made = plan()
    made.check(now=NOW + DAY, digest=made.digest)
    with pytest.raises(PlanStale):
        made.check(now=NOW + DAY + timedelta(microseconds=1))
    with pytest.raises(PlanTampered):
        made.check(now=NOW, digest="0" * 64)


def test_stored_items_read_back_equal() -> None:
    made = plan()
    assert decode_items(encode_items(made.items)) == made.items


@pytest.mark.parametrize(
    "data", [b"", b"x", zlib.compress(b"x"), zlib.compress(b"\x91\xc0"), encode_items([])[:-3]]
)
def test_a_damaged_batch_is_refused(data: bytes) -> None:
    with pytest.raises(PlanTampered):
        decode_items(data)


def hits(policy: Policy, *, total: int = 1000, history: Sequence[int] = ()) -> dict[str, int]:
    made = plan(policy=policy)
    return {hit.brake: hit.value for hit in brakes(made, policy, total_files=total, history=history)}


def test_a_small_plan_meets_no_brake() -> None:
    assert hits(AGE) == {}


def test_each_limit_brakes_above_it_and_not_at_it() -> None:
    assert hits(changed(AGE, max_files=2)) == {}
    assert hits(changed(AGE, max_files=1)) == {"max_files": 2}
    assert hits(changed(AGE, max_bytes=107)) == {}
    assert hits(changed(AGE, max_bytes=106)) == {"max_bytes": 107}
    assert hits(AGE, total=4) == {}
    assert hits(AGE, total=3) == {"max_percent": 67}
    assert hits(changed(AGE, max_percent=None), total=2) == {}


def test_the_habit_of_earlier_runs_brakes_from_the_fifth_on() -> None:
    policy = changed(AGE, max_median_factor=1)
    assert hits(policy, history=[1, 1, 1, 1]) == {}
    assert hits(policy, history=[1, 1, 1, 1, 1]) == {"max_median_factor": 2}
    assert hits(policy, history=[0, 0, 0, 0, 0]) == {"max_median_factor": 2}
    assert hits(policy, history=[1] * 5 + [2] * 30) == {}


def test_too_much_doubt_brakes() -> None:
    policy = changed(AGE, verifiers=("redis",))
    unknown = [Checked(Answer.PASS), Checked(Answer.UNKNOWN)]
    made = plan(policy=policy, ask=lambda subjects: unknown)
    assert [(hit.brake, hit.value) for hit in brakes(made, policy, total_files=1000)] == [
        ("max_unknown_percent", 50)
    ]
