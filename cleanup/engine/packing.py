"""How the items of a plan are stored and hashed: batch by batch, never all of them in memory.

Items are stored as MessagePack under zlib, and the digest of a plan runs over exactly those bytes: so a plan
of a million files is hashed while it is made, and checked before it is carried out, without being decoded.
Where a batch ends does not matter to the digest. What cannot be unpacked was tampered with.
"""

import hashlib
import zlib
from collections.abc import Sequence

import msgspec

from cleanup.engine.errors import PlanTampered
from cleanup.engine.items import PlanItem


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """What the items of a plan come to."""

    items: int
    files: int  #: a result with its metadata counts two
    bytes: int
    digest: str  #: SHA-256 over the items as they are stored, in order


_encode = msgspec.msgpack.Encoder().encode
_items_decoder = msgspec.msgpack.Decoder(tuple[PlanItem, ...])


class Counting:
    """Counts and hashes items, batch by batch."""

    def __init__(self) -> None:
        """Start with none."""
        self._hash = hashlib.sha256()
        self._items = self._files = self._bytes = 0

    def add(self, items: Sequence[PlanItem]) -> bytes:
        """Take a batch into account; return it packed, for `squeeze`."""
        data = _encode(items)
        self._hash.update(_without_header(data))
        self._items += len(items)
        self._files += sum([len(item.members) for item in items])
        self._bytes += sum([item.bytes for item in items])
        return data

    def tally(self) -> Tally:
        """Return what was counted so far."""
        return Tally(items=self._items, files=self._files, bytes=self._bytes, digest=self._hash.hexdigest())


class Hashing:
    """Hashes stored batches without looking at the items."""

    def __init__(self) -> None:
        """Start with none."""
        self._hash = hashlib.sha256()

    def add(self, packed: bytes) -> None:
        """Take a stored batch into account.

        Raises:
            PlanTampered: not such a batch.
        """
        self._hash.update(_without_header(_unpacked(packed)))

    def digest(self) -> str:
        """Return the digest of the items, as `Tally.digest` has it."""
        return self._hash.hexdigest()


def squeeze(data: bytes) -> bytes:
    """Compress a packed batch for storage: fast, since it is read twice and then thrown away."""
    return zlib.compress(data, 1)


def encode_items(items: Sequence[PlanItem]) -> bytes:
    """Pack a batch of items for storage: MessagePack under zlib."""
    return squeeze(_encode(items))


def decode_items(data: bytes) -> tuple[PlanItem, ...]:
    """Unpack what `encode_items` packed.

    Raises:
        PlanTampered: not such a batch.
    """
    try:
        return _items_decoder.decode(_unpacked(data))
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise PlanTampered(f"a stored batch of the plan cannot be read: {error}") from error


def _unpacked(data: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        unpacked = unpacker.decompress(data)
    except zlib.error as error:
        raise PlanTampered(f"a stored batch of the plan cannot be read: {error}") from error
    if not unpacker.eof or unpacker.unused_data:
        raise PlanTampered("a stored batch of the plan cannot be read: it does not end where it should")
    return unpacked


def _without_header(data: bytes) -> memoryview:
    """Return the items of a packed array: what is left when the number of items is taken away.

    Raises:
        PlanTampered: no array.
    """
    kind = data[0] if data else 0
    length = {0xDC: 3, 0xDD: 5}.get(kind, 1 if 0x90 <= kind <= 0x9F else 0)
    if not length:
        raise PlanTampered("a stored batch of the plan cannot be read: it is no list of items")
    return memoryview(data)[length:]
