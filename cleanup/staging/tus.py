"""tus 1.0 over HTTP: `POST /files/` begins an upload, `HEAD`, `PATCH` and `DELETE /files/<id>` go on with it.

    request -> who asks (told by the site) -> headers -> body, as far as it comes -> a verb of `uploads`

Nothing is read of a body before it is clear that somebody may send it, to an upload of theirs, at its offset.
What arrived before a cut is kept, synced and counted, unless it came with a checksum; an answer with an
offset means that so much is on disk. Errors are `{"error": {"code", "message"}}`, and somebody else's upload
looks like one that is not there.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from http import HTTPStatus
from typing import Any, cast
from uuid import UUID

from django.db import OperationalError
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import URLPattern, path
from django.views.decorators.csrf import csrf_exempt

from cleanup.conf import conf
from cleanup.engine.errors import AreaBusy, EngineError
from cleanup.models import Upload, UploadState
from cleanup.operations import NotFound, OperationRefused
from cleanup.staging import bodies, uploads
from cleanup.staging.errors import (
    BadValue,
    ChecksumMismatch,
    Gone,
    Locked,
    NotAllowed,
    PartLost,
    QuotaExceeded,
    Refused,
    StagingError,
    StorageFull,
    TooLarge,
    WrongDigest,
    WrongOffset,
    WrongType,
)
from cleanup.staging.room import is_full
from cleanup.staging.turns import in_turn
from cleanup.staging.tus_headers import (
    ALGORITHMS,
    EXTENSIONS,
    checksum_of,
    date_of,
    metadata_of,
    number_of,
)
from cleanup.staging.uploads import Uploader

logger = logging.getLogger(__name__)

VERSION = "1.0.0"
PREFIX = bodies.PREFIX
#: How the body of a part is marked.
PART = "application/offset+octet-stream"
#: After so many seconds it is worth trying again where nobody knows better.
RETRY_AFTER = 5

Who = Callable[[HttpRequest], Awaitable[Uploader]]
Verb = Callable[..., Awaitable[HttpResponse]]


class Stranger(StagingError):
    """Nobody we know asks."""

    code = "unauthorized"


class BadVersion(StagingError):
    """The client speaks another version of the protocol."""

    code = "unsupported_version"


class BadMethod(StagingError):
    """There is no such thing to do here."""

    code = "method_not_allowed"


class BadPart(StagingError):
    """The body is not marked as a part."""

    code = "wrong_content_type"


class TooSlow(StagingError):
    """We lost patience with a body. What came of it is kept."""

    code = "slow_body"
    retryable = True


#: Errors and their status, the special before the general.
STATUSES: tuple[tuple[type[Exception], int], ...] = (
    (Stranger, 401),
    (NotAllowed, 403),
    (NotFound, 404),
    (BadMethod, 405),
    (TooSlow, 408),
    (WrongOffset, 409),
    (Gone, 410),
    (PartLost, 410),
    (BadVersion, 412),
    (TooLarge, 413),
    (BadPart, 415),
    (WrongType, 415),
    (WrongDigest, 422),
    (Locked, 423),
    (QuotaExceeded, 429),
    (ChecksumMismatch, 460),
    (AreaBusy, 503),
    (StorageFull, 507),
    (Refused, 400),
    (OperationRefused, 409),
    (EngineError, 409),
)


def urls(who: Who) -> list[URLPattern]:
    """Return the addresses of uploads; `who` tells who asks, or raises `Stranger` or `NotAllowed`."""
    begin: dict[str, Verb] = {"POST": create}
    go_on: dict[str, Verb] = {"HEAD": head, "PATCH": patch, "DELETE": terminate}
    route = PREFIX.lstrip("/")
    return [
        path(route, cast(Any, _view(who, begin)), name="uploads"),  # Django's types know no coroutines here
        path(f"{route}<str:upload_id>", cast(Any, _view(who, go_on)), name="upload"),
    ]


def _view(who: Who, verbs: Mapping[str, Verb]) -> Verb:
    async def view(request: HttpRequest, **words: str) -> HttpResponse:
        try:
            response = await _answer(request, who, verbs, words)
        except EngineError as error:
            response = refusal(error)
        except OperationalError as error:
            response = _without_database(error)
        response["Tus-Resumable"] = VERSION
        response["Cache-Control"] = "no-store"
        return response

    return csrf_exempt(view)  # `who` checks the token of those who come with a session


async def _answer(
    request: HttpRequest, who: Who, verbs: Mapping[str, Verb], words: dict[str, str]
) -> HttpResponse:
    method = _method_of(request)
    if method == "OPTIONS":
        return _abilities()
    uploader = await who(request)
    if not uploader.may_upload:
        raise NotAllowed("uploading needs the scope `upload`, or the permission to")
    if request.headers.get("Tus-Resumable") != VERSION:
        raise BadVersion(f"Tus-Resumable must be {VERSION}")
    if method not in verbs:
        raise BadMethod(f"here is only {', '.join([*verbs, 'OPTIONS'])}")
    return await verbs[method](request, uploader, **words)


def _method_of(request: HttpRequest) -> str:
    """Return what is to be done: for proxies that let nothing else pass, a POST may say another method."""
    said = request.headers.get("X-HTTP-Method-Override")
    if said is None:
        return request.method or ""
    if request.method != "POST":
        raise BadValue("X-HTTP-Method-Override goes with POST alone")
    return said.upper()


def _abilities() -> HttpResponse:
    response = HttpResponse(status=204)
    response["Tus-Version"] = VERSION
    response["Tus-Extension"] = EXTENSIONS
    response["Tus-Max-Size"] = str(conf().upload_max_size)
    response["Tus-Checksum-Algorithm"] = ",".join(ALGORITHMS)
    return response


async def create(request: HttpRequest, uploader: Uploader) -> HttpResponse:
    """Begin an upload, and take its first part if there is one in the request."""
    if "Upload-Defer-Length" in request.headers:
        raise BadValue("Upload-Defer-Length is not supported: Upload-Length says how long the file is")
    size = number_of(request.headers, "Upload-Length")
    raw = request.headers.get("Upload-Metadata", "")
    told = metadata_of(raw)
    checksum = _part_of(request) if _has_body(request) else None
    upload = await in_turn(
        uploads.create,
        area=told.get("area") or conf().upload_area,
        name=told.get("filename", ""),
        size=size,
        uploader=uploader,
        content_type=told.get("filetype", ""),
        sha256=told.get("sha256", ""),
        metadata=raw,
        task_id=told.get("task_id", ""),
    )
    response = HttpResponse(status=201)
    if _has_body(request):
        try:
            upload = await _take(request, upload.pk, uploader, 0, checksum)
        except (StagingError, OperationRefused, AreaBusy) as error:
            response = refusal(error)
    response["Location"] = f"{PREFIX}{upload.pk}"
    return _with_offset(response, upload)


async def head(request: HttpRequest, uploader: Uploader, upload_id: str) -> HttpResponse:
    """Tell where an upload stands."""
    upload = await in_turn(uploads.find, _id_of(upload_id), uploader)
    if upload.state == UploadState.FINISHING:  # somebody is at it, or died at it: then we finish it
        upload = await in_turn(uploads.write_part, upload.pk, uploader, upload.offset, ())
    response = _with_offset(HttpResponse(status=200), upload)
    response["Upload-Length"] = str(upload.size)
    if upload.metadata:
        response["Upload-Metadata"] = upload.metadata
    return response


async def patch(request: HttpRequest, uploader: Uploader, upload_id: str) -> HttpResponse:
    """Take the next part."""
    checksum = _part_of(request)
    offset = number_of(request.headers, "Upload-Offset")
    upload = await in_turn(uploads.find, _id_of(upload_id), uploader)
    if offset != upload.offset:
        raise WrongOffset(upload.offset)
    upload = await _take(request, upload.pk, uploader, offset, checksum)
    return _with_offset(HttpResponse(status=204), upload)


async def terminate(request: HttpRequest, uploader: Uploader, upload_id: str) -> HttpResponse:
    """Give an upload up."""
    await in_turn(uploads.terminate, _id_of(upload_id), uploader)
    return HttpResponse(status=204)


def _part_of(request: HttpRequest) -> tuple[str, bytes] | None:
    """Check what is said about a part before a byte of it is read; return its checksum, if it has one."""
    if request.headers.get("Content-Type") != PART:
        raise BadPart(f"the Content-Type of a part is {PART}")
    limit = conf().upload_part_size
    length = request.headers.get("Content-Length", "")
    if length.isdecimal() and int(length[:18]) > limit:
        raise TooLarge(f"a part has at most {limit} bytes")
    said = request.headers.get("Upload-Checksum")
    return None if said is None else checksum_of(said)


def _has_body(request: HttpRequest) -> bool:
    length = request.headers.get("Content-Length", "")
    return "Transfer-Encoding" in request.headers or (length.isdecimal() and int(length[:18]) > 0)


async def _take(
    request: HttpRequest,
    upload_id: UUID,
    uploader: Uploader,
    offset: int,
    checksum: tuple[str, bytes] | None,
) -> Upload:
    """Receive a part and write it down, as far as it came."""
    body = await bodies.receive(request, limit=conf().upload_part_size)
    try:
        if body.end != "whole" and checksum is not None:
            raise ChecksumMismatch("the part did not arrive whole")
        write = partial(uploads.write_part, checksum=checksum)
        upload: Upload = await in_turn(write, upload_id, uploader, offset, body.chunks())
    finally:
        body.close()
    if body.end == "slow":
        raise TooSlow(f"a part comes with at least {conf().upload_slowest} bytes a second")
    return upload


def _id_of(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise NotFound("there is no such upload") from None


def _with_offset(response: HttpResponse, upload: Upload) -> HttpResponse:
    response["Upload-Offset"] = str(upload.offset)
    if upload.state == UploadState.OPEN:
        response["Upload-Expires"] = date_of(upload.expires_at)
    return response


def refusal(error: EngineError) -> HttpResponse:
    """Return what a client is told of an error."""
    status = next(status for kind, status in STATUSES if isinstance(error, kind))
    response = _said(status, error.code, _words_of(error))
    if isinstance(error, QuotaExceeded):
        response["Retry-After"] = str(error.retry_after)
    elif error.retryable and status >= HTTPStatus.LOCKED:
        response["Retry-After"] = str(RETRY_AFTER)
    if isinstance(error, Stranger):
        response["WWW-Authenticate"] = 'apikey realm="uploads"'
    if isinstance(error, BadVersion):
        response["Tus-Version"] = VERSION
    return response


def _words_of(error: EngineError) -> str:
    """Return what a stranger may read: errors of the engine name folders of this host."""
    if isinstance(error, (StagingError, OperationRefused)):
        return str(error)
    logger.warning("an upload met an area that cannot be used: %s", error)
    return "the area takes no files at the moment"


def _without_database(error: OperationalError) -> HttpResponse:
    """The database has no room, or did not answer; nothing was acknowledged."""
    if is_full(error):
        return refusal(StorageFull("the database has no room; try again later"))
    logger.warning("an upload was put off: %s", error)
    response = _said(503, "unavailable", "the database did not answer; try again later")
    response["Retry-After"] = str(RETRY_AFTER)
    return response


def _said(status: int, code: str, message: str) -> HttpResponse:
    said: dict[str, Any] = {"error": {"code": code, "message": message}}
    return JsonResponse(said, status=status)
