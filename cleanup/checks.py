"""System checks of cleanup: `manage.py check` speaks before a user does."""

from __future__ import annotations

from typing import Any

from django.core.checks import CheckMessage, Error, register

from cleanup import conf


@register("cleanup")
def check_settings(**_: Any) -> list[CheckMessage]:
    """Report every mistake in `settings.CLEANUP`."""
    return [Error(text, id="cleanup.E001") for text in conf.problems()]
