"""Runs a server of a benchmark: `python -m bus.bench.serve`, which reads one JSON line from standard input.

The line names the settings module of the site, the secret of the process that measures, and the program.
Nothing that costs time is switched off: only limits are raised that keep a single client from doing what a
benchmark does. The secret comes this way because a command line can be read by others.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from runpy import run_module
from typing import Any

from django.conf import settings


def raised(site: dict[str, Any], *, secret: str, has_layer: bool) -> dict[str, Any]:
    """Return the settings of the site with room for the load."""
    limits = {
        "MAX_CONNECTIONS": 20_000,
        "MAX_CONNECTIONS_PER_USER": 20_000,
        "CONNECT_RATE": 1e6,
        "CONNECT_BURST": 1_000_000,
        "COMMAND_RATE": 1e6,
        "COMMAND_BURST": 1_000_000,
        "PUBLISH_RATE": 1e6,
        "PUBLISH_BURST": 1_000_000,
        "TOKEN_SECRET": secret,
    }
    topics = [
        {"pattern": "bench:*", "publish": "scope:publish"},
        {"pattern": "bench-live:*", "publish": "scope:publish", "delivery": "ephemeral"},
    ]
    found = {**site, "BUS": {**site["BUS"], **limits, "TOPICS": [*topics, *site["BUS"].get("TOPICS", ())]}}
    if not has_layer:
        # The naive application still runs without Redis, within its process.
        found["CHANNEL_LAYERS"] = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
    return found


def main() -> None:
    """Read what to run, and run it in this process."""
    told = json.loads(sys.stdin.readline())
    module = import_module(told["settings"])
    site = {name: getattr(module, name) for name in dir(module) if name.isupper()}
    settings.configure(**raised(site, secret=told["secret"], has_layer=told["has_layer"]))
    sys.argv = [told["program"], *told["arguments"]]
    run_module(told["program"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
