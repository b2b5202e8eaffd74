"""Commands that do not exist. Loaded last: an address that means something comes first."""

from __future__ import annotations

from django.http import HttpResponse

from bus.api.base import answer, api, error_body
from bus.api.callers import KnownRequest, by_key
from bus.api.commands import UNOFFERED, refusal_of


@api.post("/{name}", auth=by_key, include_in_schema=False)
async def unknown(request: KnownRequest, name: str) -> HttpResponse:
    """Refuse a command as Centrifugo's clients understand it: 108 if they may know it, else 104."""
    return answer(error_body(refusal_of(name)), status=200 if name in UNOFFERED else 404)
