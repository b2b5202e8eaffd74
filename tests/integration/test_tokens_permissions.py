"""Who somebody is, and what that one may do."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import jwt
import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone

from bus.access import permissions, tokens
from bus.access.keys import current_keys
from bus.access.logins import current_logins
from bus.access.permissions import ANONYMOUS, SERVER, Identity, allows
from bus.conf import conf
from bus.protocol.errors import (
    BadRequest,
    Expired,
    PermissionDenied,
    TokenExpired,
    Unauthorized,
    UnknownTopic,
)
from xnai_site.roles import ensure_roles

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)

STAFF = Identity(kind="user", user_id="1", is_staff=True)
USER = Identity(kind="user", user_id="2")
AGENT = Identity(kind="token", user_id="u", agent_id="a7")
SCOPED = Identity(
    kind="key", agent_id="a8", scopes=frozenset({"publish:agent", "publish:task", "publish:broadcast"})
)
FENCED = Identity(kind="key", is_staff=True, scopes=frozenset({"publish:task"}), topic_patterns=("task:x*",))

#: Topic -> verb -> who may, besides the server, who always may.
TABLE = {
    "agent:a7": {
        "subscribe": {"staff", "agent"},
        "history": {"staff", "agent"},
        "publish": {"staff", "scoped"},
        "presence": {"staff", "user", "agent", "scoped"},
    },
    "task:1": {
        "subscribe": {"staff", "user", "agent", "scoped"},
        "history": {"staff", "user", "agent", "scoped"},
        "publish": {"staff", "scoped"},
        "presence": {"staff", "user", "agent", "scoped"},
    },
    "task:x1": {
        "subscribe": {"staff", "user", "agent", "scoped", "fenced"},
        "history": {"staff", "user", "agent", "scoped", "fenced"},
        "publish": {"staff", "scoped", "fenced"},
        "presence": {"staff", "user", "agent", "scoped", "fenced"},
    },
    "broadcast": {
        "subscribe": {"staff", "user", "agent", "scoped"},
        "history": {"staff", "user", "agent", "scoped"},
        "publish": {"staff", "scoped"},
        "presence": {"staff", "user", "agent", "scoped"},
    },
    "cleanup:audit": {"subscribe": {"staff"}, "history": {"staff"}, "publish": set(), "presence": {"staff"}},
    "cleanup:run:7": {"subscribe": {"staff"}, "history": {"staff"}, "publish": set(), "presence": {"staff"}},
    "sys:stats": {"subscribe": {"staff"}, "history": {"staff"}, "publish": set(), "presence": {"staff"}},
}
PEOPLE = {"staff": STAFF, "user": USER, "agent": AGENT, "scoped": SCOPED, "fenced": FENCED}
CASES = [(topic, verb) for topic, verbs in TABLE.items() for verb in verbs]


@pytest.mark.parametrize(("topic", "verb"), CASES)
def test_who_may_do_what_is_what_the_table_says(topic, verb):
    assert {name for name, identity in PEOPLE.items() if allows(identity, verb, topic)} == TABLE[topic][verb]
    assert allows(SERVER, verb, topic)
    assert not allows(ANONYMOUS, verb, topic)


def test_checking_gives_the_rule_or_says_why_not(settings):
    assert permissions.check(USER, "subscribe", "task:1").pattern == "task:*"
    with pytest.raises(PermissionDenied):
        permissions.check(USER, "publish", "task:1")
    with pytest.raises(BadRequest):
        permissions.check(USER, "subscribe", "no topic")
    with pytest.raises(BadRequest):
        allows(USER, "subscribe", "no topic")


def test_a_topic_without_a_rule_is_unknown_to_all(monkeypatch):
    rules = permissions.topics.RuleBook([])
    monkeypatch.setattr(permissions, "_rules", lambda: rules)
    assert not allows(SERVER, "subscribe", "task:1")
    with pytest.raises(UnknownTopic):
        permissions.check(SERVER, "subscribe", "task:1")


def test_rules_of_the_settings_come_before_the_defaults_and_follow_a_change(settings):
    settings.BUS = {**settings.BUS, "TOPICS": [{"pattern": "task:*", "subscribe": "scope:tasks"}]}
    assert not allows(USER, "subscribe", "task:1")
    assert allows(Identity(kind="key", scopes=frozenset({"tasks"})), "subscribe", "task:1")
    assert allows(USER, "subscribe", "broadcast")


def test_an_agent_owns_its_own_inbox_only():
    assert not allows(AGENT, "subscribe", "agent:a8")
    assert not allows(Identity(kind="token"), "subscribe", "agent:")
    assert not allows(AGENT, "subscribe", "agent:a7:more")


def test_a_publisher_is_named_in_the_log():
    assert [identity.name for identity in (AGENT, STAFF, SERVER, ANONYMOUS)] == [
        "agent:a7",
        "user:1",
        "server",
        "anonymous",
    ]


def test_a_connection_token_says_who_it_is_and_until_when():
    token = tokens.issue_connection_token(
        "u",
        ttl=HOUR,
        now=NOW,
        agent_id="a7",
        scopes=["publish:task"],
        channels=["broadcast"],
        topics=["task:*"],
    )
    proof = tokens.read_connection_token(token, now=NOW)
    assert proof.identity == Identity(
        kind="token",
        user_id="u",
        agent_id="a7",
        scopes=frozenset({"publish:task"}),
        topic_patterns=("task:*",),
    )
    assert (proof.channels, proof.expires_at) == (("broadcast",), NOW + HOUR)
    assert tokens.read_connection_token(token, now=NOW + HOUR - timedelta(seconds=1))
    with pytest.raises(TokenExpired):
        tokens.read_connection_token(token, now=NOW + HOUR + conf().token_leeway)


def test_a_token_without_an_end_is_good_for_ever():
    token = tokens.issue_connection_token("u", ttl=None, now=NOW)
    assert tokens.read_connection_token(token, now=NOW + 100_000 * HOUR).expires_at is None


def forged(**claims: object) -> str:
    return jwt.encode({"sub": "u", **claims}, conf().token_secret, algorithm="HS256")


@pytest.mark.parametrize(
    "token",
    [
        "",
        "x",
        "a.b.c",
        "\0",
        "\ud800",
        jwt.encode({"sub": "u"}, "another secret of 32 bytes or more", algorithm="HS256"),
        jwt.encode({"sub": "u"}, None, algorithm="none"),
        jwt.encode({"sub": "u"}, "x" * 64, algorithm="HS512"),
    ],
)
def test_a_token_that_is_not_ours_is_refused(token):
    with pytest.raises(Unauthorized):
        tokens.read_connection_token(token, now=NOW)
    with pytest.raises(Unauthorized):
        tokens.read_subscription_token(token, topic="t", subject="u", now=NOW)


@pytest.mark.parametrize(
    "claims",
    [{"sub": 7}, {"exp": "soon"}, {"exp": 1e30}, {"scopes": "publish"}, {"agent": None}, {"channel": "t"}],
)
def test_a_token_with_senseless_claims_is_refused(claims):
    with pytest.raises(Unauthorized):
        tokens.read_connection_token(forged(**claims), now=NOW)


def test_another_algorithm_with_our_secret_is_refused():
    token = jwt.encode({"sub": "u"}, conf().token_secret, algorithm="HS384")
    with pytest.raises(Unauthorized):
        tokens.read_connection_token(token, now=NOW)


def test_a_subscription_token_is_for_one_topic_and_one_user():
    token = tokens.issue_subscription_token("u", "chat:1", ttl=HOUR, now=NOW)
    permit = tokens.read_subscription_token(token, topic="chat:1", subject="u", now=NOW)
    assert permit.expires_at == NOW + HOUR
    for topic, subject in (("chat:2", "u"), ("chat:1", "v")):
        with pytest.raises(Unauthorized):
            tokens.read_subscription_token(token, topic=topic, subject=subject, now=NOW)
    with pytest.raises(TokenExpired):
        tokens.read_subscription_token(token, topic="chat:1", subject="u", now=NOW + 2 * HOUR)
    with pytest.raises(Unauthorized):
        tokens.read_connection_token(token, now=NOW)
    connection = tokens.issue_connection_token("u", ttl=HOUR, now=NOW)
    with pytest.raises(Unauthorized):
        tokens.read_subscription_token(connection, topic="", subject="u", now=NOW)


@pytest.mark.django_db
def test_a_key_is_kept_as_a_hash_and_found_by_its_prefix():
    row, key = tokens.create_api_key("worker", agent_id="a7", scopes=["publish:task"], topics=["task:*"])
    assert key not in repr([row.key_hash, row.prefix])
    assert key.startswith(row.prefix)
    proof = tokens.check_api_key(key, now=NOW)
    assert proof.identity == Identity(
        kind="key", agent_id="a7", scopes=frozenset({"publish:task"}), topic_patterns=("task:*",)
    )
    assert proof.key_prefix == row.prefix


@pytest.mark.django_db
def test_a_key_that_is_not_ours_is_refused():
    _, key = tokens.create_api_key("worker")
    for wrong in ("", "x", key[:-1], key + "x", key.swapcase(), "xk__", "\0", "\ud800", "_" * 500):
        with pytest.raises(Unauthorized):
            tokens.check_api_key(wrong, now=NOW)


@pytest.mark.django_db
def test_a_key_ends_by_time_or_by_hand():
    timed, timed_key = tokens.create_api_key("timed", expires_at=NOW + HOUR)
    taken, taken_key = tokens.create_api_key("taken")
    assert tokens.check_api_key(timed_key, now=NOW).expires_at == NOW + HOUR
    with pytest.raises(Expired):
        tokens.check_api_key(timed_key, now=NOW + HOUR)
    tokens.revoke_api_key(taken, now=NOW)
    tokens.revoke_api_key(taken, now=NOW + HOUR)
    taken.refresh_from_db()
    assert taken.revoked_at == NOW
    with pytest.raises(Unauthorized):
        tokens.check_api_key(taken_key, now=NOW)
    prefixes = [timed.prefix, taken.prefix, "xk_gone"]
    assert current_keys(prefixes, now=NOW).keys() == {timed.prefix}
    assert current_keys(prefixes, now=NOW + HOUR) == {}


@pytest.mark.django_db
def test_the_last_use_of_a_key_is_noted_once_a_minute():
    row, key = tokens.create_api_key("worker")
    for seconds in (0, 30, 61):
        tokens.check_api_key(key, now=NOW + timedelta(seconds=seconds))
        row.refresh_from_db()
        assert row.last_used_at == NOW + timedelta(seconds=61 if seconds == 61 else 0)


@pytest.mark.django_db
def test_the_session_of_a_viewer_reads_and_may_not_publish():
    roles = ensure_roles()
    proofs = {}
    for role in ("viewer", "operator"):
        person = User.objects.create_user(role, is_staff=True)
        person.groups.add(roles[role])
        key = session_of(person)
        proofs[role] = current_logins({key}, now=timezone.now())[key]
    for topic in ("broadcast", "task:1", "room:1", "agent:a"):
        assert allows(proofs["viewer"].identity, "history", topic)
        assert not allows(proofs["viewer"].identity, "publish", topic)
        assert allows(proofs["operator"].identity, "publish", topic)


def session_of(person: User) -> str:
    client = Client()
    client.force_login(person)
    return client.session.session_key
