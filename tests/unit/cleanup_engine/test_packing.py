"""Plans are hashed and stored batch by batch; where a batch ends, nobody can tell from the digest."""

from __future__ import annotations

import zlib

import msgspec
import pytest

from cleanup.engine.errors import PlanTampered
from cleanup.engine.items import Member, PlanItem
from cleanup.engine.packing import Counting, Hashing, decode_items, encode_items, squeeze
from cleanup.engine.reasons import Reason


def an_item(number: int, members: int = 1) -> PlanItem:
    found = tuple(Member(b"dir/%d.%d" % (number, index), 1, 10 + number, 7, 5) for index in range(members))
    return PlanItem(found[0].path, found, 7 * members, Reason.OLDER_THAN_AGE, evidence={"b": "1", "a": "2"})


ITEMS = [an_item(number, members=1 + number % 3) for number in range(70_000 // 350)]


def counted(size: int) -> tuple[Counting, list[bytes]]:
    counting = Counting()
    batches = [ITEMS[start : start + size] for start in range(0, len(ITEMS), size)]
    return counting, [squeeze(counting.add(batch)) for batch in batches]


@pytest.mark.parametrize("size", [1, 15, 16, 100, 1_000])
def test_the_digest_does_not_depend_on_where_batches_end(size: int) -> None:
    counting, stored = counted(size)
    hashing = Hashing()
    for body in stored:
        hashing.add(body)
    assert hashing.digest() == counting.tally().digest == counted(7)[0].tally().digest


def test_a_batch_longer_than_65_535_items_is_hashed_like_any_other() -> None:
    many = [an_item(1)] * 70_000
    whole, parts = Counting(), Counting()
    whole.add(many)
    for start in range(0, len(many), 1_000):
        parts.add(many[start : start + 1_000])
    assert whole.tally() == parts.tally()


def test_a_tally_counts_items_files_and_bytes() -> None:
    tally = counted(16)[0].tally()
    files = sum(len(item.members) for item in ITEMS)
    assert (tally.items, tally.files, tally.bytes) == (len(ITEMS), files, 7 * files)


def test_an_item_more_less_or_elsewhere_is_another_digest() -> None:
    def digest(items: list[PlanItem]) -> str:
        counting = Counting()
        counting.add(items)
        return counting.tally().digest

    assert len({digest(ITEMS[:3]), digest(ITEMS[:2]), digest(ITEMS[2::-1]), digest([])}) == 4


def test_what_was_stored_reads_back_equal() -> None:
    assert decode_items(encode_items(ITEMS)) == tuple(ITEMS)
    assert decode_items(counted(1_000)[1][0]) == tuple(ITEMS)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"x",
        encode_items(ITEMS)[:-3],
        encode_items(ITEMS) + b"more",
        zlib.compress(b""),
        zlib.compress(msgspec.msgpack.encode("text")),
    ],
    ids=["empty", "no zlib", "cut off", "with a tail", "nothing in it", "no list"],
)
def test_a_stored_batch_that_is_none_is_refused(body: bytes) -> None:
    with pytest.raises(PlanTampered):
        Hashing().add(body)
    with pytest.raises(PlanTampered):
        decode_items(body)
