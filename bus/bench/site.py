"""Settings for the servers of a benchmark: those of the site, with room for the load.

`BENCH_SETTINGS` names the site's own module. Nothing that costs time is switched off: only limits are raised
that exist to keep a single client from doing what a benchmark does.
"""

from __future__ import annotations

import os
from importlib import import_module

_site = import_module(os.environ["BENCH_SETTINGS"])
globals().update({name: getattr(_site, name) for name in dir(_site) if name.isupper()})

BUS = {
    **_site.BUS,
    "MAX_CONNECTIONS": 20_000,
    "MAX_CONNECTIONS_PER_USER": 20_000,
    "COMMAND_RATE": 1e6,
    "COMMAND_BURST": 1_000_000,
    "TOPICS": [
        {"pattern": "bench:*", "publish": "scope:publish"},
        {"pattern": "bench-live:*", "publish": "scope:publish", "delivery": "ephemeral"},
        *_site.BUS.get("TOPICS", ()),
    ],
}
# Without a server for it the naive application still runs, within its process.
if os.environ.get("BENCH_MEMORY_LAYER"):
    CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
