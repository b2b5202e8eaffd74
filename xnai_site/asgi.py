"""The ASGI application: HTTP to Django, bodies of uploads to their views, the rest to the bus.

It names no server: Daphne serves it by default, any other ASGI server can.
"""

from __future__ import annotations

import gc
import os

from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "xnai_site.settings")

# What is loaded here stays for good. To look through it for garbage takes a fifth of the start, and later it
# would be a pause for every connection: it is left out then, too.
gc.disable()

http_application = get_asgi_application()

from bus.doors.routing import websocket_urlpatterns, with_streams  # noqa: E402  (needs the app registry that the line above fills)
from cleanup.staging.bodies import with_bodies  # noqa: E402
from xnai_site import urls  # noqa: E402, F401  (here, or the first who asks would wait for the pages to load)

application = ProtocolTypeRouter(
    {"http": with_streams(with_bodies(http_application)), "websocket": URLRouter(websocket_urlpatterns)}
)

gc.freeze()
gc.enable()
