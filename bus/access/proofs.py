"""What a token, a key or a session has proved: an identity, and how long and on what grounds it holds.

A `Proof` is made at a door (`bus.access.credentials`) and kept by the connection for as long as it lives: its
grounds are looked up again and again (`bus.access.rights`), so that what is taken away there ends here.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from msgspec import UNSET

from bus.access.permissions import Identity


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """Who somebody is, and how that is known."""

    identity: Identity
    #: Topics to which the server subscribes the connection.
    channels: tuple[str, ...] = ()
    #: When the connection has to prove itself again, or None.
    expires_at: datetime | None = None
    #: Prefix of the API key behind it, or empty.
    key_prefix: str = ""
    #: Key of the Django session behind it, or empty.
    session_key: str = ""
    #: `jti` of the token behind it, or empty.
    token_id: str = ""
    #: When the token was issued; None where it does not say.
    issued_at: datetime | None = None
    #: What others are told of the connection, as JSON; unset: nothing.
    info: Any = UNSET
