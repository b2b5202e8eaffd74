"""Tokens and keys: what makes them good, and how long they are believed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from django.contrib.auth.models import User
from django.db import IntegrityError, connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from bus.access import revocation, tokens
from bus.access.keys import (
    STALENESS,
    acheck_api_key,
    change_api_key,
    check_api_key,
    create_api_key,
    revoke_api_key,
)
from bus.access.logins import current_logins
from bus.conf import conf
from bus.log.threads import in_thread
from bus.models import TokenRevocation
from bus.protocol.errors import BadRequest, Expired, TokenExpired, Unauthorized

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
OLD, NEW, OTHER = ("a former secret of 32 bytes......", "the present secret of 32 bytes...", "x" * 40)


def signed(secret: str = NEW, *, algorithm: str = "HS256", **claims: Any) -> str:
    return jwt.encode({"sub": "u", **claims}, secret, algorithm=algorithm)


@pytest.fixture
def secret(settings: Any) -> Any:
    settings.BUS = {**settings.BUS, "TOKEN_SECRET": NEW, "TOKEN_PREVIOUS_SECRETS": [OLD]}
    return settings


def test_a_former_secret_counts_until_it_is_taken_out(secret: Any) -> None:
    assert tokens.read_connection_token(signed(OLD), now=NOW).identity.user_id == "u"
    assert tokens.read_connection_token(signed(NEW), now=NOW).identity.user_id == "u"
    with pytest.raises(Unauthorized):
        tokens.read_connection_token(signed(OTHER), now=NOW)
    assert jwt.decode(tokens.issue_connection_token("u", ttl=None), NEW, algorithms=["HS256"])
    secret.BUS = {**secret.BUS, "TOKEN_PREVIOUS_SECRETS": []}
    with pytest.raises(Unauthorized):
        tokens.read_connection_token(signed(OLD), now=NOW)


@pytest.mark.parametrize(
    "token",
    [
        signed(algorithm="HS512", secret="the present secret of 32 bytes..." * 2),
        jwt.encode({"sub": "u"}, None, algorithm="none"),
        jwt.encode({"sub": "u"}, NEW, algorithm="HS256", headers={"crit": ["x"], "x": 1}),
        signed()[:-2],
        signed() + "." + signed(),
        signed(sub="x" * 181),
        signed(sub="a\0b"),
        signed(sub="", agent=""),
        signed(agent="a b"),
        signed(agent="a" * 181),
        signed(channels=["no topic"]),
        signed(topics=["task:["]),
        signed(scopes=["x"] * 1_001),
        signed(info="x" * 3_000),
        signed(iat=(NOW + MINUTE).timestamp()),
        signed(nbf=(NOW + MINUTE).timestamp()),
        signed(exp="never"),
        "x." * 20_000,
        signed(info={"x": "y" * 20_000}),
    ],
)
def test_what_is_no_sound_token_is_refused(secret: Any, token: str) -> None:
    with pytest.raises(Unauthorized, match="invalid token"):
        tokens.read_connection_token(token, now=NOW)


def test_clocks_may_differ_by_the_leeway_and_no_more(secret: Any) -> None:
    leeway = conf().token_leeway
    early = signed(nbf=(NOW + leeway).timestamp(), iat=(NOW + leeway).timestamp())
    assert tokens.read_connection_token(early, now=NOW)
    late = signed(exp=NOW.timestamp())
    assert tokens.read_connection_token(late, now=NOW + leeway - timedelta(seconds=1))
    with pytest.raises(TokenExpired):
        tokens.read_connection_token(late, now=NOW + leeway)


def test_audience_and_issuer_are_asked_for_where_they_are_set(secret: Any) -> None:
    assert tokens.read_connection_token(signed(aud="anything", iss="anybody"), now=NOW)
    secret.BUS = {**secret.BUS, "TOKEN_AUDIENCE": "bus", "TOKEN_ISSUER": "login"}
    for claims in ({}, {"aud": "bus"}, {"iss": "login"}, {"aud": ["x"], "iss": "login"}):
        with pytest.raises(Unauthorized):
            tokens.read_connection_token(signed(**claims), now=NOW)
    assert tokens.read_connection_token(signed(aud=["x", "bus"], iss="login"), now=NOW)
    made = tokens.issue_connection_token("u", ttl=MINUTE, now=NOW)
    assert tokens.read_connection_token(made, now=NOW).issued_at == NOW


def test_a_subscription_token_for_one_connection_serves_no_other(secret: Any) -> None:
    token = tokens.issue_subscription_token("u", "vault:1", ttl=MINUTE, now=NOW, client="c1")
    assert tokens.read_subscription_token(token, topic="vault:1", subject="u", client="c1", now=NOW)
    for subject, client in (("u", "c2"), ("u", ""), ("", "c1"), ("v", "c1")):
        with pytest.raises(Unauthorized):
            tokens.read_subscription_token(token, topic="vault:1", subject=subject, client=client, now=NOW)


@pytest.mark.django_db
def test_a_key_is_looked_up_once_in_a_while_and_what_changed_counts_then() -> None:
    row, key = create_api_key("busy", scopes=["publish"])
    check_api_key(key, now=NOW)
    with CaptureQueriesContext(
        connection,
    ) as queries:
        for _ in range(100):
            check_api_key(key, now=NOW + STALENESS / 2)
    assert len(queries) == 0
    # As another process would change it.
    type(row).objects.filter(pk=row.pk).update(scopes=["publish:task"])
    assert check_api_key(key, now=NOW + STALENESS / 2).identity.scopes == {"publish"}
    assert check_api_key(key, now=NOW + STALENESS).identity.scopes == {"publish:task"}
    type(row).objects.filter(pk=row.pk).update(revoked_at=NOW)
    with pytest.raises(Unauthorized):
        check_api_key(key, now=NOW + 2 * STALENESS)
    with pytest.raises(Unauthorized):
        check_api_key(key, now=NOW - MINUTE)  # a clock that was set back makes nothing fresh


@pytest.mark.django_db
def test_in_the_process_that_changes_a_key_the_change_counts_at_once() -> None:
    row, key = create_api_key("local", scopes=["publish"])
    check_api_key(key, now=NOW)
    change_api_key(row, scopes=[], topics=["task:*"], expires_at=NOW + timedelta(seconds=1))
    changed = check_api_key(key, now=NOW).identity
    assert (changed.scopes, changed.topic_patterns) == (frozenset(), ("task:*",))
    with pytest.raises(Expired):
        check_api_key(key, now=NOW + timedelta(seconds=1))
    check_api_key(key, now=NOW)
    revoke_api_key(row, now=NOW)
    with pytest.raises(Unauthorized):
        check_api_key(key, now=NOW)


@pytest.mark.django_db
@pytest.mark.parametrize(
    "rights",
    [
        {"agent_id": "a b"},
        {"scopes": ["pub lish"]},
        {"scopes": [""]},
        {"topics": ["task:["]},
        {"topics": [""]},
    ],
)
def test_a_key_with_rights_that_fit_nothing_is_not_made(rights: Any) -> None:
    with pytest.raises(BadRequest):
        create_api_key("senseless", **rights)


@pytest.mark.django_db(transaction=True)
async def test_from_a_coroutine_a_key_is_checked_alike(bus_process: None) -> None:
    _, key = await in_thread(create_api_key, "async")
    first = await acheck_api_key(key)
    assert await acheck_api_key(key) is first


@pytest.mark.django_db
def test_a_revocation_names_one_thing_and_is_forgotten_when_it_is_over() -> None:
    for names in ({}, {"token_id": "x", "user_id": "y"}):
        with pytest.raises(BadRequest):
            revocation.revoke(**names)
    with pytest.raises(IntegrityError), transaction.atomic():
        TokenRevocation.objects.create(token_id="x", user_id="y", revoked_at=NOW)
    revocation.revoke(token_id="over", until=timezone.now() - MINUTE)
    revocation.revoke(token_id="kept", until=timezone.now() + MINUTE)
    revocation.revoke(user_id="for ever")
    assert revocation.current().token_ids == {"over", "kept"}
    assert revocation.purge(timezone.now()) == 1
    assert revocation.current().token_ids == {"kept"}
    assert revocation.current().users.keys() == {"for ever"}
    revocation.take_back(TokenRevocation.objects.all())
    assert revocation.current().token_ids == frozenset()


@pytest.mark.django_db
def test_the_later_revocation_of_a_user_counts() -> None:
    revocation.revoke(user_id="u", now=NOW)
    revocation.revoke(user_id="u", now=NOW + MINUTE)
    found = revocation.current()
    who = {"token_id": "", "user_id": "u", "agent_id": ""}
    assert found.cover(**who, issued_at=NOW + MINUTE)
    assert not found.cover(**who, issued_at=NOW + MINUTE + timedelta(seconds=1))
    assert not found.cover(token_id="", user_id="", agent_id="u", issued_at=NOW)


@pytest.mark.django_db
def test_many_sessions_cost_as_many_queries_as_one() -> None:
    keys = []
    for number in range(5):
        client = Client()
        client.force_login(User.objects.create(username=f"p{number}", is_staff=bool(number % 2)))
        keys.append(client.session.session_key)
    with CaptureQueriesContext(connection) as few:
        assert current_logins(keys[:1], now=timezone.now())
    with CaptureQueriesContext(connection) as many:
        found = current_logins([*keys, "nosuch"], now=timezone.now())
    assert len(few) == len(many) == 3
    assert {proof.identity.is_staff for proof in found.values()} == {True, False}
    assert len(found) == 5


@pytest.mark.django_db
def test_the_log_in_is_locked_after_repeated_failures(settings: Any) -> None:
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    User.objects.create_user("boss", password="right", is_staff=True)
    client = Client()
    for _ in range(settings.AXES_FAILURE_LIMIT):
        client.post("/admin/login/", {"username": "boss", "password": "wrong"})
    assert client.post("/admin/login/", {"username": "boss", "password": "right"}).status_code == 429
    assert "_auth_user_id" not in client.session
