"""Cleanup: what may go, when, and the proof."""

from __future__ import annotations

from django.apps import AppConfig


class CleanupConfig(AppConfig):
    name = "cleanup"
    verbose_name = "Cleanup"

    def ready(self) -> None:
        from django.db.models.signals import post_save

        from cleanup import checks  # noqa: F401  (registers the system checks)
        from cleanup.models import StagedFile
        from cleanup.staging.arrivals import on_staged

        post_save.connect(on_staged, sender=StagedFile, dispatch_uid="cleanup.pipeline")
