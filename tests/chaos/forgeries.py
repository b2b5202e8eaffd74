"""What a forger may do to the audit, and what has to be found: for the test of promise P24.

A forger has the database's password and may write the file outside it, but does not have the private key.
Each forgery says the kind and the first entry that a reading has to name.
"""

# ruff: noqa: S608  (the names in these statements are our own)

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cleanup.engine.audit import AuditEntry, Kind, seal
from cleanup.engine.checkpoints import _DOMAIN, Checkpoint, checkpoint_hash, seal_checkpoint
from cleanup.engine.signing import Signer
from cleanup.stores import entries
from cleanup.stores.audit import _FIELDS, _row
from tests.auditing import AuditFiles, sql

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Checkpoint).decode

COLUMNS = ("at_us", "actor", "actor_kind", "action", "run", "item", "area", "path", "size", "policy_version",
           "reason", "evidence", "prev_hash", "hash")  # fmt: skip
NUMBERS = ("at_us", "size", "first_seq", "last_seq")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a reading has to say."""

    kind: Kind
    seq: int


class Forger:
    """Somebody at work on one chain."""

    def __init__(self, dice: random.Random, files: AuditFiles, checkpoints: Sequence[Checkpoint],
                 pruned: int, head: int) -> None:  # fmt: skip
        self.dice = dice
        self.files = files
        self.checkpoints = list(checkpoints)
        #: So many of the first checkpoints have lost their entries.
        self.pruned = pruned
        self.head = head
        self.gone = checkpoints[pruned - 1].last_seq if pruned else 0
        self.sealed = checkpoints[-1].last_seq
        self.key = Signer(Ed25519PrivateKey.generate())

    def some_entry(self, *, sealed: bool = False) -> int:
        return self.dice.randint(self.gone + 1, self.sealed if sealed else self.head)

    def some_checkpoint(self) -> Checkpoint:
        return self.dice.choice(self.checkpoints)

    def living(self) -> Checkpoint:
        """A checkpoint whose entries are still there."""
        return self.dice.choice(self.checkpoints[self.pruned :])

    def over(self, seq: int) -> Checkpoint:
        """The checkpoint that seals an entry."""
        return next(one for one in self.checkpoints if one.first_seq <= seq <= one.last_seq)

    def is_last(self, seq: int) -> bool:
        return any(one.last_seq == seq for one in self.checkpoints)

    def rewrite(self, seq: int, **fields: Any) -> list[AuditEntry]:
        """Change an entry and compute it and all after it anew; the head is moved along."""
        old = list(entries(after=seq - 1))
        old[0] = msgspec.structs.replace(old[0], **fields)
        before = next(entries(after=seq - 2, up_to=seq - 1), None) if seq > 1 else None
        prev_hash = before.hash if before else old[0].prev_hash
        new = seal(old, prev_seq=seq - 1, prev_hash=prev_hash)
        for entry in new:
            self.store(entry)
        sql("UPDATE cleanup_audithead SET hash = %s", new[-1].hash)
        return new

    def store(self, entry: AuditEntry) -> None:
        values = dict(zip(_FIELDS, _row(entry), strict=True))
        names = [name for name in _FIELDS if name != "seq"]
        sets = ", ".join(f"{name} = %s" for name in names)
        sql(f"UPDATE cleanup_auditentry SET {sets} WHERE seq = %s", *(values[n] for n in names), entry.seq)

    def store_checkpoint(self, old: Checkpoint, **fields: Any) -> None:
        sets = ", ".join(f"{name} = %s" for name in fields)
        sql(f"UPDATE cleanup_auditcheckpoint SET {sets} WHERE number = %s", *fields.values(), old.number)

    def seal_anew(self, first: Checkpoint) -> list[Checkpoint]:
        """Checkpoints from `first` on over the entries as they are now, with the forger's own key."""
        after = self.checkpoints[first.number - 2] if first.number > 1 else None
        made = []
        for old in self.checkpoints[first.number - 1 :]:
            hashes = [entry.hash for entry in entries(after=old.first_seq - 1, up_to=old.last_seq)]
            after = seal_checkpoint(hashes, after=after, at_us=old.at_us, signer=self.key)
            made.append(after)
        return made


Forgery = Callable[[Forger], Found]


# Entries ----------------------------------------------------------------------------------------------------


