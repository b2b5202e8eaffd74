"""How a client proves who it is by a token: connection tokens and subscription tokens.

Tokens are JWTs, HS256 with `BUS["TOKEN_SECRET"]`, in the form of Centrifugo's: `sub` and `exp`; a
subscription token also names its `channel` and is good for nothing else. A signature by one of the former
secrets counts as well, so that a secret can be changed without closing anybody. The clock is an argument.
What is proved here is who somebody is; what that one may do is decided in `bus.access.permissions`, and
whether a token was taken back in `bus.access.revocation`. API keys are in `bus.access.keys`.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, TypeVar

import jwt
import msgspec
from django.utils import timezone
from jwt.types import Options
from msgspec import Meta

from bus.access.keys import check_api_key, create_api_key, revoke_api_key
from bus.access.permissions import Identity
from bus.access.proofs import Proof
from bus.conf import conf
from bus.protocol.errors import TokenExpired, Unauthorized
from bus.protocol.topics import MAX_AGENT_ID, is_agent_id, is_pattern, is_topic

__all__ = [
    "Permit",
    "Proof",
    "check_api_key",
    "create_api_key",
    "issue_connection_token",
    "issue_subscription_token",
    "read_connection_token",
    "read_subscription_token",
    "revoke_api_key",
]

_ALGORITHM = "HS256"
#: Longer ones are refused unread: a signature costs time for each byte.
MAX_TOKEN_CHARACTERS = 16_384
#: Bytes of `info`, which goes out with every event that its owner publishes.
MAX_INFO_BYTES = 2_048

_Name = Annotated[str, Meta(max_length=MAX_AGENT_ID)]
_Names = Annotated[tuple[Annotated[str, Meta(max_length=200)], ...], Meta(max_length=1_000)]


class _Claims(msgspec.Struct, kw_only=True):
    """What both kinds of tokens may say."""

    sub: _Name = ""
    exp: int | float | None = None
    nbf: int | float | None = None
    iat: int | float | None = None
    jti: Annotated[str, Meta(max_length=200)] = ""
    aud: str | tuple[str, ...] = ()
    iss: str = ""


class _ConnectionClaims(_Claims, kw_only=True):
    agent: _Name = ""
    scopes: _Names = ()
    channels: _Names = ()
    topics: _Names = ()
    info: Any = msgspec.UNSET
    #: Of a subscription token; there must be none.
    channel: str | None = None


class _SubscriptionClaims(_Claims, kw_only=True):
    channel: str
    #: The one connection that it is for; empty: any of `sub`.
    client: str = ""


ClaimsT = TypeVar("ClaimsT", _ConnectionClaims, _SubscriptionClaims)


@dataclass(frozen=True, slots=True, kw_only=True)
class Permit:
    """What a sound subscription token grants."""

    topic: str
    #: When it ends, or None.
    expires_at: datetime | None = None
    #: Its `jti` and `iat`, by which it can be revoked.
    token_id: str = ""
    issued_at: datetime | None = None


def issue_connection_token(
    subject: str,
    *,
    ttl: timedelta | None,
    now: datetime | None = None,
    agent_id: str = "",
    scopes: Iterable[str] = (),
    channels: Iterable[str] = (),
    topics: Iterable[str] = (),
    info: Any = msgspec.UNSET,
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
        info: any JSON that others are told of the connection, in presence and beside its events.
    """
    claims: dict[str, Any] = {"sub": subject}
    if agent_id:
        claims["agent"] = agent_id
    for name, values in (("scopes", scopes), ("channels", channels), ("topics", topics)):
        if listed := list(values):
            claims[name] = listed
    if info is not msgspec.UNSET:
        claims["info"] = info
    return _signed(claims, ttl, now)


def issue_subscription_token(
    subject: str, topic: str, *, ttl: timedelta | None, now: datetime | None = None, client: str = ""
) -> str:
    """Return a token with which `subject` may subscribe to `topic`.

    Args:
        subject: the user id of the connection; of an agent without one, the agent id.
        topic: what it may read.
        ttl: how long it is good; None for ever.
        now: the time from which `ttl` counts.
        client: the one connection that it is for; empty: any of `subject`.
    """
    claims = {"sub": subject, "channel": topic}
    return _signed({**claims, "client": client} if client else claims, ttl, now)


def _signed(claims: dict[str, Any], ttl: timedelta | None, now: datetime | None) -> str:
    options, moment = conf(), now or timezone.now()
    claims |= {"iat": int(moment.timestamp()), "jti": secrets.token_hex(8)}
    if ttl is not None:
        claims["exp"] = int((moment + ttl).timestamp())
    if options.token_audience:
        claims["aud"] = options.token_audience
    if options.token_issuer:
        claims["iss"] = options.token_issuer
    return jwt.encode(claims, options.token_secret, algorithm=_ALGORITHM)


