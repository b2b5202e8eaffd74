"""Sessions of people as proofs: who is logged in, and whether that still holds.

A session counts while its row is there, its user exists and is active, and the user's password is the one
with which the session began: the rules of Django's own `get_user`, for many sessions in three queries.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from importlib import import_module
from typing import Any

from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY, get_user_model
from django.core.exceptions import ValidationError
from django.utils.crypto import constant_time_compare

from bus.access.permissions import Identity
from bus.access.proofs import Proof

#: The permission without which people only read.
PUBLISH = "bus.publish_topic"
#: Where permissions are looked up; django-axes stands before it and grants none.
_BACKEND = "django.contrib.auth.backends.ModelBackend"


def current_logins(keys: Collection[str], *, now: datetime) -> dict[str, Proof]:
    """Return who is logged in by these sessions, by session key; of those that are over, nothing."""
    if not keys:
        return {}
    store = import_module(settings.SESSION_ENGINE).SessionStore
    rows = store.get_model_class().objects.filter(session_key__in=keys, expire_date__gt=now)
    sessions = {row.session_key: (row.get_decoded(), row.expire_date) for row in rows}
    owners = {key: pk for key, (said, _) in sessions.items() if (pk := _owner(said)) is not None}
    users = get_user_model()._default_manager.in_bulk(set(owners.values()))
    publishers = _publishers(users)
    return {
        key: _proof(users[pk], key, sessions[key][1], may_publish=pk in publishers)
        for key, pk in owners.items()
        if pk in users and _holds(users[pk], sessions[key][0])
    }


def identity_of(user: Any) -> Identity:
    """Return a person who is logged in as the one that publishes."""
    return Identity(
        kind="user",
        user_id=str(user.pk),
        is_staff=bool(getattr(user, "is_staff", False)),
        may_publish=user.has_perm(PUBLISH),
    )


def _owner(said: Mapping[str, Any]) -> Any:
    """Return the primary key of the user of a session, or None."""
    try:
        return get_user_model()._meta.pk.to_python(said[SESSION_KEY])
    except (KeyError, ValidationError):
        return None


def _publishers(users: Mapping[Any, Any]) -> set[Any]:
    if not users:
        return set()
    having = get_user_model()._default_manager.with_perm(PUBLISH, backend=_BACKEND)
    return set(having.filter(pk__in=users).values_list("pk", flat=True))


def _holds(user: Any, said: Mapping[str, Any]) -> bool:
    """Tell whether a session still belongs to its user: active, and with the password of then."""
    if not user.is_active or said.get(BACKEND_SESSION_KEY) not in settings.AUTHENTICATION_BACKENDS:
        return False
    given = str(said.get(HASH_SESSION_KEY, ""))
    good = (user.get_session_auth_hash(), *user.get_session_auth_fallback_hash())
    return any(constant_time_compare(given, each) for each in good)


def _proof(user: Any, key: str, expires_at: datetime, *, may_publish: bool) -> Proof:
    identity = Identity(
        kind="user",
        user_id=str(user.pk),
        is_staff=bool(getattr(user, "is_staff", False)),
        may_publish=may_publish,
    )
    return Proof(identity=identity, expires_at=expires_at, session_key=key)
