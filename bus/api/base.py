"""The API object: how bodies are read, how refusals look, and where its documentation is.

Every answer that is no success is `{"error": {"code", "message"}}`, whatever went wrong; nothing of how the
server is built is in it.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from ninja import NinjaAPI
from ninja.errors import AuthenticationError, HttpError, ValidationError
from ninja.openapi.docs import Swagger
from ninja.parser import Parser

from bus.conf import conf
from bus.metrics import ERRORS
from bus.protocol.errors import (
    BadRequest,
    BusError,
    InternalError,
    PermissionDenied,
    Unauthorized,
    UnknownTopic,
)
from bus.protocol.limits import strict_json

DESCRIPTION = """\
Commands are `POST` with an API key in `X-API-Key` (or `Authorization: apikey KEY`) and answer
`{"result": …}` or `{"error": {"code", "message"}}`, both with status 200, as the server API of Centrifugo
does: PyPI's `cent` and its relatives in other languages are ready clients. Only a request that cannot be read
is 400, and an unknown key 401. Reading by `GET` also takes the session of staff. Live events are at
`GET /events/{topic}`, as server-sent events.
"""


class StrictParser(Parser):
    """Bodies pass the same gate as everything that comes in."""

    def parse_body(self, request: HttpRequest) -> Any:
        """Return the body; an empty one is an empty object. Raises `BadRequest`."""
        return strict_json(request.body or b"{}", conf().max_message_bytes)


class LocalSwagger(Swagger):
    """The documentation page, from files of this site alone, readable on a telephone and in the dark."""

    def render_page(self, request: HttpRequest, api: NinjaAPI, **kwargs: Any) -> HttpResponse:
        """Return the page; django-ninja's own way asks for itself as an installed app, or for the network."""
        asked = {**self.settings, "url": self.get_openapi_url(api, kwargs)}
        return render(request, "bus/api_docs.html", {"swagger_settings": json.dumps(asked)})


api = NinjaAPI(
    title="XNAi message bus",
    version="1",
    description=DESCRIPTION,
    urls_namespace="bus-api",
    parser=StrictParser(),
    # Without deep links a path is text inside the button of its operation; with them, a link within a button.
    docs=LocalSwagger(
        settings={"defaultModelsExpandDepth": 0, "tryItOutEnabled": False, "deepLinking": False}
    ),
)


def error_body(error: BusError) -> dict[str, Any]:
    """Return a refusal as it stands in an answer. It is counted."""
    ERRORS.labels(str(int(error.code))).inc()
    body: dict[str, Any] = {"code": int(error.code), "message": error.message}
    if error.retryable:
        body["temporary"] = True
    if error.data:
        body["data"] = error.data
    return {"error": body}


def answer(body: Any, *, status: int = 200) -> HttpResponse:
    """Return an answer; `body` may hold `msgspec.Raw` of what is JSON already."""
    return HttpResponse(msgspec.json.encode(body), status=status, content_type="application/json")


@api.exception_handler(AuthenticationError)
def _on_nobody(request: HttpRequest, error: AuthenticationError) -> HttpResponse:
    response = answer(error_body(Unauthorized()), status=401)
    response["WWW-Authenticate"] = 'apikey realm="bus"'
    return response


@api.exception_handler(ValidationError)
def _on_malformed(request: HttpRequest, error: ValidationError) -> HttpResponse:
    return answer(error_body(malformed(error.errors, skip=1)), status=400)


@api.exception_handler(HttpError)
def _on_unreadable(request: HttpRequest, error: HttpError) -> HttpResponse:
    cause = error.__cause__
    refusal = cause if isinstance(cause, BusError) else BadRequest(error.message)
    return answer(error_body(refusal), status=error.status_code)


@api.exception_handler(BusError)
def _on_refused(request: HttpRequest, error: BusError) -> HttpResponse:
    statuses = {PermissionDenied: 403, UnknownTopic: 404, InternalError: 500}
    status = 503 if error.retryable else statuses.get(type(error), 400)
    return answer(error_body(error), status=status)


def malformed(errors: list[Any], *, skip: int = 0) -> BadRequest:
    """Return what is wrong with a request, from the first of pydantic's findings."""
    first = errors[0] if errors else {}
    where = ".".join(str(part) for part in first.get("loc", ())[skip:] if part not in ("body", "said"))
    said = first.get("msg", "malformed")
    return BadRequest(f"{where}: {said}" if where else str(said))
