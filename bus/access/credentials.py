"""Who stands behind a socket: from its token, its headers or its session, in that order.

A token travels in the connect command or in a header, never in the address: addresses are written into logs,
histories and referrers. The session cookie counts only with a good `Origin`: a browser sends the cookie for
any page that opens a socket, and names the page. Agents send no Origin and no cookie, so they need none.
"""

from __future__ import annotations

from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl

from django.conf import settings
from django.http.request import split_domain_port, validate_host
from django.utils import timezone

from bus.access.keys import KEY_MARK, acheck_api_key
from bus.access.logins import current_logins
from bus.access.proofs import Proof
from bus.access.revocation import refuse_revoked
from bus.access.tokens import read_connection_token
from bus.conf import conf
from bus.log.threads import in_thread
from bus.protocol.errors import Disconnect, DisconnectCode, Expired, TokenExpired, Unauthorized

__all__ = ["KEY_MARK", "headers_of", "holds_secret", "is_own_origin", "prove", "refusal_of", "session_key"]

#: Names under which people put secrets into addresses.
_SECRET_NAMES = frozenset(
    {
        "access_token",
        "api_key",
        "apikey",
        "auth",
        "authorization",
        "jwt",
        "key",
        "password",
        "secret",
        "sessionid",
        "token",
        "x-api-key",
    }
)


def headers_of(scope: Mapping[str, Any]) -> dict[str, str]:
    """Return the headers of a request, names in lower case; of repeated ones the last."""
    return {name.decode("latin1").lower(): value.decode("latin1") for name, value in scope.get("headers", ())}


async def prove(scope: Mapping[str, Any], token: str = "") -> Proof:
    """Return who it is.

    Raises:
        Unauthorized: there is no proof, or it is none of ours.
        TokenExpired: the token was one.
        Expired: the key was one.
        Disconnect: the address holds a secret, or a session came from a page that may not use it.
    """
    if holds_secret(scope.get("query_string", b"")):
        raise Disconnect(
            DisconnectCode.BAD_REQUEST,
            "bad request: a secret in the address; send it in a header or in the connect command",
        )
    headers = headers_of(scope)
    given = token or _bearer(headers) or headers.get("x-api-key", "")
    if given.startswith(KEY_MARK):
        return await acheck_api_key(given)
    if given:
        proof = read_connection_token(given)
        await refuse_revoked(proof)
        return proof
    return await _prove_session(headers)


def refusal_of(error: Unauthorized | TokenExpired | Expired) -> Disconnect:
    """Return the close for a proof that does not hold."""
    reason = DisconnectCode.INVALID_TOKEN.reason
    if isinstance(error, Unauthorized):
        return Disconnect(
            DisconnectCode.INVALID_TOKEN, error.message if error.message.startswith(reason) else reason
        )
    return Disconnect(DisconnectCode.INVALID_TOKEN, f"{reason}: {error.message}")


def holds_secret(query: bytes | str) -> bool:
    """Tell whether the query of an address holds a token, a key or the like, by its name or its looks."""
    text = query.decode("latin1") if isinstance(query, bytes) else query
    return any(
        name.lower() in _SECRET_NAMES or value.startswith((KEY_MARK, "eyJ"))
        for name, value in parse_qsl(text, keep_blank_values=True)
    )


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
    found = await in_thread(current_logins, {key}, now=timezone.now())
    if key not in found:
        raise Unauthorized("the session is over")
    return found[key]


def session_key(headers: Mapping[str, str]) -> str:
    """Return the session key of the cookie, or an empty string."""
    try:
        cookies = SimpleCookie(headers.get("cookie", ""))
    except CookieError:
        return ""
    morsel = cookies.get(settings.SESSION_COOKIE_NAME)
    return morsel.value if morsel and morsel.value.isalnum() else ""


def is_own_origin(headers: Mapping[str, str]) -> bool:
    """Tell whether the request comes from a page of this site, or of one that the settings name.

    A page without TLS is not of a site that has it: anybody on the way could have written it. A page names no
    origin when it reads from its own site; the browser itself says then that it is the same.
    """
    origin = headers.get("origin", "")
    if not origin and headers.get("sec-fetch-site", "") in ("same-origin", "none"):
        return True
    if origin in conf().allowed_origins or origin in settings.CSRF_TRUSTED_ORIGINS:
        return True
    host = headers.get("host", "")
    own = {f"https://{host}"} if settings.SESSION_COOKIE_SECURE else {f"https://{host}", f"http://{host}"}
    return origin in own and validate_host(split_domain_port(host)[0], settings.ALLOWED_HOSTS)
