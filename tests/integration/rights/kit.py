"""Roles with their proofs, and clients that come with them."""

from __future__ import annotations

import json
import secrets
from typing import Any

import jwt
from websockets.sync.client import ClientConnection, connect

from tests.e2e.clients import RawClient
from tests.harness import Site

SCOPES = ["publish", "publish:agent", "publish:task", "publish:broadcast"]
#: Roles that come with a token, each with what it says.
TOKENS: dict[str, dict[str, Any]] = {
    "agent": {"sub": "u7", "agent": "a7"},
    "worker": {"sub": "u8", "agent": "a8", "scopes": SCOPES},
    "user": {"sub": "u9"},
    "fenced": {"sub": "u10", "scopes": SCOPES, "topics": ["task:x*"]},
}
PEOPLE = ("boss", "viewer", "person")
KEYS = ("server", "reader", "keyed", "fenced_key")
ROLES = (*PEOPLE, *TOKENS, *KEYS)


class Cast:
    """Everybody, and the headers by which they prove who they are."""

    def __init__(self, site: Site) -> None:
        self.site = site
        made = json.loads(site.python("from tests.integration.rights.cast import matrix; matrix()"))
        self.sessions: dict[str, str] = made["sessions"]
        self.keys: dict[str, str] = made["keys"]

    def headers(self, role: str, server: int = 0) -> dict[str, str]:
        """Headers that prove a role; of people with the Origin of a page of the site."""
        if role in self.sessions:
            return cookie(self.site, self.sessions[role], server)
        if role in self.keys:
            return {"X-API-Key": self.keys[role]}
        return {"Authorization": f"Bearer {token(self.site, **TOKENS[role])}"} if role in TOKENS else {}

    def client(self, role: str, server: int = 0) -> RawClient:
        """A client of the Centrifugo protocol, connected."""
        return client(self.site, self.headers(role, server), server)

    def plain(self, role: str, path: str) -> ClientConnection:
        """A plain socket."""
        url = f"ws://127.0.0.1:{self.site.web[0].port}{path}"
        return connect(url, additional_headers=self.headers(role), proxy=None, open_timeout=60)


def cookie(site: Site, session: str, server: int = 0) -> dict[str, str]:
    """Headers of a browser."""
    return {"Cookie": f"sessionid={session}", "Origin": site.web[server].url}


def client(site: Site, headers: dict[str, str], server: int = 0, **words: Any) -> RawClient:
    """A client that has connected with these headers."""
    given = dict(headers)
    opened = RawClient(site.web[server].socket, origin=given.pop("Origin", None), additional_headers=given)
    try:
        opened.call("connect", **words)
    except BaseException:
        opened.close()
        raise
    return opened


def token(site: Site, **claims: Any) -> str:
    """A token with exactly these claims."""
    return jwt.encode(claims, site.secret, algorithm="HS256")


def subscription_token(site: Site, subject: str, topic: str, **claims: Any) -> str:
    """A subscription token."""
    return token(site, **{"sub": subject, "channel": topic, "jti": secrets.token_hex(8), **claims})
