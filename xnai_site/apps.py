"""The site as an app: what connects bus and cleanup is connected once all apps are loaded."""

from __future__ import annotations

from django.apps import AppConfig


class SiteConfig(AppConfig):
    name = "xnai_site"
    verbose_name = "Site"

    def ready(self) -> None:
        from xnai_site import acts  # noqa: F401  (connects itself)
