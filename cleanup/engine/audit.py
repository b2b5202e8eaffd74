"""The audit chain: who did what to which file, in an order that cannot be changed unnoticed.

Every step of a file's life is written as an entry that carries the hash of the entry before it, so that a
change, a removal, an insertion or a swap anywhere breaks the chain at a place that `verify_chain` names. A
cut-off tail shows only against a head that was kept elsewhere. Callers hand over an `AuditRecord`; a sink
gives it its number and seals it. This file computes; where entries are kept is a sink's matter:
`MemoryAuditSink` here, `cleanup.engine.auditlog` for a file, and the Django side for the database.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import msgspec

from cleanup.engine.errors import AuditInvalid

#: The "hash before the first entry": 32 zero bytes.
GENESIS = "00" * 32

#: Separates these hashes from every other use of SHA-256 and names the version of the format.
_DOMAIN = b"xnai.audit.v1\0"

#: What is wrong where: of an entry (a number is missing, its hash or its link is wrong), of the head, or of a
#: checkpoint (out of order, another root, a wrong or foreign signature, another copy outside the database, a
#: stretch that was removed without leave, an exported segment that is not what was sealed).
Kind = Literal[
    "gap", "hash", "link", "head", "checkpoint", "root", "signature", "key", "outside", "pruned", "segment"
]

#: The form in its own words. Seven times slower than msgspec, which writes the same for all ASCII but DEL.
_encode = json.JSONEncoder(sort_keys=True, ensure_ascii=True, separators=(",", ":")).encode
_encode_fast = msgspec.json.Encoder(order="deterministic").encode


class AuditRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What happened, before it has a place in the chain."""

    at_us: int  #: microseconds since 1970, UTC
    actor: str  #: a user name, a process, a policy
    actor_kind: str  #: user | system | command
    action: str  #: trashed, purged, restored, approved …
    run: str | None = None
    item: str | None = None  #: trash id, or the row's key
    area: str | None = None  #: uuid of the area
    path: str | None = None  #: below the area, escaped
    size: int | None = None
    policy_version: str | None = None
    reason: str | None = None
    evidence: dict[str, Any] = {}


