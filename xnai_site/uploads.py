"""Who uploads: the proofs of the bus, as the uploaders of cleanup; and who of other origins may.

A key or a token needs the scope `upload`; a person is logged in, is staff, has the permission, and sends the
token against forgery, for a session goes with whatever a page makes a browser send.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from asgiref.sync import sync_to_async
from django.db import close_old_connections, connection
from django.http import HttpRequest, HttpResponseBase
from django.middleware.csrf import CsrfViewMiddleware
from django.urls import URLPattern, path
from django.utils.cache import patch_vary_headers

from bus.access.credentials import KEY_MARK, holds_secret
from bus.access.keys import acheck_api_key
from bus.access.permissions import Identity
from bus.access.revocation import refuse_revoked
from bus.access.tokens import read_connection_token
from bus.conf import conf
from bus.protocol.errors import BusError
from cleanup.staging import tus
from cleanup.staging.errors import BadValue, NotAllowed
from cleanup.staging.uploads import Uploader

#: Scope of a key or a token that may upload.
UPLOAD = "upload"
#: Permission of a person who may.
MAY_UPLOAD = "cleanup.add_upload"

#: What pages of other origins, those that the settings name, may send and read.
_METHODS = "POST, HEAD, PATCH, DELETE, OPTIONS"
_SENT = (
    "Authorization, X-API-Key, X-CSRFToken, Content-Type, Tus-Resumable, Upload-Length, Upload-Offset, "
    "Upload-Metadata, Upload-Checksum, X-HTTP-Method-Override, X-Request-ID"
)
_READ = (
    "Location, Retry-After, Tus-Resumable, Tus-Version, Tus-Extension, Tus-Max-Size, Tus-Checksum-Algorithm, "
    "Upload-Offset, Upload-Length, Upload-Metadata, Upload-Expires"
)


async def uploader_of(request: HttpRequest) -> Uploader:
    """Return who asks.

    Raises:
        BadValue: a secret stands in the address.
        Stranger: nobody whom we know.
        NotAllowed: a session without the token against forgery.
    """
    if holds_secret(request.META.get("QUERY_STRING", "")):
        raise BadValue("a secret in the address; send it in a header")
    kind, _, value = request.headers.get("Authorization", "").partition(" ")
    given = request.headers.get("X-API-Key") or (
        value.strip() if kind.lower() in ("apikey", "bearer") else ""
    )
    if not given:
        return await sync_to_async(_person)(request)
    try:
        return _known(await _identity(given))
    except BusError:
        raise tus.Stranger("the key or token is unknown, has expired or was revoked") from None


async def _identity(given: str) -> Identity:
    if given.startswith(KEY_MARK):
        return (await acheck_api_key(given)).identity
    proof = read_connection_token(given)
    await refuse_revoked(proof)
    return proof.identity


def _known(identity: Identity) -> Uploader:
    kind: Literal["key", "token"] = "token" if identity.kind == "token" else "key"
    name = identity.user_id if identity.user_id.startswith("key:") else f"{kind}:{identity.user_id}"
    if identity.agent_id:  # the same agent, by a key or by a token
        name = f"agent:{identity.agent_id}"
    return Uploader(name=name, may_upload=UPLOAD in identity.scopes, kind=kind)


def _person(request: HttpRequest) -> Uploader:
    """Return who is logged in; the connection to the database is free again while the body comes."""
    try:
        user: Any = request.user
        if not (user.is_active and user.is_staff):
            raise tus.Stranger("send an API key or a token, or log in")
        may_upload = user.has_perm(MAY_UPLOAD)
    finally:
        # Within a transaction, as in a test, it belongs to whoever has begun that.
        if not connection.in_atomic_block:
            close_old_connections()
    if reason := _forgery(request):
        raise NotAllowed(f"not from a page of this site: {reason}")
    return Uploader(name=f"user:{user.get_username()}", may_upload=may_upload, kind="user")


class _Check(CsrfViewMiddleware):
    """Django's own check, which tells instead of answering with a page."""

    def _reject(self, request: HttpRequest, reason: str) -> Any:
        return reason


def _forgery(request: HttpRequest) -> str:
    """Return what is wrong with a request that comes with a session; empty if nothing is."""
    check: Any = _Check(lambda _: None)  # type: ignore[arg-type]
    check.process_request(request)
    return str(check.process_view(request, None, (), {}) or "")


def _allowing(view: Callable[..., Any]) -> Callable[..., Any]:
    """Let pages of the origins that the settings name use a view."""

    async def allowed(request: HttpRequest, **words: str) -> HttpResponseBase:
        response: HttpResponseBase = await view(request, **words)
        patch_vary_headers(response, ["Origin"])
        origin = request.headers.get("Origin", "")
        if origin in conf().allowed_origins:
            response["Access-Control-Allow-Origin"] = origin
            response["Access-Control-Allow-Credentials"] = "true"
            response["Access-Control-Allow-Methods"] = _METHODS
            response["Access-Control-Allow-Headers"] = _SENT
            response["Access-Control-Expose-Headers"] = _READ
        return response

    allowed.csrf_exempt = True  # type: ignore[attr-defined]
    return allowed


urls: list[URLPattern] = [
    path(str(entry.pattern), _allowing(entry.callback), name=entry.name) for entry in tus.urls(uploader_of)
]
