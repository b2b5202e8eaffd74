"""Addresses of the site.

`/healthz/live`, `/healthz/ready` and `/metrics` are not here: a middleware answers them before host checks.
"""

from __future__ import annotations

from django.contrib import admin
from django.urls import include, path

from cleanup.admin.explain import explain_page
from xnai_site import health, overview

urlpatterns = [
    *overview.urls,
    path("admin/cleanup/explain/", admin.site.admin_view(explain_page), name="cleanup-explain"),
    path("admin/", admin.site.urls),
    path("healthz/full", health.full, name="healthz-full"),
    path("", include("bus.urls")),
]
