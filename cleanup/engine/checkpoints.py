"""Checkpoints: sealed stretches of the audit chain.

Every hour or 10,000 entries those since the last checkpoint are sealed: the Merkle root of their hashes, the
hash of the last one, the hash of the checkpoint before, and an Ed25519 signature. A checkpoint is kept in the
database and as a line of a file outside it, so that a cut-off tail and a chain that was computed anew are
found. When the entries of a stretch are removed after an export, the checkpoint stays, with a signed `Pruned`
beside it. Nothing here touches a disk.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from cleanup.engine.audit import GENESIS, AuditEntry, Kind, canonical, flaw_of
from cleanup.engine.merkle import merkle_root
from cleanup.engine.signing import KeyRing, Signer

#: Entries in one checkpoint at most: so much of a chain is named when a root is wrong.
STRETCH = 10_000

#: The "checkpoint before the first".
NO_CHECKPOINT = GENESIS

_DOMAIN = b"xnai.audit.checkpoint.v1\0"
_PRUNED = b"xnai.audit.pruned.v1\0"


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type",
                 tag="checkpoint"):  # fmt: skip
    """The seal on entries `first_seq` to `last_seq`."""

    number: int  #: 1, 2, 3 … without a gap
    first_seq: int
    last_seq: int
    merkle_root: str
    head_hash: str  #: hash of the entry `last_seq`
    prev_hash: str  #: hash of the checkpoint before
    at_us: int
    key_id: str
    signature: str = ""  #: Ed25519 over ``xnai.audit.checkpoint.v1`` NUL and the 32 bytes of `hash`
    hash: str = ""

    @property
    def size(self) -> int:
        """How many entries it seals."""
        return self.last_seq - self.first_seq + 1


class Pruned(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type",
             tag="pruned"):  # fmt: skip
    """The leave to remove the entries of a checkpoint, given by whoever held the key."""

    number: int  #: of the checkpoint
    segment: str  #: name of the exported file
    segment_sha256: str
    at_us: int
    key_id: str
    signature: str = ""


class Flaw(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong, and from which entry on."""

    seq: int
    kind: Kind
    #: Entries that were read before it and are good.
    entries: int = 0


def checkpoint_hash(checkpoint: Checkpoint) -> str:
    """Return the hex SHA-256 over the domain prefix and every field but hash and signature."""
    return hashlib.sha256(_DOMAIN + _spelled(checkpoint, {"hash", "signature"})).hexdigest()


def _spelled(value: msgspec.Struct, without: set[str]) -> bytes:
    fields: dict[str, Any] = msgspec.structs.asdict(value)
    return canonical({name: fields[name] for name in fields if name not in without})


def seal_checkpoint(
    hashes: Sequence[str], *, after: Checkpoint | None, at_us: int, signer: Signer
) -> Checkpoint:
    """Seal the entries with these hashes, which follow those that `after` seals."""
    first = after.last_seq + 1 if after else 1
    plain = Checkpoint(
        number=after.number + 1 if after else 1,
        first_seq=first,
        last_seq=first + len(hashes) - 1,
        merkle_root=merkle_root(hashes),
        head_hash=hashes[-1],
        prev_hash=after.hash if after else NO_CHECKPOINT,
        at_us=at_us,
        key_id=signer.key_id,
    )
    own = checkpoint_hash(plain)
    signature = signer.sign(_DOMAIN + bytes.fromhex(own))
    return msgspec.structs.replace(plain, hash=own, signature=signature)


def flaw_of_checkpoint(checkpoint: Checkpoint, *, after: Checkpoint | None, ring: KeyRing) -> Kind | None:
    """Say what is wrong with a checkpoint that should follow `after`: place, hash, key or signature."""
    number, first, prev_hash = 1, 1, NO_CHECKPOINT
    if after is not None:
        number, first, prev_hash = after.number + 1, after.last_seq + 1, after.hash
    if (checkpoint.number, checkpoint.first_seq, checkpoint.prev_hash) != (number, first, prev_hash):
        return "checkpoint"
    return flaw_of_seal(checkpoint, ring=ring, oldest=after.key_id if after else "")


def flaw_of_seal(checkpoint: Checkpoint, *, ring: KeyRing, oldest: str = "") -> Kind | None:
    """Say what is wrong with a checkpoint on its own: its hash, its key, or its signature.

    Args:
        checkpoint: the checkpoint.
        ring: the keys that are trusted.
        oldest: a retired key seals nothing: none that is older than this one counts.
    """
    if checkpoint.last_seq < checkpoint.first_seq or checkpoint.hash != checkpoint_hash(checkpoint):
        return "checkpoint"
    order = ring.order(checkpoint.key_id)
    if order is None or order < (ring.order(oldest) or 0):
        return "key"
    message = _DOMAIN + bytes.fromhex(checkpoint.hash)
    return None if ring.verifies(checkpoint.key_id, message, checkpoint.signature) else "signature"


def flaw_of_stretch(
    entries: Iterable[AuditEntry], checkpoint: Checkpoint, *, prev_hash: str | None
) -> Flaw | None:
    """Read the entries that a checkpoint seals and say what is wrong with the first that is not as sealed.

    A chain that was computed anew fits in itself: then the root tells, and names the whole stretch.

    Args:
        entries: from `first_seq` on, none beyond `last_seq`.
        checkpoint: one that has no flaw of its own.
        prev_hash: hash of the entry before; None for a segment on its own, whose first entry names it.
    """
    seq = checkpoint.first_seq - 1
    hashes: list[str] = []
    for entry in entries:
        link = entry.prev_hash if prev_hash is None else prev_hash
        kind = flaw_of(entry, seq + 1, link)
        if kind is not None:
            return Flaw(seq=seq + 1, kind=kind, entries=len(hashes))
        seq, prev_hash = entry.seq, entry.hash
        hashes.append(entry.hash)
    if seq < checkpoint.last_seq:
        return Flaw(seq=seq + 1, kind="gap", entries=len(hashes))
    if hashes[-1] != checkpoint.head_hash or merkle_root(hashes) != checkpoint.merkle_root:
        return Flaw(seq=checkpoint.first_seq, kind="root")
    return None


def sign_pruned(checkpoint: Checkpoint, *, segment: str, sha256: str, at_us: int, signer: Signer) -> Pruned:
    """Give leave to remove the entries that `checkpoint` seals, `segment` being what is left of them."""
    plain = Pruned(
        number=checkpoint.number, segment=segment, segment_sha256=sha256, at_us=at_us, key_id=signer.key_id
    )
    return msgspec.structs.replace(plain, signature=signer.sign(_PRUNED + _spelled(plain, {"signature"})))


def is_leave(pruned: Pruned, *, ring: KeyRing) -> bool:
    """Tell whether a key of the ring has signed it."""
    return ring.verifies(pruned.key_id, _PRUNED + _spelled(pruned, {"signature"}), pruned.signature)
