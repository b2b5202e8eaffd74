"""The settings of the site with rules and limits that these tests need."""

from __future__ import annotations

from typing import Any

from xnai_site.settings import *  # noqa: F403
from xnai_site.settings import BUS as SITE_BUS

BUS: dict[str, Any] = {
    **SITE_BUS,
    "MAX_SUBSCRIPTIONS": 20,
    "MAX_CONNECTIONS_PER_USER": 3,
    # So slow that a busy machine gives nobody back what was spent a moment ago.
    "PUBLISH_RATE": 2.0,
    "PUBLISH_BURST": 150,
    "TOPICS": [
        {
            "pattern": "vault:*",
            "presence": True,
            "subscribe": "token",
            "publish": "scope:vault",
            "history": "token",
            "presence_read": "token",
        },
        {
            "pattern": "closed:*",
            "subscribe": "server",
            "publish": "server",
            "history": "server",
            "presence_read": "server",
        },
    ],
}
