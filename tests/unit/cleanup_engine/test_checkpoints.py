"""Keys, checkpoints and the file outside, without a database."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from cleanup.engine.audit import GENESIS, AuditEntry, AuditRecord, seal
from cleanup.engine.checkpointlog import CheckpointLog
from cleanup.engine.checkpoints import (
    Checkpoint,
    flaw_of_checkpoint,
    flaw_of_stretch,
    is_leave,
    seal_checkpoint,
    sign_pruned,
)
from cleanup.engine.errors import AuditInvalid, AuditUnavailable
from cleanup.engine.signing import (
    KeyRing,
    Signer,
    load_signer,
    make_signer,
    read_ring,
    renew_signer,
    ring_file,
)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return tmp_path / "keys" / "audit_key"


@pytest.fixture
def signer(key: Path) -> Signer:
    return make_signer(key, at_us=1)


@pytest.fixture
def ring(key: Path, signer: Signer) -> KeyRing:
    return read_ring(ring_file(key))


def entries(count: int, after: list[AuditEntry] | None = None) -> list[AuditEntry]:
    last = after[-1] if after else None
    records = [AuditRecord(at_us=n, actor="a", actor_kind="user", action="x") for n in range(count)]
    return seal(records, prev_seq=last.seq if last else 0, prev_hash=last.hash if last else GENESIS)


def sealed(found: list[AuditEntry], signer: Signer, after: Checkpoint | None = None) -> Checkpoint:
    return seal_checkpoint([entry.hash for entry in found], after=after, at_us=9, signer=signer)


# Keys


def test_the_first_key_is_made_once_and_its_ring_is_completed_after_a_crash(
    key: Path, signer: Signer
) -> None:
    assert key.stat().st_mode & 0o777 == 0o600
    ring_file(key).unlink()
    assert make_signer(key, at_us=2).key_id == signer.key_id == read_ring(ring_file(key)).keys[0].key_id


def test_a_ring_whose_key_is_gone_is_not_begun_anew(key: Path, signer: Signer) -> None:
    key.unlink()
    with pytest.raises(AuditUnavailable, match="put it back"):
        make_signer(key, at_us=2)


def test_renewed_keys_are_trusted_one_after_the_other(key: Path, signer: Signer) -> None:
    made = [renew_signer(key, at_us=n)[0].key_id for n in range(3)]
    ring = read_ring(ring_file(key))
    assert [public.key_id for public in ring.keys] == [signer.key_id, *made]
    assert load_signer(key).key_id == made[-1]


def test_a_ring_with_a_key_that_was_not_endorsed_is_refused(key: Path, signer: Signer) -> None:
    renew_signer(key, at_us=2)
    first, second = read_ring(ring_file(key)).keys
    for wrong in (
        [second],
        [second, first],
        [first, first],
        [first, msgspec.structs.replace(second, previous="")],
        [first, msgspec.structs.replace(second, public_key=first.public_key)],
        [msgspec.structs.replace(first, key_id="0" * 16), second],
        [msgspec.structs.replace(first, public_key="zz"), second],
    ):
        with pytest.raises(AuditInvalid):
            KeyRing(wrong)


@pytest.mark.parametrize("content", ["", "not a key", "another kind"])
def test_a_file_that_is_no_ed25519_key_signs_nothing(key: Path, signer: Signer, content: str) -> None:
    if content == "another kind":
        content = X25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()  # fmt: skip
    key.write_text(content)
    with pytest.raises(AuditUnavailable):
        load_signer(key)


def test_an_empty_and_a_broken_ring_are_told_apart(key: Path, signer: Signer) -> None:
    ring_file(key).write_text("")
    with pytest.raises(AuditUnavailable):
        read_ring(ring_file(key))
    ring_file(key).write_text("{}\n")
    with pytest.raises(AuditInvalid):
        read_ring(ring_file(key))


# Checkpoints


def test_a_checkpoint_without_flaw_has_none_and_any_change_to_it_is_one(
    signer: Signer, ring: KeyRing
) -> None:
    first = entries(3)
    one = sealed(first, signer)
    two = sealed(entries(4, first), signer, after=one)
    assert flaw_of_checkpoint(one, after=None, ring=ring) is None
    assert flaw_of_checkpoint(two, after=one, ring=ring) is None
    assert flaw_of_checkpoint(two, after=None, ring=ring) == "checkpoint"
    for name in Checkpoint.__struct_fields__:
        value = 99 if isinstance(getattr(two, name), int) else "ab" * 32
        kind = flaw_of_checkpoint(msgspec.structs.replace(two, **{name: value}), after=one, ring=ring)
        assert kind == ("signature" if name == "signature" else "checkpoint"), name


def test_a_key_that_was_retired_before_the_last_checkpoint_counts_no_more(key: Path, signer: Signer) -> None:
    _, new = renew_signer(key, at_us=2)
    ring, first = read_ring(ring_file(key)), entries(3)
    one = sealed(first, new)
    two = sealed(entries(3, first), signer, after=one)
    assert flaw_of_checkpoint(one, after=None, ring=ring) is None
    assert flaw_of_checkpoint(two, after=one, ring=ring) == "key"


def test_a_leave_to_prune_is_good_for_one_segment_of_one_checkpoint(signer: Signer, ring: KeyRing) -> None:
    leave = sign_pruned(sealed(entries(3), signer), segment="s", sha256="ab", at_us=1, signer=signer)
    assert is_leave(leave, ring=ring)
    for name in ("number", "segment", "segment_sha256", "at_us", "key_id", "signature"):
        value = 7 if isinstance(getattr(leave, name), int) else "cd"
        assert not is_leave(msgspec.structs.replace(leave, **{name: value}), ring=ring)


def test_a_stretch_is_as_sealed_or_says_where_it_is_not(signer: Signer) -> None:
    found = entries(5)
    checkpoint = sealed(found, signer)
    assert flaw_of_stretch(found, checkpoint, prev_hash=GENESIS) is None
    assert flaw_of_stretch(found, checkpoint, prev_hash=None) is None
    cases = {
        ("gap", 5): found[:-1], ("gap", 2): [found[0], *found[2:]], ("link", 1): entries(9, found)[4:],
        ("root", 1): [*found, *entries(1, found)],
    }  # fmt: skip
    cases["link", 1] = [msgspec.structs.replace(found[0], prev_hash="00"), *found[1:]]
    for (kind, seq), wrong in cases.items():
        flaw = flaw_of_stretch(wrong, checkpoint, prev_hash=GENESIS)
        assert flaw is not None
        assert (flaw.kind, flaw.seq) == (kind, seq)


# The file outside


def test_lines_are_read_back_and_what_is_torn_or_out_of_order_is_said(tmp_path: Path, signer: Signer) -> None:
    first = entries(3)
    one = sealed(first, signer)
    two = sealed(entries(3, first), signer, after=one)
    leave = sign_pruned(one, segment="s", sha256="ab", at_us=1, signer=signer)
    log = CheckpointLog(tmp_path / "deep" / "log")
    with log.locked(make=True) as file:
        file.append(one)
    with log.path.open("ab") as raw:
        raw.write(b'{"type":"checkpoint","num')
    with log.locked() as file:
        file.append(two)
        file.append(leave)
    found = log.read()
    assert found.checkpoints == {1: one, 2: two}
    assert found.pruned == {1: leave}
    assert (found.torn, found.disorder, found.last) == (1, None, two)
    with log.locked() as file:
        file.append(two)
    assert log.read().disorder == 2


def test_a_missing_file_is_empty_only_where_none_is_expected(tmp_path: Path) -> None:
    log = CheckpointLog(tmp_path / "log")
    assert log.read(expected=False).last is None
    with pytest.raises(AuditUnavailable):
        log.read()
    with pytest.raises(AuditUnavailable), log.locked():
        pass
    assert not log.path.exists()


def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path: Path, signer: Signer) -> None:
    (tmp_path / "log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AuditUnavailable), CheckpointLog(tmp_path / "log").locked(make=True):
        pass
    assert not (tmp_path / "elsewhere").exists()
