"""The bus: who is connected, what was said, who has heard it."""

from __future__ import annotations

from django.apps import AppConfig


class BusConfig(AppConfig):
    name = "bus"
    verbose_name = "Bus"

    def ready(self) -> None:
        from bus import checks  # noqa: F401  (registers the system checks)
