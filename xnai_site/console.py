"""The look and the menu of the console (Django admin with unfold)."""

from __future__ import annotations

from typing import Any

UNFOLD: dict[str, Any] = {"SITE_TITLE": "XNAi", "SITE_HEADER": "XNAi", "SITE_SUBHEADER": "message bus and retention"}
