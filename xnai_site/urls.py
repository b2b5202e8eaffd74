"""Addresses of the site.

`/healthz/live`, `/healthz/ready` and `/metrics` are not here: a middleware answers them before host checks.
"""

from __future__ import annotations

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.templatetags.static import static
from django.urls import include, path
from django.views.decorators.http import require_safe

from cleanup.admin.explain import explain_page
from xnai_site import health, overview, uploads


@require_safe
def favicon(request: HttpRequest) -> HttpResponse:
    """What browsers and programs ask for that have read no page of ours."""
    return redirect(static("bus/mark.svg"))


admin.autodiscover()

urlpatterns = [
    *overview.urls,
    path("admin/cleanup/explain/", admin.site.admin_view(explain_page), name="cleanup-explain"),
    path("admin/", admin.site.urls),
    path("healthz/full", health.full, name="healthz-full"),
    path("favicon.ico", favicon, name="favicon"),
    *uploads.urls,
    path("", include("bus.urls")),
]
