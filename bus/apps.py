"""The bus: who is connected, what was said, who has heard it."""

from __future__ import annotations

from django.apps import AppConfig


class BusConfig(AppConfig):
    name = "bus"
    verbose_name = "Bus"

    def ready(self) -> None:
        from bus import layer, publishing
        from bus.connections import inboxes  # noqa: F401  (they register themselves)

        # Every process that publishes hints: servers, workers and commands alike.
        publishing.on_committed(layer.told)
