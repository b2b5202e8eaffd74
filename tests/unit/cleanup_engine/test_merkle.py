"""Merkle roots and paths over the hashes of entries."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest

from cleanup.engine.merkle import merkle_path, merkle_root, root_of_path

HASHES = [hashlib.sha256(bytes([number])).hexdigest() for number in range(70)]


def by_the_book(leaves: Sequence[str]) -> bytes:
    """RFC 9162, section 2.1.1: split at the largest power of two below the size."""
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + bytes.fromhex(leaves[0])).digest()
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\1" + by_the_book(leaves[:split]) + by_the_book(leaves[split:])).digest()


@pytest.mark.parametrize("size", range(1, 70))
def test_the_root_is_that_of_the_rfc_and_every_path_leads_to_it(size: int) -> None:
    leaves = HASHES[:size]
    root = merkle_root(leaves)
    assert root == by_the_book(leaves).hex()
    for index, leaf in enumerate(leaves):
        assert root_of_path(leaf, index=index, size=size, path=merkle_path(leaves, index)) == root


def test_a_doubled_last_leaf_has_another_root() -> None:
    assert merkle_root(HASHES[:3]) != merkle_root([*HASHES[:3], HASHES[2]])


def test_a_node_cannot_be_passed_off_as_a_leaf() -> None:
    inner = hashlib.sha256(b"\1" + b"".join(hashlib.sha256(b"\0" + bytes.fromhex(leaf)).digest()
                                            for leaf in HASHES[:2])).hexdigest()  # fmt: skip
    assert merkle_root([inner]) != merkle_root(HASHES[:2])


def test_a_path_fits_one_leaf_at_one_place_alone() -> None:
    path = merkle_path(HASHES[:11], 6)
    root = merkle_root(HASHES[:11])
    assert root_of_path(HASHES[7], index=6, size=11, path=path) != root
    assert root_of_path(HASHES[6], index=7, size=11, path=path) != root
    for wrong in (path[:-1], [*path, path[0]], ["zz", *path[1:]]):
        with pytest.raises(ValueError, match=r"path|hex"):
            root_of_path(HASHES[6], index=6, size=11, path=wrong)


def test_a_tree_without_leaves_and_a_place_outside_it_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        merkle_root([])
    with pytest.raises(ValueError, match="no leaf 3"):
        root_of_path(HASHES[0], index=3, size=3, path=[])