def change_a_column(forger: Forger) -> Found:
    seq, column = forger.some_entry(), forger.dice.choice(COLUMNS)
    sql(
        f"UPDATE cleanup_auditentry SET {column} = %s WHERE seq = %s",
        77 if column in NUMBERS else "forged",
        seq,
    )
    return Found(kind="link" if column == "prev_hash" else "hash", seq=seq)


def delete_an_entry(forger: Forger) -> Found:
    seq = forger.some_entry()
    sql("DELETE FROM cleanup_auditentry WHERE seq = %s", seq)
    return Found(kind="head" if seq == forger.head else "gap", seq=seq)


def insert_beyond_the_head(forger: Forger) -> Found:
    seq = forger.head + forger.dice.randint(1, 5)
    _copy(forger.head, seq)
    return Found(kind="head", seq=seq)


def insert_where_none_is_left(forger: Forger) -> Found:
    seq = forger.dice.randint(-3, forger.gone)
    _copy(forger.some_entry(), seq)
    if forger.gone:
        return Found(kind="pruned", seq=seq)
    return Found(kind="gap", seq=1)


def _copy(old: int, new: int) -> None:
    names = ", ".join(name for name in _FIELDS if name != "seq")
    sql(
        f"INSERT INTO cleanup_auditentry (seq, {names}) SELECT %s, {names} FROM cleanup_auditentry"
        " WHERE seq = %s", new, old,
    )  # fmt: skip


def swap_two_entries(forger: Forger) -> Found:
    first, second = sorted(forger.dice.sample(range(forger.gone + 1, forger.head + 1), 2))
    for old, new in ((first, 10_000), (second, first), (10_000, second)):
        sql("UPDATE cleanup_auditentry SET seq = %s WHERE seq = %s", new, old)
    return Found(kind="link", seq=first)


def change_an_entry_and_its_hash(forger: Forger) -> Found:
    seq = forger.some_entry()
    entry = next(entries(after=seq - 1, up_to=seq))
    forged = msgspec.structs.replace(entry, actor="nobody")
    forger.store(seal([forged], prev_seq=seq - 1, prev_hash=entry.prev_hash)[0])
    if forger.is_last(seq):
        return Found(kind="root", seq=forger.over(seq).first_seq)
    return Found(kind="head" if seq == forger.head else "link", seq=seq + 1)


def compute_the_rest_anew(forger: Forger) -> Found:
    seq = forger.some_entry(sealed=True)
    forger.rewrite(seq, actor="nobody")
    return Found(kind="root", seq=forger.over(seq).first_seq)


def compute_and_seal_the_rest_anew(forger: Forger) -> Found:
    seq = forger.some_entry(sealed=True)
    forger.rewrite(seq, reason="other")
    first = forger.over(seq)
    made = forger.seal_anew(first)
    for new in made:
        forger.store_checkpoint(new, **_columns(new))
    if forger.dice.random() < 0.5:  # and outside as well
        numbers = {new.number: new for new in made}
        forger.files.put([
            _encode(numbers[line.number]) + b"\n" if line and line.number in numbers else raw
            for raw, line in ((raw, _as_checkpoint(raw)) for raw in forger.files.lines())
        ])  # fmt: skip
    return Found(kind="key", seq=first.first_seq)


def _columns(checkpoint: Checkpoint) -> dict[str, Any]:
    return {name: value for name, value in msgspec.structs.asdict(checkpoint).items() if name != "number"}


def _as_checkpoint(line: bytes) -> Checkpoint | None:
    try:
        return _decode(line)
    except msgspec.MsgspecError:
        return None


# The tail and the head --------------------------------------------------------------------------------------


def cut_the_tail(forger: Forger, *, head: bool = False, seals: bool = False) -> Found:
    last = forger.dice.randint(forger.gone + 1, forger.sealed - 1)
    sql("DELETE FROM cleanup_auditentry WHERE seq > %s", last)
    if head:
        entry = next(entries(after=last - 1, up_to=last))
        sql("UPDATE cleanup_audithead SET seq = %s, hash = %s", last, entry.hash)
    lost = [one for one in forger.checkpoints if one.last_seq > last]
    if seals:
        sql("DELETE FROM cleanup_auditcheckpoint WHERE last_seq > %s", last)
        if len(lost) > 1:
            return Found(kind="checkpoint", seq=lost[0].first_seq)
    return Found(kind="gap", seq=last + 1)


def cut_the_tail_and_move_the_head(forger: Forger) -> Found:
    return cut_the_tail(forger, head=True)


def cut_the_tail_with_its_checkpoints(forger: Forger) -> Found:
    return cut_the_tail(forger, head=True, seals=True)


