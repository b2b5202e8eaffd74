"""System checks of the bus: `manage.py check` speaks before a user does."""

from __future__ import annotations

from typing import Any

from django.core.checks import CheckMessage, Error, register

from bus import conf


@register("bus")
def check_settings(**_: Any) -> list[CheckMessage]:
    """Report every mistake in `settings.BUS`."""
    return [Error(text, id="bus.E001") for text in conf.problems()]
