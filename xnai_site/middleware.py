"""Two middlewares of the site: early answers for machines, and the content security policy of the console.

`machine_endpoints` stands first. A probe or a scraper calls by address, not by the site's name, and must
depend neither on host checks nor on redirects to https nor on sessions. `admin_content_security` stands
behind django-csp, which writes the header on the way out. Both are asynchronous under ASGI: no change of
thread.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.http import HttpRequest, HttpResponseBase
from django.urls import reverse
from django.utils.decorators import sync_and_async_middleware

from xnai_site import health

Answer = Callable[[HttpRequest], HttpResponseBase]
AsyncAnswer = Callable[[HttpRequest], Awaitable[HttpResponseBase]]

#: Unfold's build of Alpine evaluates the expressions in its attributes.
ADMIN_DIRECTIVES = {"script-src": ["'unsafe-eval'"]}


@sync_and_async_middleware
def machine_endpoints(get_response: Any) -> Answer | AsyncAnswer:
    """Answer `/healthz/live`, `/healthz/ready` and `/metrics` before anything else looks at the request."""
    if not iscoroutinefunction(get_response):

        def answer(request: HttpRequest) -> HttpResponseBase:
            view = health.MACHINE_VIEWS.get(request.path_info)
            return view(request) if view else cast(HttpResponseBase, get_response(request))

        return answer

    async def aanswer(request: HttpRequest) -> HttpResponseBase:
        view = health.MACHINE_VIEWS.get(request.path_info)
        if view is None:
            return cast(HttpResponseBase, await get_response(request))
        if view is health.live:  # says that the event loop turns: it must not wait for a thread
            return view(request)
        return await sync_to_async(view, thread_sensitive=True)(request)

    return aanswer


@sync_and_async_middleware
def admin_content_security(get_response: Any) -> Answer | AsyncAnswer:
    """Allow `'unsafe-eval'` to the pages of the console, and to them alone."""

    def widen(request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        if request.path.startswith(reverse("admin:index")):
            response._csp_update = ADMIN_DIRECTIVES  # type: ignore[attr-defined]  # what django-csp reads
        return response

    if not iscoroutinefunction(get_response):
        return lambda request: widen(request, get_response(request))

    async def aanswer(request: HttpRequest) -> HttpResponseBase:
        return widen(request, await get_response(request))

    return aanswer
