"""API keys: made once, shown once, kept as a hash.

Keys are for agents and servers that keep a secret. A key has 256 random bits, so one fast hash hides it as
well as a slow one would. Who a key is, is remembered by each process for `STALENESS`, so that a server which
publishes over HTTP does not cost a query each time; what is changed or revoked counts everywhere by then.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection, Iterable
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import Q
from django.db.models.signals import post_delete, post_save
from django.utils import timezone

from bus.access.permissions import Identity
from bus.access.proofs import Proof
from bus.log.threads import in_thread
from bus.models import ApiKey
from bus.protocol.errors import BadRequest, Expired, Unauthorized
from bus.protocol.topics import is_agent_id, is_pattern

#: How every API key begins.
KEY_MARK = "xk_"
#: A process may go by what it read of a key for so long.
STALENESS = timedelta(seconds=2)
#: Keys that a process remembers; beyond it the memory starts anew.
REMEMBERED = 10_000
#: A key; its prefix finds the row.
_KEY = re.compile(r"(xk_[0-9a-f]{10})_[A-Za-z0-9_-]{43}")
_SCOPE = re.compile(r"[A-Za-z0-9_.:-]{1,100}")
#: `last_used_at` of a key is written at most this often: it is for people, and a write costs an fsync.
_USE_RESOLUTION = timedelta(minutes=1)

#: Hash of a key -> what its row says, and when that was read. Changed by single steps, from any thread.
_known: dict[str, tuple[Proof, datetime]] = {}


def create_api_key(
    name: str,
    *,
    agent_id: str = "",
    scopes: Iterable[str] = (),
    topics: Iterable[str] = (),
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """Make a key and return its row and the key itself, which is not to be had again.

    Raises:
        BadRequest: a name, scope or pattern that cannot be.
    """
    given = {"agent_id": agent_id, "scopes": list(scopes), "topics": list(topics)}
    check_reach(agent_id, given["scopes"], given["topics"])
    prefix = f"{KEY_MARK}{secrets.token_hex(5)}"
    key = f"{prefix}_{secrets.token_urlsafe(32)}"
    row = ApiKey.objects.create(
        name=name, prefix=prefix, key_hash=_digest(key), expires_at=expires_at, **given
    )
    return row, key


def check_reach(agent_id: str, scopes: Collection[object], topics: Collection[object]) -> None:
    """Refuse an agent id, scopes or topic patterns that nothing could ever fit.

    Raises:
        BadRequest: says which.
    """
    if agent_id and not is_agent_id(agent_id):
        raise BadRequest(f"not an agent id: {agent_id[:40]!r}")
    for scope in scopes:
        if not isinstance(scope, str) or not _SCOPE.fullmatch(scope):
            raise BadRequest(f"not a scope: {str(scope)[:40]!r}")
    for pattern in topics:
        if not is_pattern(pattern):
            raise BadRequest(f"not a pattern of topics: {str(pattern)[:40]!r}")


def change_api_key(
    row: ApiKey, *, scopes: Iterable[str], topics: Iterable[str], expires_at: datetime | None
) -> None:
    """Give a key other rights; live connections that were made with it go on with these within seconds.

    Raises:
        BadRequest: a scope or pattern that cannot be.
    """
    given = {"scopes": list(scopes), "topics": list(topics)}
    check_reach(row.agent_id, given["scopes"], given["topics"])
    ApiKey.objects.filter(pk=row.pk).update(expires_at=expires_at, **given)
    _known.pop(row.key_hash, None)


def rotate_api_key(row: ApiKey, *, overlap: timedelta, now: datetime | None = None) -> tuple[ApiKey, str]:
    """Replace a key by a new one with its name and rights; return the new row and the new key itself.

    The former stays good for `overlap`, and no longer than it was good for, under a name that ends with its
    prefix. Without overlap it is revoked at once, and connections that were made with it are closed.

    Raises:
        BadRequest: it is not good any more.
    """
    moment = now or timezone.now()
    with transaction.atomic():
        former = ApiKey.objects.select_for_update().get(pk=row.pk)
        if former.revoked_at is not None or (former.expires_at is not None and former.expires_at <= moment):
            raise BadRequest("it is revoked or has expired: make a new key")
        name, until = former.name, moment + overlap
        suffix = f" (former, {former.prefix})"
        former.name = f"{name[: 100 - len(suffix)]}{suffix}"
        expires_at = former.expires_at
        if overlap:
            former.expires_at = min(former.expires_at or until, until)
        else:
            former.revoked_at = moment
        former.save()
        made, secret = create_api_key(
            name,
            agent_id=former.agent_id,
            scopes=former.scopes,
            topics=former.topics,
            expires_at=expires_at,
        )
    return made, secret


def check_api_key(key: str, *, now: datetime | None = None) -> Proof:
    """Return who a key is, and note that it was used.

    Raises:
        Unauthorized: there is no such key, or it was revoked.
        Expired: its time is over.
    """
    moment = now or timezone.now()
    known = _remembered(key, moment)
    return _looked_up(key, moment) if known is None else known


async def acheck_api_key(key: str, *, now: datetime | None = None) -> Proof:
    """Like `check_api_key`, from a coroutine: without a thread while the key is remembered."""
    moment = now or timezone.now()
    known = _remembered(key, moment)
    return await in_thread(_looked_up, key, moment) if known is None else known


def _remembered(key: str, moment: datetime) -> Proof | None:
    """Return who a key is, if that was read a moment ago. The hash is looked for, so time tells nothing."""
    try:
        proof, read_at = _known[_digest(key)]
    except (KeyError, UnicodeEncodeError):
        return None
    is_fresh = timedelta(0) <= moment - read_at < STALENESS
    if not is_fresh or (proof.expires_at is not None and proof.expires_at <= moment):
        return None
    return proof


def _looked_up(key: str, moment: datetime) -> Proof:
    shape = _KEY.fullmatch(key)
    row = ApiKey.objects.filter(prefix=shape[1]).first() if shape else None
    if row is None or not hmac.compare_digest(row.key_hash, _digest(key)) or row.revoked_at is not None:
        raise Unauthorized("invalid API key")
    if row.expires_at is not None and row.expires_at <= moment:
        raise Expired("the API key has expired")
    _note_use(row, moment)
    proof = _proof_of(row)
    if len(_known) >= REMEMBERED:
        _known.clear()
    _known[row.key_hash] = (proof, moment)
    return proof


def _note_use(row: ApiKey, moment: datetime) -> None:
    """Write that a key was used, unless that was written a moment ago: no statement then, and no lock."""
    oldest = moment - _USE_RESOLUTION
    if row.last_used_at is None or row.last_used_at < oldest:
        unnoted = Q(last_used_at__isnull=True) | Q(last_used_at__lt=oldest)
        ApiKey.objects.filter(unnoted, pk=row.pk).update(last_used_at=moment)


def _proof_of(row: ApiKey) -> Proof:
    identity = Identity(
        kind="key",
        user_id="" if row.agent_id else f"key:{row.name}",
        agent_id=row.agent_id,
        scopes=frozenset(row.scopes),
        topic_patterns=tuple(row.topics),
    )
    return Proof(identity=identity, expires_at=row.expires_at, key_prefix=row.prefix)


def revoke_api_key(row: ApiKey, *, now: datetime | None = None) -> None:
    """Make a key useless from now on. Again: no change, the first time stays."""
    ApiKey.objects.filter(pk=row.pk, revoked_at__isnull=True).update(revoked_at=now or timezone.now())
    _known.pop(row.key_hash, None)


def current_keys(prefixes: Collection[str], *, now: datetime) -> dict[str, Proof]:
    """Return what the rows of keys say now, by prefix; of keys that may no longer be used, nothing."""
    if not prefixes:
        return {}
    rows = ApiKey.objects.filter(prefix__in=prefixes, revoked_at__isnull=True)
    return {row.prefix: _proof_of(row) for row in rows.exclude(expires_at__lte=now)}


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _changed(*, instance: ApiKey, **_: object) -> None:
    """Forget a row that was changed in this process."""
    _known.pop(instance.key_hash, None)


post_save.connect(_changed, sender=ApiKey)
post_delete.connect(_changed, sender=ApiKey)
