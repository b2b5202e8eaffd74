"""What operators do to keys and tokens: who may come in, and what with."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.db.models import QuerySet

from bus.access import keys, revocation
from bus.acts import Operator, note
from bus.models import ApiKey, TokenRevocation


def make_key(
    operator: Operator,
    name: str,
    *,
    agent_id: str = "",
    scopes: Iterable[str] = (),
    topics: Iterable[str] = (),
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """Make a key; return its row and the key itself, which is not to be had again.

    Raises:
        BadRequest: a name, scope or pattern that cannot be, or a name that is taken.
    """
    with transaction.atomic():
        row, secret = keys.create_api_key(
            name, agent_id=agent_id, scopes=scopes, topics=topics, expires_at=expires_at
        )
        note(operator, "bus_key_made", _shown(row), **_rights(row))
    return row, secret


def rotate_key(operator: Operator, row: ApiKey, *, overlap: timedelta) -> tuple[ApiKey, str]:
    """Replace a key by a new one with its name and rights; return its row and the new key itself.

    The former stays good for `overlap`, under a name that says so.

    Raises:
        BadRequest: it was revoked or has expired.
    """
    with transaction.atomic():
        made, secret = keys.rotate_api_key(row, overlap=overlap)
        seconds = int(overlap.total_seconds())
        note(operator, "bus_key_rotated", _shown(made), former=row.prefix, overlap_s=seconds)
    return made, secret


def change_key(
    operator: Operator,
    row: ApiKey,
    *,
    scopes: Iterable[str],
    topics: Iterable[str],
    expires_at: datetime | None,
) -> None:
    """Give a key other rights. Raises `BadRequest`: a scope or pattern that cannot be."""
    with transaction.atomic():
        keys.change_api_key(row, scopes=scopes, topics=topics, expires_at=expires_at)
        row.refresh_from_db()
        note(operator, "bus_key_changed", _shown(row), **_rights(row))


def revoke_key(operator: Operator, row: ApiKey, *, reason: str = "") -> None:
    """Make a key useless for good."""
    with transaction.atomic():
        keys.revoke_api_key(row)
        note(operator, "bus_key_revoked", _shown(row), reason=reason, prefix=row.prefix)


def revoke_tokens(
    operator: Operator,
    *,
    token_id: str = "",
    user_id: str = "",
    agent_id: str = "",
    until: datetime | None = None,
    text: str = "",
) -> TokenRevocation:
    """Take tokens back: one, or all that a user or an agent has. Raises `BadRequest`."""
    with transaction.atomic():
        row = revocation.revoke(token_id=token_id, user_id=user_id, agent_id=agent_id, until=until, note=text)
        note(operator, "bus_tokens_revoked", str(row), reason=text)
    return row


def accept_tokens(operator: Operator, rows: QuerySet[TokenRevocation]) -> list[str]:
    """Accept tokens again that were taken back; return whose."""
    with transaction.atomic():
        names = [str(row) for row in rows]
        revocation.take_back(rows)
        for name in names:
            note(operator, "bus_tokens_accepted", name)
    return names


def _shown(row: ApiKey) -> str:
    return f"key:{row.name}"


def _rights(row: ApiKey) -> dict[str, Any]:
    return {
        "prefix": row.prefix,
        "agent": row.agent_id,
        "scopes": list(row.scopes),
        "topics": list(row.topics),
        "expires_at": None if row.expires_at is None else row.expires_at.isoformat(),
    }