def remove_everything(forger: Forger) -> Found:
    for table in ("entry", "checkpoint", "head"):
        sql(f"DELETE FROM cleanup_audit{table}")
    return Found(kind="checkpoint", seq=1)


def change_the_head(forger: Forger) -> Found:
    how = forger.dice.choice(("back", "on", "hash", "gone"))
    statement = {
        "back": "UPDATE cleanup_audithead SET seq = seq - 1",
        "on": "UPDATE cleanup_audithead SET seq = seq + 1",
        "hash": "UPDATE cleanup_audithead SET hash = 'x'",
        "gone": "DELETE FROM cleanup_audithead",
    }[how]
    sql(statement)
    return Found(kind="head", seq={"back": forger.head, "gone": 1}.get(how, forger.head + 1))


# Checkpoints ------------------------------------------------------------------------------------------------


def change_a_checkpoint(forger: Forger) -> Found:
    old = forger.some_checkpoint()
    column = forger.dice.choice(("first_seq", "last_seq", "merkle_root", "head_hash", "prev_hash", "at_us",
                                 "key_id", "hash", "signature"))  # fmt: skip
    value: Any = 7_777 if column in NUMBERS else "ab" * 8
    forger.store_checkpoint(old, **{column: value})
    return Found(kind="signature" if column == "signature" else "checkpoint", seq=old.first_seq)


def change_a_checkpoint_and_its_hash(forger: Forger) -> Found:
    old = forger.some_checkpoint()
    forged = msgspec.structs.replace(old, merkle_root="0" * 64)
    forger.store_checkpoint(old, merkle_root=forged.merkle_root, hash=checkpoint_hash(forged))
    return Found(kind="signature", seq=old.first_seq)


def sign_a_checkpoint_with_another_key(forger: Forger) -> Found:
    old, owns_up = forger.some_checkpoint(), forger.dice.random() < 0.5
    forged = msgspec.structs.replace(old, key_id=forger.key.key_id if owns_up else old.key_id)
    own = checkpoint_hash(forged)
    forger.store_checkpoint(
        old, key_id=forged.key_id, hash=own, signature=forger.key.sign(_DOMAIN + bytes.fromhex(own))
    )
    return Found(kind="key" if owns_up else "signature", seq=old.first_seq)


def renumber_a_checkpoint(forger: Forger) -> Found:
    old, number = forger.some_checkpoint(), forger.dice.choice((0, -1, 99))
    sql("UPDATE cleanup_auditcheckpoint SET number = %s WHERE number = %s", number, old.number)
    if number < 1:
        return Found(kind="checkpoint", seq=1)
    is_last = old.number == len(forger.checkpoints)  # its line outside stands in for it, and 99 is too many
    return Found(kind="checkpoint", seq=old.last_seq + 1 if is_last else old.first_seq)


def delete_a_checkpoint(forger: Forger) -> Found:
    old = forger.dice.choice(forger.checkpoints[:-1])  # without the last one it looks like after a crash
    sql("DELETE FROM cleanup_auditcheckpoint WHERE number = %s", old.number)
    return Found(kind="checkpoint", seq=old.first_seq)


def swap_two_checkpoints(forger: Forger) -> Found:
    first, second = sorted(forger.dice.sample(range(1, len(forger.checkpoints) + 1), 2))
    for old, new in ((first, 10_000), (second, first), (10_000, second)):
        sql("UPDATE cleanup_auditcheckpoint SET number = %s WHERE number = %s", new, old)
    return Found(kind="checkpoint", seq=forger.checkpoints[first - 1].first_seq)


def add_a_checkpoint(forger: Forger) -> Found:
    hashes = [entry.hash for entry in entries(after=forger.sealed)]
    made = seal_checkpoint(hashes, after=forger.checkpoints[-1], at_us=1, signer=forger.key)
    values = {**msgspec.structs.asdict(made), "segment": "", "segment_sha256": ""}
    names, marks = ", ".join(values), ", ".join(["%s"] * len(values))
    sql(f"INSERT INTO cleanup_auditcheckpoint ({names}) VALUES ({marks})", *values.values())
    return Found(kind="key", seq=made.first_seq)


# Pruned stretches -------------------------------------------------------------------------------------------


def prune_without_leave(forger: Forger) -> Found:
    old = forger.living()
    sql("DELETE FROM cleanup_auditentry WHERE seq BETWEEN %s AND %s", old.first_seq, old.last_seq)
    forger.store_checkpoint(
        old, pruned_at="2026-01-01 00:00:00+00:00", segment="x.jsonl", segment_sha256="ab" * 32
    )
    return Found(kind="pruned", seq=old.first_seq)


