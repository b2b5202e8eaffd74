"""Plain JSON sockets of a site, for the tests of path B and of those that live beside it."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.harness import Site
from tests.servers import PATIENCE


def plain(site: Site, path: str, agent: str, *scopes: str) -> ClientConnection:
    """A plain socket of an agent, by a token in a header."""
    headers = {"Authorization": f"Bearer {site.token(agent, *scopes)}"}
    return connect(
        f"ws://127.0.0.1:{site.web[0].port}{path}",
        additional_headers=headers,
        proxy=None,
        open_timeout=PATIENCE,
    )


def read(client: ClientConnection, timeout: float = PATIENCE) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(client.recv(timeout))
    return found


def closing(client: ClientConnection) -> tuple[int, str]:
    """Read to the end; code and reason of the close."""
    with suppress(ConnectionClosed):
        while True:
            client.recv(PATIENCE)
    assert client.close_code is not None
    return client.close_code, client.close_reason or ""


def staff_headers(site: Site) -> dict[str, str]:
    """Headers of a browser in which somebody of the staff is logged in."""
    key = site.python(
        "from django.contrib.auth import get_user_model; "
        "from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY; "
        "from django.contrib.sessions.backends.db import SessionStore; "
        "u, _ = get_user_model().objects.get_or_create(username='boss', is_staff=True); s = SessionStore(); "
        "s[SESSION_KEY] = str(u.pk); s[BACKEND_SESSION_KEY] = 'django.contrib.auth.backends.ModelBackend'; "
        "s[HASH_SESSION_KEY] = u.get_session_auth_hash(); s.create(); print(s.session_key)"
    )
    return {"Cookie": f"sessionid={key}"}
