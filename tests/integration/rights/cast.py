"""Who plays in these tests: made inside the site's Django, printed as JSON, and changed there, too."""

from __future__ import annotations

import json
import time
from typing import Any

from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.contrib.auth.models import Permission, User
from django.contrib.sessions.backends.db import SessionStore
from django.contrib.sessions.models import Session
from django.utils import timezone

from bus.access.keys import change_api_key, create_api_key, revoke_api_key
from bus.access.revocation import revoke
from bus.models import ApiKey
from bus.publishing import publish

SCOPES = ("publish", "publish:agent", "publish:task", "publish:broadcast")


def login(name: str, *, is_staff: bool = False, may_publish: bool = False) -> str:
    """Make a person who is logged in; return the session key."""
    person = User.objects.create(username=name, is_staff=is_staff, password="!first")
    if may_publish:
        person.user_permissions.add(Permission.objects.get(codename="publish_topic"))
    store = SessionStore()
    store[SESSION_KEY] = str(person.pk)
    store[BACKEND_SESSION_KEY] = "django.contrib.auth.backends.ModelBackend"
    store[HASH_SESSION_KEY] = person.get_session_auth_hash()
    store.create()
    assert store.session_key is not None
    return store.session_key


def key(name: str, **rights: Any) -> str:
    """Make a key; return it."""
    return create_api_key(name, **rights)[1]


def matrix() -> None:
    """Print the proofs of the roles of the matrix that rows are needed for."""
    sessions = {
        "boss": login("boss", is_staff=True, may_publish=True),
        "viewer": login("viewer", is_staff=True),
        "person": login("person"),
    }
    keys = {
        "server": key("server", scopes=[*SCOPES, "vault"]),
        "reader": key("reader"),
        "keyed": key("keyed", agent_id="a6", scopes=["publish:task"]),
        "fenced_key": key("fenced", scopes=SCOPES, topics=["task:x*"]),
    }
    print(json.dumps({"sessions": sessions, "keys": keys}))  # noqa: T201


def say(*topics: str) -> None:
    """Publish one event to each topic, as our own code does."""
    for topic in topics:
        publish(topic, "said", {"topic": topic})


#: What is done to a person, and to a key; each is named after its cause.
PEOPLE: dict[str, Any] = {
    "logged_out": lambda person: Session.objects.filter(session_key=person.sessions).delete(),
    "deactivated": lambda person: User.objects.filter(pk=person.pk).update(is_active=False),
    "deleted": lambda person: User.objects.filter(pk=person.pk).delete(),
    "password_changed": lambda person: User.objects.filter(pk=person.pk).update(password="!other"),
    "no_longer_staff": lambda person: User.objects.filter(pk=person.pk).update(is_staff=False),
    "no_longer_publisher": lambda person: person.user_permissions.clear(),
}
KEYS: dict[str, Any] = {
    "key_revoked": revoke_api_key,
    "key_deleted": lambda row: row.delete(),
    "key_expired": lambda row: ApiKey.objects.filter(pk=row.pk).update(expires_at=timezone.now()),
    "key_fenced": lambda row: change_api_key(
        row, scopes=SCOPES, topics=["task:other", "broadcast"], expires_at=None
    ),
    "key_without_scope": lambda row: change_api_key(row, scopes=(), topics=(), expires_at=None),
}


def victims(mark: str) -> None:
    """Print a session for each cause of `PEOPLE` and a key for each of `KEYS`."""
    found = {
        **{cause: login(f"{cause}{mark}", is_staff=True, may_publish=True) for cause in PEOPLE},
        **{cause: key(f"{cause}{mark}", scopes=SCOPES) for cause in KEYS},
    }
    print(json.dumps(found))  # noqa: T201


def strike(mark: str, sessions: dict[str, str]) -> None:
    """Do to each victim what its cause says, take tokens back; print when the last of it was committed."""
    for cause, act in PEOPLE.items():
        person = User.objects.get(username=f"{cause}{mark}")
        person.sessions = sessions[cause]  # type: ignore[attr-defined]
        act(person)
    for cause, act in KEYS.items():
        act(ApiKey.objects.get(name=f"{cause}{mark}"))
    revoke(token_id=f"jti{mark}")
    revoke(user_id=f"user{mark}")
    revoke(agent_id=f"agent{mark}")
    print(time.time())  # noqa: T201