def call_a_stretch_pruned(forger: Forger) -> Found:
    old = forger.living()
    forger.store_checkpoint(old, pruned_at="2026-01-01 00:00:00+00:00")
    return Found(kind="pruned", seq=old.first_seq)


def deny_that_a_stretch_was_pruned(forger: Forger) -> Found:
    if not forger.pruned:
        return call_a_stretch_pruned(forger)
    old = forger.dice.choice(forger.checkpoints[: forger.pruned])
    forger.store_checkpoint(old, pruned_at=None)
    return Found(kind="gap", seq=old.first_seq)


def name_another_segment(forger: Forger) -> Found:
    if not forger.pruned:
        return call_a_stretch_pruned(forger)
    old = forger.dice.choice(forger.checkpoints[: forger.pruned])
    forger.store_checkpoint(old, **{forger.dice.choice(("segment", "segment_sha256")): "other"})
    return Found(kind="pruned", seq=old.first_seq)


# Outside ----------------------------------------------------------------------------------------------------


def change_a_line_outside(forger: Forger) -> Found:
    lines = forger.files.lines()
    place = forger.dice.randrange(len(lines))
    fields = msgspec.json.decode(lines[place])
    name = forger.dice.choice([name for name in fields if name != "type"])
    fields[name] = 99 if isinstance(fields[name], int) else "ab" * 8
    lines[place] = _encode(fields) + b"\n"
    return _outside(forger, lines, place)


def remove_a_line_outside(forger: Forger) -> Found:
    lines = forger.files.lines()
    place = forger.dice.randrange(len(lines))
    return _outside(forger, [*lines[:place], *lines[place + 1 :]], place)


def garble_a_line_outside(forger: Forger) -> Found:
    lines = forger.files.lines()
    place = forger.dice.randrange(len(lines))
    lines[place] = lines[place][: len(lines[place]) // 2] + b"\n"
    return _outside(forger, lines, place)


def sign_a_line_outside_anew(forger: Forger) -> Found:
    lines = forger.files.lines()
    place = forger.dice.choice([n for n, line in enumerate(lines) if _as_checkpoint(line)])
    old = _decode(lines[place])
    forged = msgspec.structs.replace(old, key_id=forger.key.key_id)
    own = checkpoint_hash(forged)
    signature = forger.key.sign(_DOMAIN + bytes.fromhex(own))
    lines[place] = _encode(msgspec.structs.replace(forged, hash=own, signature=signature)) + b"\n"
    return _outside(forger, lines, place)


def _outside(forger: Forger, lines: Sequence[bytes], place: int) -> Found:
    """What is to be found when the line that was at `place` is not as it was."""
    number = msgspec.json.decode(forger.files.lines()[place])["number"]
    kind: Kind = "outside" if _as_checkpoint(forger.files.lines()[place]) else "pruned"
    forger.files.put(lines)
    return Found(kind=kind, seq=forger.checkpoints[number - 1].first_seq)


def repeat_a_line_outside(forger: Forger) -> Found:
    lines = [line for line in forger.files.lines() if _as_checkpoint(line)]
    forger.files.put([*forger.files.lines(), forger.dice.choice(lines)])
    return Found(kind="outside", seq=forger.sealed + 1)


def empty_the_file_outside(forger: Forger) -> Found:
    forger.files.put([])
    return Found(kind="outside", seq=1)


FORGERIES: tuple[Forgery, ...] = (
    change_a_column, delete_an_entry, insert_beyond_the_head, insert_where_none_is_left, swap_two_entries,
    change_an_entry_and_its_hash, compute_the_rest_anew, compute_and_seal_the_rest_anew, cut_the_tail,
    cut_the_tail_and_move_the_head, cut_the_tail_with_its_checkpoints, remove_everything, change_the_head,
    change_a_checkpoint, change_a_checkpoint_and_its_hash, sign_a_checkpoint_with_another_key,
    renumber_a_checkpoint, delete_a_checkpoint, swap_two_checkpoints, add_a_checkpoint, prune_without_leave,
    call_a_stretch_pruned, deny_that_a_stretch_was_pruned, name_another_segment, change_a_line_outside,
    remove_a_line_outside, garble_a_line_outside, sign_a_line_outside_anew, repeat_a_line_outside,
    empty_the_file_outside,
)  # fmt: skip
