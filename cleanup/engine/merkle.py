"""Merkle trees over the hashes of audit entries, as RFC 9162 (section 2.1) defines them.

A checkpoint holds one root for up to 10,000 entries. Leaves and nodes are hashed under different prefixes, so
that no node can be passed off as a leaf; a node without a sibling moves up as it is, for to double it would
give two lists the same root. A proof is the siblings on the way from a leaf to the root: with it somebody who
knows the root can check one entry without the others.
"""

import hashlib
from collections.abc import Sequence

_LEAF = b"\0"
_NODE = b"\1"


def leaf_hash(entry_hash: str) -> bytes:
    """Return the leaf of an entry, from the hex of its hash."""
    return hashlib.sha256(_LEAF + bytes.fromhex(entry_hash)).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(_NODE + left + right).digest()


def _above(level: Sequence[bytes]) -> list[bytes]:
    """Join the pairs of a level; the odd one out moves up."""
    joined = [_node(level[place], level[place + 1]) for place in range(0, len(level) - 1, 2)]
    return [*joined, level[-1]] if len(level) % 2 else joined


def merkle_root(entry_hashes: Sequence[str]) -> str:
    """Return the hex root over the hashes of entries, in their order.

    Raises:
        ValueError: there are none, or one is not hex.
    """
    if not entry_hashes:
        raise ValueError("a tree has at least one leaf")
    level = [leaf_hash(entry_hash) for entry_hash in entry_hashes]
    while len(level) > 1:
        level = _above(level)
    return level[0].hex()


def merkle_path(entry_hashes: Sequence[str], index: int) -> list[str]:
    """Return the hex siblings of leaf `index`, the nearest first."""
    level = [leaf_hash(entry_hash) for entry_hash in entry_hashes]
    path = []
    while len(level) > 1:
        if (index ^ 1) < len(level):
            path.append(level[index ^ 1].hex())
        level, index = _above(level), index // 2
    return path


def root_of_path(entry_hash: str, *, index: int, size: int, path: Sequence[str]) -> str:
    """Return the hex root that a leaf, its place among `size` leaves and its siblings make.

    Raises:
        ValueError: the path is not as long as it must be for that place, or is not hex.
    """
    if not 0 <= index < size:
        raise ValueError(f"there is no leaf {index} of {size}")
    node, last, left = leaf_hash(entry_hash), size - 1, list(path)
    while last:
        if index % 2 or index < last:
            if not left:
                raise ValueError("the path is too short")
            sibling = bytes.fromhex(left.pop(0))
            node = _node(sibling, node) if index % 2 else _node(node, sibling)
        index, last = index // 2, last // 2
    if left:
        raise ValueError("the path is too long")
    return node.hex()
