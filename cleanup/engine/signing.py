"""The keys that sign checkpoints: the private one in a file of its own, the public ones in a ring beside it.

A ring is a file of JSON lines, one key each, the first made with the site. Every later key was signed by the
one before it when that was retired, so whoever trusts the first key can trust all. Somebody who can write the
database but not read the private file cannot seal anything. Keys are Ed25519.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cleanup.engine.errors import AuditInvalid, AuditUnavailable

_ENDORSES = b"xnai.audit.key.v1\0"


class PublicKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of a ring."""

    key_id: str  #: first 16 hex digits of the SHA-256 of the public key
    public_key: str  #: 32 bytes, hex
    at_us: int  #: when it was made
    previous: str = ""  #: the key that endorses it; empty for the first
    endorsement: str = ""  #: signature of `previous` over ``xnai.audit.key.v1`` NUL and the key's 32 bytes


_decoder = msgspec.json.Decoder(PublicKey)
_encoder = msgspec.json.Encoder()


class KeyRing:
    """The public keys that are trusted, in the order in which they were made."""

    def __init__(self, keys: Sequence[PublicKey]) -> None:
        """Take keys over, each endorsed by an earlier one.

        Raises:
            AuditInvalid: a key is not what its id says, or nobody trusted has endorsed it.
        """
        self.keys = tuple(keys)
        self._order = {key.key_id: place for place, key in enumerate(keys)}
        for place, key in enumerate(self.keys):
            if not self._is_trusted(key, place):
                raise AuditInvalid(f"the public key {key.key_id} was endorsed by no earlier key")

    def _is_trusted(self, key: PublicKey, place: int) -> bool:
        if key.key_id != _id_of(_raw(key)) or self._order[key.key_id] != place:
            return False
        if place == 0:
            return not key.previous
        by = self._order.get(key.previous, place)
        return by < place and self.verifies(key.previous, _ENDORSES + _raw(key), key.endorsement)

    def order(self, key_id: str) -> int | None:
        """Return the place of a key in the ring; a later key came into use later."""
        return self._order.get(key_id)

    def verifies(self, key_id: str, message: bytes, signature: str) -> bool:
        """Tell whether that key of the ring has signed `message`."""
        place = self._order.get(key_id)
        if place is None:
            return False
        try:
            public = Ed25519PublicKey.from_public_bytes(_raw(self.keys[place]))
            public.verify(bytes.fromhex(signature), message)
        except (InvalidSignature, ValueError):
            return False
        return True


def _raw(key: PublicKey) -> bytes:
    try:
        return bytes.fromhex(key.public_key)
    except ValueError as error:
        raise AuditInvalid(f"the public key {key.key_id} is not hex") from error


def _id_of(public: bytes) -> str:
    return hashlib.sha256(public).hexdigest()[:16]


class Signer:
    """A private key."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        """Keep the key."""
        self._private = private
        self.public = private.public_key().public_bytes_raw()
        self.key_id = _id_of(self.public)

    def sign(self, message: bytes) -> str:
        """Return the hex signature of `message`."""
        return self._private.sign(message).hex()


def ring_file(key_file: Path) -> Path:
    """Return where the ring of a private key lies: beside it."""
    return key_file.with_name(key_file.name + ".pub")


def read_ring(path: Path) -> KeyRing:
    """Read a ring.

    Raises:
        AuditUnavailable: the file is missing, cannot be read, or holds no key.
        AuditInvalid: a line is no key, or a key was not endorsed.
    """
    with _readable(path):
        lines = path.read_bytes().splitlines()
    try:
        keys = [_decoder.decode(line) for line in lines if line]
    except msgspec.MsgspecError as error:
        raise AuditInvalid(f"a line of {path} is not a public key: {error}") from error
    if not keys:
        raise AuditUnavailable(f"{path} holds no public key")
    return KeyRing(keys)


def load_signer(path: Path) -> Signer:
    """Read the private key, which other users must not be able to read.

    Raises:
        AuditUnavailable: it is missing, open to others, or no Ed25519 key.
    """
    with _readable(path):
        if path.stat().st_mode & 0o007:
            raise AuditUnavailable(f"{path} is open to every user of this machine: chmod 600 it")
        text = path.read_bytes()
    try:
        private = serialization.load_pem_private_key(text, password=None)
    except (ValueError, TypeError) as error:
        raise AuditUnavailable(f"{path} is not a private key in PEM") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise AuditUnavailable(f"{path} is not an Ed25519 key")
    return Signer(private)


def make_signer(path: Path, *, at_us: int) -> Signer:
    """Make the first key of a site and its ring, or what is missing of the two after a crash in between.

    The caller sees to it that nobody else does so at once, and that nothing was signed so far.

    Raises:
        AuditUnavailable: a ring without its key lies there, or the files cannot be written.
    """
    if ring_file(path).exists() and not path.exists():
        raise AuditUnavailable(f"{ring_file(path)} is there, but not its private key {path}: put it back")
    with _readable(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _write_key(path, Signer(Ed25519PrivateKey.generate()))
        signer = load_signer(path)
        if not ring_file(path).exists():
            _write_ring(path, [_public(signer, at_us=at_us)])
    return signer


def renew_signer(path: Path, *, at_us: int) -> tuple[PublicKey, Signer]:
    """Retire the key for a new one, which it endorses; return what the ring says of the new one, and it.

    The ring comes first: after a crash in between, it holds a key that never signed, which does no harm.
    """
    old, new = load_signer(path), Signer(Ed25519PrivateKey.generate())
    ring = read_ring(ring_file(path))
    public = _public(new, at_us=at_us, by=old)
    with _readable(path):
        _write_ring(path, [*ring.keys, public])
        _write_key(path, new)
    return public, new


def _public(signer: Signer, *, at_us: int, by: Signer | None = None) -> PublicKey:
    endorsement = by.sign(_ENDORSES + signer.public) if by else ""
    return PublicKey(
        key_id=signer.key_id, public_key=signer.public.hex(), at_us=at_us,
        previous=by.key_id if by else "", endorsement=endorsement,
    )  # fmt: skip


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise AuditUnavailable(f"{error.filename or path}: {error.strerror}") from error


def _write_key(path: Path, signer: Signer) -> None:
    pem = signer._private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _replace(path, pem, mode=0o600)


def _write_ring(path: Path, keys: Sequence[PublicKey]) -> None:
    _replace(ring_file(path), b"".join(_encoder.encode(key) + b"\n" for key in keys), mode=0o644)


def _replace(path: Path, data: bytes, *, mode: int) -> None:
    """Write a file whole or not at all."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
