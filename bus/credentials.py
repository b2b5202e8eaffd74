"""Who stands behind a socket: from its token, its headers or its session, in that order.

A token travels in the connect command or in a header, never in the address. The session cookie counts only
with a good `Origin`: a browser sends the cookie for any page that opens a socket, and names the page. Agents
send no Origin and no cookie, so they need none.
"""

from __future__ import annotations

from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.auth import get_user
from django.http import HttpRequest
from django.utils import timezone

from bus.conf import conf
from bus.log.threads import in_thread
from bus.permissions import Identity
from bus.protocol.errors import Disconnect, DisconnectCode, Expired, TokenExpired, Unauthorized
from bus.tokens import Proof, check_api_key, read_connection_token

#: How every API key begins.
KEY_MARK = "xk_"


def headers_of(scope: Mapping[str, Any]) -> dict[str, str]:
    """Return the headers of a request, names in lower case; of repeated ones the last."""
    return {name.decode("latin1").lower(): value.decode("latin1") for name, value in scope.get("headers", ())}


async def prove(scope: Mapping[str, Any], token: str = "") -> Proof:
    """Return who it is.

    Raises:
        Unauthorized: there is no proof, or it is none of ours.
        TokenExpired: the token was one.
        Expired: the key was one.
        Disconnect: a session came from a page that may not use it.
    """
    headers = headers_of(scope)
    given = token or _bearer(headers) or headers.get("x-api-key", "")
    if given.startswith(KEY_MARK):
        return await in_thread(check_api_key, given)
    if given:
        return read_connection_token(given)
    return await _prove_session(headers)


def refusal_of(error: Unauthorized | TokenExpired | Expired) -> Disconnect:
    """Return the close for a proof that does not hold."""
    reason = DisconnectCode.INVALID_TOKEN.reason
    if isinstance(error, Unauthorized):
        return Disconnect(DisconnectCode.INVALID_TOKEN)
    return Disconnect(DisconnectCode.INVALID_TOKEN, f"{reason}: {error.message}")


def _bearer(headers: Mapping[str, str]) -> str:
    kind, _, value = headers.get("authorization", "").partition(" ")
    return value.strip() if kind.lower() == "bearer" else ""


async def _prove_session(headers: Mapping[str, str]) -> Proof:
    key = session_key(headers)
    if not key:
        raise Unauthorized("no token, no key and no session")
    if not is_own_origin(headers):
        raise Disconnect(
            DisconnectCode.PERMISSION_DENIED, "permission denied: this origin may not use the session"
        )
    return await in_thread(_user_of, key)


def session_key(headers: Mapping[str, str]) -> str:
    """Return the session key of the cookie, or an empty string."""
    try:
        cookies = SimpleCookie(headers.get("cookie", ""))
    except CookieError:
        return ""
    morsel = cookies.get(settings.SESSION_COOKIE_NAME)
    return morsel.value if morsel else ""


def is_own_origin(headers: Mapping[str, str]) -> bool:
    """Tell whether the request comes from a page of this site, or of one that the settings name."""
    origin = headers.get("origin", "")
    if origin in conf().allowed_origins or origin in settings.CSRF_TRUSTED_ORIGINS:
        return True
    host = headers.get("host", "")
    return bool(host) and urlsplit(origin).netloc == host


def _user_of(key: str) -> Proof:
    store = import_module(settings.SESSION_ENGINE).SessionStore(key)
    request = HttpRequest()
    request.session = store
    user = get_user(request)  # checks the session against the user's password hash
    if not user.is_authenticated or not user.is_active:
        raise Unauthorized("the session is over")
    return Proof(
        identity=Identity(
            kind="user",
            user_id=str(user.pk),
            is_staff=bool(getattr(user, "is_staff", False)),
            may_publish=user.has_perm("bus.publish_topic"),
        ),
        expires_at=max(store.get_expiry_date(), timezone.now()),
    )
