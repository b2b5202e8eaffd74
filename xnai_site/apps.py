"""The site as an app: what connects bus and cleanup is connected once all apps are loaded.

The pages of the console and the HTTP API take longer to load than everything else together, and most
processes (commands, workers, beat) never show one: they are loaded with the addresses (`xnai_site.urls`).
"""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.contrib import admin
from django.contrib.admin.apps import SimpleAdminConfig
from django.contrib.admin.checks import check_admin_app, check_dependencies
from django.core import checks


class SiteConfig(AppConfig):
    name = "xnai_site"
    verbose_name = "Site"
    default = True

    def ready(self) -> None:
        from xnai_site import acts  # noqa: F401  (connects itself)


class ConsoleConfig(SimpleAdminConfig):
    """Django's admin, whose pages are loaded by those who serve them or look at them."""

    def ready(self) -> None:
        checks.register(check_dependencies, checks.Tags.admin)
        checks.register(check_pages, checks.Tags.admin)


def check_pages(app_configs: Any, **options: Any) -> list[checks.CheckMessage]:
    """Django's own check of all pages, once they are loaded."""
    admin.autodiscover()
    found: list[checks.CheckMessage] = check_admin_app(app_configs, **options)
    return found