class AuditEntry(AuditRecord, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A record with its place in the chain."""

    seq: int  #: 1, 2, 3 … without a gap
    prev_hash: str
    hash: str

    def fields(self) -> dict[str, Any]:
        """Return every field, as `entry_hash` and storage want them."""
        return msgspec.structs.asdict(self)


class _Sealed(msgspec.Struct, frozen=True):
    """What is hashed of an entry: every field but the hash, in the order of their names."""

    action: str
    actor: str
    actor_kind: str
    area: str | None
    at_us: int
    evidence: dict[str, Any]
    item: str | None
    path: str | None
    policy_version: str | None
    prev_hash: str
    reason: str | None
    run: str | None
    seq: int
    size: int | None


class ChainReport(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of reading a chain."""

    sound: bool
    entries: int  #: how many were read and found good
    first_bad_seq: int | None = None
    kind: Kind | None = None
    #: Of a flaw that is a checkpoint's: its number. `first_bad_seq` is then where its stretch begins.
    checkpoint: int | None = None
    checkpoints: int = 0  #: how many were read and found good
    #: What is no flaw, and yet worth a sentence: a pruned stretch without its segment, a write cut short.
    notes: tuple[str, ...] = ()


class AuditSink(Protocol):
    """Where entries go.

    `write` returns only when the entries are as durable as the sink promises, numbered without a gap after
    all earlier ones. It writes all of `records` or none. Two writers at once never fork the chain: the
    implementer takes a lock from reading the head until moving it. An empty sequence is allowed and writes
    nothing.
    """

    def write(self, records: Sequence[AuditRecord]) -> list[AuditEntry]:
        """Append `records` in order and return them sealed."""
        ...


def _refuse_ambiguous(value: object) -> None:
    """Raise for what two machines could write differently, or a database could not hold."""
    if value is None or isinstance(value, (bool, int)):
        return
    if isinstance(value, str):
        if not value.isascii():
            _refuse_surrogates(value)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise AuditInvalid(f"audit keys are text, not {type(key).__name__}")
            _refuse_ambiguous(key)
            _refuse_ambiguous(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _refuse_ambiguous(inner)
    else:
        raise AuditInvalid(f"audit values are int, str, bool, None, list or dict, not {type(value).__name__}")


def _refuse_surrogates(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise AuditInvalid("text holds a lone surrogate: escape file names before auditing them") from error


def canonical(entry: Mapping[str, Any]) -> bytes:
    """Return the one spelling of `entry`: JSON, keys sorted, no spaces, ASCII.

    Raises:
        AuditInvalid: for floats, other types, keys that are not text, and text that is not valid Unicode.
    """
    _refuse_ambiguous(entry)
    return _spell(dict(entry))


def _spell(value: Any) -> bytes:
    """Write what `_refuse_ambiguous` let pass."""
    try:
        data = _encode_fast(value)
        if data.isascii() and b"\x7f" not in data:
            return data
    except TypeError:
        pass  # a kind of mapping or of text that msgspec does not know
    except UnicodeEncodeError as error:
        raise AuditInvalid("text holds a lone surrogate: escape file names before auditing them") from error
    plain = msgspec.structs.asdict(value) if isinstance(value, _Sealed) else value
    return _encode(plain).encode("ascii")


def entry_hash(prev_hash: str, fields: Mapping[str, Any]) -> str:
    """Return the hex SHA-256 over the domain prefix and every field but ``hash``, `prev_hash` included."""
    sealed = {key: value for key, value in fields.items() if key != "hash"}
    sealed["prev_hash"] = prev_hash
    return hashlib.sha256(_DOMAIN + canonical(sealed)).hexdigest()


def _hash_of(record: AuditRecord, seq: int, prev_hash: str) -> str:
    """Return what `entry_hash` does, four times as fast."""
    _refuse_types(record)
    sealed = _Sealed(
        record.action, record.actor, record.actor_kind, record.area, record.at_us, record.evidence,
        record.item, record.path, record.policy_version, prev_hash, record.reason, record.run, seq,
        record.size,
    )  # fmt: skip
    return hashlib.sha256(_DOMAIN + _spell(sealed)).hexdigest()


def _refuse_types(record: AuditRecord) -> None:
    """Refuse what is not of its field's type; evidence may hold anything, so it is looked through."""
    if record.evidence:
        _refuse_ambiguous(record.evidence)
    if not isinstance(record.evidence, dict) or not (
        isinstance(record.at_us, int) and isinstance(record.actor, str) and isinstance(record.actor_kind, str)
        and isinstance(record.action, str) and isinstance(record.size, _INT_OR_NONE)
        and isinstance(record.run, _STR_OR_NONE) and isinstance(record.item, _STR_OR_NONE)
        and isinstance(record.area, _STR_OR_NONE) and isinstance(record.path, _STR_OR_NONE)
        and isinstance(record.policy_version, _STR_OR_NONE) and isinstance(record.reason, _STR_OR_NONE)
    ):  # fmt: skip
        raise AuditInvalid("a field of an audit record is not of its type")


_STR_OR_NONE = (str, type(None))
_INT_OR_NONE = (int, type(None))


def seal(records: Sequence[AuditRecord], *, prev_seq: int, prev_hash: str) -> list[AuditEntry]:
    """Number `records` after `prev_seq` and chain them to `prev_hash`; ``(0, GENESIS)`` starts a chain.

    Raises:
        AuditInvalid: for a record that has no single spelling.
    """
    entries: list[AuditEntry] = []
    for seq, record in enumerate(records, prev_seq + 1):
        own = _hash_of(record, seq, prev_hash)
        entries.append(AuditEntry(
            at_us=record.at_us, actor=record.actor, actor_kind=record.actor_kind, action=record.action,
            run=record.run, item=record.item, area=record.area, path=record.path, size=record.size,
            policy_version=record.policy_version, reason=record.reason, evidence=record.evidence,
            seq=seq, prev_hash=prev_hash, hash=own,
        ))  # fmt: skip
        prev_hash = own
    return entries


def flaw_of(entry: AuditEntry, seq: int, prev_hash: str) -> Kind | None:
    """Say what is wrong with `entry` where `seq` and `prev_hash` are expected."""
    if entry.seq != seq:
        return "gap"
    if entry.prev_hash != prev_hash:
        return "link"
    try:
        expected = _hash_of(entry, seq, prev_hash)
    except AuditInvalid:
        return "hash"
    return None if entry.hash == expected else "hash"


def verify_chain(
    entries: Iterable[AuditEntry],
    *,
    head: tuple[int, str] | None,
    start: tuple[int, str] = (0, GENESIS),
) -> ChainReport:
    """Read a chain once, in constant memory, and report the first flaw.

    Args:
        entries: in the order of the chain.
        head: the ``(seq, hash)`` that the last entry must have; None when nothing outside the chain knows it,
            and then a cut-off tail cannot be seen.
        start: the ``(seq, hash)`` before the first entry; the default is the start of the whole chain.
    """
    seq, prev_hash = start
    count = 0
    for entry in entries:
        kind = flaw_of(entry, seq + 1, prev_hash)
        if kind is not None:
            return ChainReport(sound=False, entries=count, first_bad_seq=seq + 1, kind=kind)
        seq, prev_hash, count = entry.seq, entry.hash, count + 1
    if head is not None and head != (seq, prev_hash):
        return ChainReport(sound=False, entries=count, first_bad_seq=min(seq, head[0]) + 1, kind="head")
    return ChainReport(sound=True, entries=count)


class MemoryAuditSink:
    """An audit sink that lasts as long as the process."""

    def __init__(self) -> None:
        """Start an empty chain."""
        self._entries: list[AuditEntry] = []

    def __iter__(self) -> Iterator[AuditEntry]:
        """Yield the entries from the first on."""
        return iter(self._entries)

    def __len__(self) -> int:
        """Count the entries."""
        return len(self._entries)

    @property
    def head(self) -> tuple[int, str]:
        """The number and hash of the last entry, or ``(0, GENESIS)``."""
        return (self._entries[-1].seq, self._entries[-1].hash) if self._entries else (0, GENESIS)

    def write(self, records: Sequence[AuditRecord]) -> list[AuditEntry]:
        """Append `records` in order and return them sealed."""
        seq, prev_hash = self.head
        sealed = seal(records, prev_seq=seq, prev_hash=prev_hash)
        self._entries.extend(sealed)
        return sealed
