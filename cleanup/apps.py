"""Cleanup: what may go, when, and the proof."""

from __future__ import annotations

from django.apps import AppConfig


class CleanupConfig(AppConfig):
    name = "cleanup"
    verbose_name = "Cleanup"

    def ready(self) -> None:
        from cleanup import checks  # noqa: F401  (registers the system checks)
