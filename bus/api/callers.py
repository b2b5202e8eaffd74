"""Who calls, and which of the commands are his: by API key, for reading also by the session of staff.

Publishing, history and presence follow the rules of the topic, as at every other door. What reaches into
other people's connections or forgets events needs a scope of its own: a key that may publish may not
disconnect anybody.
"""

from __future__ import annotations

from django.http import HttpRequest
from ninja.security import APIKeyHeader

from bus.access.credentials import holds_secret
from bus.access.keys import KEY_MARK, acheck_api_key
from bus.access.permissions import Identity, rule_of
from bus.protocol import topics
from bus.protocol.errors import BadRequest, Expired, PermissionDenied, Unauthorized

#: Scope of a key that may see who is connected: `connections`, `channels`, `info`.
SEE_CONNECTIONS = "read:connections"
#: Scope of a key that may `disconnect`, `unsubscribe`, `subscribe` and `refresh` others.
MANAGE_CONNECTIONS = "manage:connections"
#: Scope of a key that may make a topic forget: `history_remove`.
MANAGE_TOPICS = "manage:topics"
#: Scope of a key that may take tokens back: `revoke_token`, `invalidate_user_tokens`.
MANAGE_TOKENS = "manage:tokens"


class KnownRequest(HttpRequest):
    """A request of somebody we know."""

    auth: Identity


class ByKey(APIKeyHeader):
    """Lets in who has an API key: in `X-API-Key`, or after `apikey` or `Bearer` in `Authorization`."""

    param_name = "X-API-Key"
    openapi_description = "An API key, as the console has shown it once."

    def _get_key(self, request: HttpRequest) -> str:
        kind, _, given = request.headers.get("Authorization", "").partition(" ")
        return request.headers.get("X-API-Key") or (given if kind.lower() in ("apikey", "bearer") else "")

    async def authenticate(self, request: HttpRequest, key: str | None) -> Identity | None:
        """Return who the key is, or None without one. Raises `BadRequest` for a secret in the address."""
        if holds_secret(request.META.get("QUERY_STRING", "")):
            raise BadRequest("a secret in the address; send it in a header")
        if not (key or "").startswith(KEY_MARK):
            return None
        try:
            return (await acheck_api_key(key or "")).identity
        except (Unauthorized, Expired):
            return None


by_key = ByKey()


async def by_session(request: HttpRequest) -> Identity | None:
    """Return who is logged in, if it is staff. For reading only: any page can make a browser write."""
    user = await request.auser()
    if user.is_active and user.is_staff:
        return Identity(kind="user", user_id=str(user.pk), is_staff=True, may_publish=False)
    return None


def require(by: Identity, scope: str) -> None:
    """Let pass who has a scope; staff needs none. Raises `PermissionDenied`."""
    if not (by.is_staff or scope in by.scopes):
        raise PermissionDenied


def reach(by: Identity, topic: str) -> None:
    """Let pass who may touch a topic at all: it exists by some rule, and within the patterns of the key.

    Raises:
        BadRequest: this is no name of a topic.
        UnknownTopic: no rule fits it.
        PermissionDenied: it is outside of the key's patterns.
    """
    rule_of(topic)
    if not is_within(by, topic):
        raise PermissionDenied


def is_within(by: Identity, topic: str) -> bool:
    """Tell whether a topic is within the patterns of a key."""
    patterns = by.topic_patterns
    return not patterns or any(topics.matches(pattern, topic) for pattern in patterns)
