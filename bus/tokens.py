"""How a client proves who it is: connection and subscription tokens, and API keys.

Tokens are JWTs, HS256 with `BUS["TOKEN_SECRET"]`, in the form of Centrifugo's: `sub` and `exp`; a
subscription token also names its `channel` and is good for nothing else. Keys are for agents and servers
that keep a secret: only a hash is stored, the key itself is shown once. The clock is an argument. What is
proved here is who somebody is; what that one may do is decided in `bus.permissions`.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import jwt
import msgspec
from django.db.models import Q
from django.utils import timezone
from jwt.types import Options

from bus.conf import conf
from bus.models import ApiKey
from bus.permissions import Identity
from bus.protocol.errors import Expired, TokenExpired, Unauthorized

_ALGORITHM = "HS256"
#: A key; its prefix finds the row.
_KEY = re.compile(r"(xk_[0-9a-f]{10})_[A-Za-z0-9_-]{43}")
#: `last_used_at` of a key is written at most this often: it is for people, and a write costs an fsync.
_USE_RESOLUTION = timedelta(minutes=1)


class _ConnectionClaims(msgspec.Struct, kw_only=True):
    sub: str = ""
    exp: int | float | None = None
    agent: str = ""
    scopes: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    topics: tuple[str, ...] = ()
    #: Of a subscription token; there must be none.
    channel: str | None = None


class _SubscriptionClaims(msgspec.Struct, kw_only=True):
    channel: str
    sub: str = ""
    exp: int | float | None = None


ClaimsT = TypeVar("ClaimsT", _ConnectionClaims, _SubscriptionClaims)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What a sound connection token or key says."""

    identity: Identity
    #: Topics to which the server subscribes the connection.
    channels: tuple[str, ...] = ()
    #: When the connection has to prove itself again, or None.
    expires_at: datetime | None = None
    #: Prefix of the API key behind it, or empty.
    key_prefix: str = ""


def issue_connection_token(
    subject: str,
    *,
    ttl: timedelta | None,
    now: datetime | None = None,
    agent_id: str = "",
    scopes: Iterable[str] = (),
    channels: Iterable[str] = (),
    topics: Iterable[str] = (),
) -> str:
    """Return a token with which a client connects.

    Args:
        subject: the user id.
        ttl: how long it is good; None for ever.
        now: the time from which `ttl` counts.
        agent_id: the agent that the connection is.
        scopes: such as `publish:task`.
        channels: topics to which the server subscribes the connection.
        topics: patterns outside of which nothing is reachable.
    """
    claims: dict[str, Any] = {"sub": subject, "iat": int((now or timezone.now()).timestamp())}
    if agent_id:
        claims["agent"] = agent_id
    for name, values in (("scopes", scopes), ("channels", channels), ("topics", topics)):
        if listed := list(values):
            claims[name] = listed
    return _signed(claims, ttl, now)


def issue_subscription_token(
    subject: str, topic: str, *, ttl: timedelta | None, now: datetime | None = None
) -> str:
    """Return a token with which the client of `subject` may subscribe to `topic`."""
    return _signed({"sub": subject, "channel": topic}, ttl, now)


def _signed(claims: dict[str, Any], ttl: timedelta | None, now: datetime | None) -> str:
    if ttl is not None:
        claims["exp"] = int(((now or timezone.now()) + ttl).timestamp())
    return jwt.encode(claims, conf().token_secret, algorithm=_ALGORITHM)


def read_connection_token(token: str, *, now: datetime | None = None) -> Proof:
    """Return who a connection token says it is.

    Raises:
        Unauthorized: it is not one of ours, or not for connecting.
        TokenExpired: it was.
    """
    claims = _claims(token, _ConnectionClaims)
    if claims.channel is not None:
        raise Unauthorized("a subscription token does not connect")
    return Proof(
        identity=Identity(
            kind="token",
            user_id=claims.sub,
            agent_id=claims.agent,
            scopes=frozenset(claims.scopes),
            topic_patterns=claims.topics,
        ),
        channels=claims.channels,
        expires_at=_unexpired(claims.exp, now),
    )


def read_subscription_token(
    token: str, *, topic: str, subject: str, now: datetime | None = None
) -> datetime | None:
    """Check that a token lets `subject` subscribe to `topic`; return when the subscription expires, if ever.

    Raises:
        Unauthorized: it is not one of ours, or for another topic or user.
        TokenExpired: its time is over.
    """
    claims = _claims(token, _SubscriptionClaims)
    if claims.channel != topic or claims.sub != subject:
        raise Unauthorized("the token is for another topic or user")
    return _unexpired(claims.exp, now)


def _claims(token: str, kind: type[ClaimsT]) -> ClaimsT:
    """Return the claims of a token whose signature is ours."""
    if not token.isascii():
        raise Unauthorized("invalid token")
    try:
        # The times are checked by us, against the clock we were given.
        options: Options = {"verify_exp": False, "verify_iat": False, "verify_nbf": False}
        found = jwt.decode(token, conf().token_secret, algorithms=[_ALGORITHM], options=options)
        return msgspec.convert(found, kind)
    except (jwt.InvalidTokenError, msgspec.ValidationError):
        raise Unauthorized("invalid token") from None


def _unexpired(exp: float | None, now: datetime | None) -> datetime | None:
    if exp is None:
        return None
    if exp <= (now or timezone.now()).timestamp():
        raise TokenExpired
    try:
        return datetime.fromtimestamp(exp, UTC)
    except (OverflowError, ValueError, OSError):
        raise Unauthorized("invalid token") from None


def create_api_key(
    name: str,
    *,
    agent_id: str = "",
    scopes: Iterable[str] = (),
    topics: Iterable[str] = (),
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """Make a key and return its row and the key itself, which is not to be had again."""
    prefix = f"xk_{secrets.token_hex(5)}"
    key = f"{prefix}_{secrets.token_urlsafe(32)}"
    row = ApiKey.objects.create(
        name=name,
        prefix=prefix,
        key_hash=_digest(key),
        agent_id=agent_id,
        scopes=list(scopes),
        topics=list(topics),
        expires_at=expires_at,
    )
    return row, key


def check_api_key(key: str, *, now: datetime | None = None) -> Proof:
    """Return who a key is, and note that it was used.

    Raises:
        Unauthorized: there is no such key, or it was revoked.
        Expired: its time is over.
    """
    moment = now or timezone.now()
    shape = _KEY.fullmatch(key)
    row = ApiKey.objects.filter(prefix=shape[1]).first() if shape else None
    if row is None or not hmac.compare_digest(row.key_hash, _digest(key)) or row.revoked_at is not None:
        raise Unauthorized("invalid API key")
    if row.expires_at is not None and row.expires_at <= moment:
        raise Expired("the API key has expired")
    unnoted = Q(last_used_at__isnull=True) | Q(last_used_at__lt=moment - _USE_RESOLUTION)
    ApiKey.objects.filter(unnoted, pk=row.pk).update(last_used_at=moment)
    return _proof_of(row)


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


def revoked_prefixes(prefixes: Iterable[str], *, now: datetime | None = None) -> set[str]:
    """Return those of the prefixes whose key may no longer be used; for the live connections behind them."""
    wanted = set(prefixes)
    usable = ApiKey.objects.filter(prefix__in=wanted, revoked_at__isnull=True).exclude(
        expires_at__lte=now or timezone.now()
    )
    return wanted.difference(usable.values_list("prefix", flat=True))


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