def read_connection_token(token: str, *, now: datetime | None = None) -> Proof:
    """Return who a connection token says it is.

    Raises:
        Unauthorized: it is not one of ours, or not for connecting.
        TokenExpired: it was.
    """
    claims = _claims(token, _ConnectionClaims)
    if claims.channel is not None:
        raise Unauthorized("a subscription token does not connect")
    _check_names(claims)
    return Proof(
        identity=Identity(
            kind="token",
            user_id=claims.sub,
            agent_id=claims.agent,
            scopes=frozenset(claims.scopes),
            topic_patterns=claims.topics,
        ),
        channels=claims.channels,
        expires_at=_check_times(claims, now or timezone.now()),
        token_id=claims.jti,
        issued_at=_moment(claims.iat),
        info=claims.info,
    )


def _check_names(claims: _ConnectionClaims) -> None:
    """Refuse names that no row and no rule can hold, and a token of nobody."""
    if not (claims.sub or claims.agent):
        raise Unauthorized("invalid token: it names neither a user nor an agent")
    sound = (
        claims.sub.isprintable()
        and (not claims.agent or is_agent_id(claims.agent))
        and all(is_topic(name) for name in claims.channels)
        and all(is_pattern(pattern) for pattern in claims.topics)
    )
    is_small = claims.info is msgspec.UNSET or len(msgspec.json.encode(claims.info)) <= MAX_INFO_BYTES
    if not (sound and is_small):
        raise Unauthorized("invalid token")


def read_subscription_token(
    token: str, *, topic: str, subject: str, client: str = "", now: datetime | None = None
) -> Permit:
    """Check that a token lets `subject` subscribe to `topic`; return what it grants.

    Args:
        token: what the client sent.
        topic: what it wants to read.
        subject: the user id of its connection; of an agent without one, the agent id.
        client: its client id.
        now: the time.

    Raises:
        Unauthorized: it is not one of ours, or for another topic, user or connection.
        TokenExpired: its time is over.
    """
    claims = _claims(token, _SubscriptionClaims)
    if claims.channel != topic or not subject or claims.sub != subject:
        raise Unauthorized("the token is for another topic or user")
    if claims.client and claims.client != client:
        raise Unauthorized("the token is for another connection")
    return Permit(
        topic=topic,
        expires_at=_check_times(claims, now or timezone.now()),
        token_id=claims.jti,
        issued_at=_moment(claims.iat),
    )


def _claims(token: str, kind: type[ClaimsT]) -> ClaimsT:
    """Return the claims of a token whose signature is ours, made by and for whom it has to be."""
    if len(token) > MAX_TOKEN_CHARACTERS or not token.isascii():
        raise Unauthorized("invalid token")
    try:
        claims = msgspec.convert(_verified(token), kind)
    except (jwt.InvalidTokenError, msgspec.ValidationError, RecursionError):
        raise Unauthorized("invalid token") from None
    options = conf()
    audiences = (claims.aud,) if isinstance(claims.aud, str) else claims.aud
    if options.token_audience and options.token_audience not in audiences:
        raise Unauthorized("invalid token: it is for another audience")
    if options.token_issuer and options.token_issuer != claims.iss:
        raise Unauthorized("invalid token: it is by another issuer")
    return claims


def _verified(token: str) -> Any:
    """Return what a token says, signed with the secret or one of the former ones."""
    # Times, audience and issuer are checked by us: against the clock and the settings we were given.
    unchecked: Options = {
        "verify_exp": False,
        "verify_iat": False,
        "verify_nbf": False,
        "verify_aud": False,
        "verify_iss": False,
    }
    *first, last = conf().token_secret, *conf().token_previous_secrets
    for secret in first:
        try:
            return jwt.decode(token, secret, algorithms=[_ALGORITHM], options=unchecked)
        except jwt.InvalidSignatureError:
            continue
    return jwt.decode(token, last, algorithms=[_ALGORITHM], options=unchecked)


def _check_times(claims: _Claims, now: datetime) -> datetime | None:
    """Return when a token ends, if ever; refuse it before its time and after."""
    moment, leeway = now.timestamp(), conf().token_leeway.total_seconds()
    if max(claims.nbf or 0.0, claims.iat or 0.0) > moment + leeway:
        raise Unauthorized("invalid token: it is not good yet")
    if claims.exp is not None and claims.exp + leeway <= moment:
        raise TokenExpired
    return _moment(claims.exp)


def _moment(seconds: float | None) -> datetime | None:
    if seconds is None:
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        raise Unauthorized("invalid token") from None
