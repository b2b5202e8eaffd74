"""The settings of the site, with little patience for slow bodies, small parts, and an area for uploads."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from xnai_site.settings import *  # noqa: F403
from xnai_site.settings import BUS as SITE_BUS
from xnai_site.settings import CLEANUP as SITE_CLEANUP

BUS: dict[str, Any] = {**SITE_BUS, "ALLOWED_ORIGINS": ["https://friends.example"]}
CLEANUP: dict[str, Any] = {
    **SITE_CLEANUP,
    "UPLOAD_AREA": "inbox",
    "UPLOAD_PATIENCE": timedelta(seconds=1),
    "UPLOAD_SLOWEST": 1 << 20,
    "UPLOAD_MAX_SIZE": 1 << 20,
    "UPLOAD_PART_SIZE": 1 << 16,
}
