"""Addresses of the site.

`/healthz/live`, `/healthz/ready` and `/metrics` are not here: a middleware answers them before host checks.
"""

from __future__ import annotations

from django.contrib import admin
from django.urls import include, path

from xnai_site import health

urlpatterns = [
    path("admin/", admin.site.urls),
    path("healthz/full", health.full, name="healthz-full"),
    path("", include("bus.urls")),
]
