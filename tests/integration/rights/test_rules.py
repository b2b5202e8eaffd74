"""Rules and rates on their own: what the checks say of mistakes, and how a rate counts."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.core.checks import run_checks

from bus.access import rates
from bus.access.permissions import SERVER, Identity, allows, check
from bus.access.rates import Meter, spend
from bus.checks import problems
from bus.protocol import topics
from bus.protocol.errors import PermissionDenied, TooManyRequests

pytestmark = pytest.mark.sqlite_only

RULE = {"pattern": "lab:*"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"NO_SUCH": 1}, "BUS has no setting 'NO_SUCH'"),
        ({"PING_INTERVAL": 25}, "must be a timedelta, not 25"),
        ({"MAX_CONNECTIONS": 0}, "must be more than zero"),
        ({"MAX_CONNECTIONS": True}, "must be a whole number"),
        ({"PUBLISH_RATE": -1.0}, "must be more than zero"),
        ({"TOKEN_LEEWAY": timedelta(seconds=-1)}, "must be at least zero"),
        ({"VOLATILE": "yes"}, "must be True or False"),
        ({"ALLOWED_ORIGINS": "https://x"}, "must be a list of texts"),
        ({"MAX_CONNECTIONS_PER_ADDRESS": "many"}, "a whole number or None"),
        ({"TOPICS": {"task:*": {}}}, "must be a list of dictionaries"),
        ({"TOPICS": [{}]}, "rule 1 must be a dictionary with a pattern"),
        ({"TOPICS": [{"pattern": "task:["}]}, "a pattern is 1 to 200 characters"),
        ({"TOPICS": [RULE, RULE]}, "only the first counts"),
        ({"TOPICS": [{**RULE, "who": "staff"}]}, "a rule has no 'who'"),
        ({"TOPICS": [{**RULE, "subscribe": "anyone"}]}, "not to 'anyone'"),
        ({"TOPICS": [{**RULE, "publish": ("staff", "scope:")}]}, "not to 'scope:'"),
        ({"TOPICS": [{**RULE, "publish": "token"}]}, "a subscription token is for reading"),
        ({"TOPICS": [{**RULE, "history": 7}]}, "history must be text or a list of texts"),
        ({"TOPICS": [{**RULE, "history_size": -1}]}, "history_size must be more than zero"),
        ({"TOPICS": [{**RULE, "history_age": 3600}]}, "history_age must be a timedelta"),
        ({"TOPICS": [{**RULE, "presence": "yes"}]}, "presence must be True or False"),
        ({"TOPICS": [{**RULE, "delivery": "maybe"}]}, "must, latest or ephemeral, not 'maybe'"),
    ],
)
def test_a_mistake_in_the_settings_is_told_in_words(settings: Any, given: dict[str, Any], words: str) -> None:
    (problem,) = problems(given)
    assert words in problem


def test_sound_rules_pass_the_checks(settings: Any) -> None:
    rules = [
        {**RULE, "subscribe": ("token", "owner"), "publish": "scope:lab:write", "history_age": timedelta(1)},
        {"pattern": "lab:secret:*", "subscribe": "server", "publish": "server", "delivery": "ephemeral"},
    ]
    assert problems({"topics": rules, "token_leeway": timedelta(0)}) == []


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("TOKEN_SECRET", "short", {"bus.E002", "bus.W001"}),
        ("TOKEN_SECRET", "x" * 60, {"bus.W001"}),
        ("TOKEN_PREVIOUS_SECRETS", ["abc" * 20, "kT9-q7Zr_x2Lw5bV8nM4cX1zA6sD3fGh"], {"bus.W001"}),
        ("TOKEN_SECRET", "kT9-q7Zr_x2Lw5bV8nM4cX1zA6sD3fGh", set()),
    ],
)
def test_a_secret_that_can_be_guessed_is_reported(
    settings: Any, key: str, value: Any, found: set[str]
) -> None:
    settings.BUS = {**settings.BUS, key: value}
    assert {message.id for message in run_checks(tags=["bus"])} == found


def test_a_token_opens_reading_within_reach_and_nothing_more(settings: Any) -> None:
    settings.BUS = {
        **settings.BUS,
        "TOPICS": [{"pattern": "vault:*", "subscribe": "token", "history": "token"}],
    }
    user = Identity(kind="token", user_id="u")
    fenced = Identity(kind="token", user_id="u", topic_patterns=("task:*",))
    assert not allows(user, "subscribe", "vault:1")
    assert allows(user, "subscribe", "vault:1", by_token=["vault:1"])
    assert allows(user, "history", "vault:1", by_token=["vault:1"])
    assert not allows(user, "history", "vault:2", by_token=["vault:1"])
    assert not allows(fenced, "subscribe", "vault:1", by_token=["vault:1"])
    with pytest.raises(PermissionDenied):
        check(user, "publish", "vault:1", by_token=["vault:1"])


def test_a_pattern_of_many_stars_costs_no_more_than_one_pass() -> None:
    assert not topics.matches("a*" * 99 + "b", "a" * 200)
    assert topics.matches("*a*b*", "xxaxxbxx")
    assert not topics.matches("*ab*b", "aab")


def test_a_rate_lets_a_burst_pass_and_tells_the_rest_when_to_come_again() -> None:
    meter = Meter(rate=10.0, burst=3, now=0.0)
    for _ in range(3):
        meter.spend(0.0)
    with pytest.raises(TooManyRequests) as refusal:
        meter.spend(0.0)
    assert refusal.value.data == {"retry_after": 0.1}
    assert not refusal.value.is_stubborn
    meter.spend(0.1)


def stubborn(meter: Meter, *, pause: float, count: int) -> int:
    """How many of so many requests, one every `pause`, were refused as stubborn."""
    found = 0
    for number in range(count):
        try:
            meter.spend(number * pause)
        except TooManyRequests as error:
            found += error.is_stubborn
    return found


def test_who_floods_is_found_stubborn_though_a_few_always_pass() -> None:
    assert stubborn(Meter(rate=10.0, burst=1, now=0.0), pause=0.01, count=1_000) > 500


def test_who_is_a_little_too_fast_is_never_closed() -> None:
    assert stubborn(Meter(rate=10.0, burst=1, now=0.0), pause=0.07, count=2_000) == 0


def test_publishers_are_counted_by_name_and_our_own_code_is_not(settings: Any) -> None:
    settings.BUS = {**settings.BUS, "PUBLISH_RATE": 1.0, "PUBLISH_BURST": 2}
    one, other = Identity(kind="token", agent_id="a1"), Identity(kind="key", agent_id="a2")
    for _ in range(2):
        spend(one, now=0.0)
    with pytest.raises(TooManyRequests):
        spend(one, now=0.0)
    spend(other, now=0.0)
    for _ in range(100):
        spend(SERVER, now=0.0)


def test_the_table_of_publishers_forgets_the_most_silent(settings: Any, monkeypatch: Any) -> None:
    settings.BUS = {**settings.BUS, "PUBLISH_RATE": 1.0, "PUBLISH_BURST": 1}
    monkeypatch.setattr(rates, "REMEMBERED", 10)
    for number in range(100):
        spend(Identity(kind="token", user_id=str(number)), now=0.0)
    assert len(rates._meters) == 10
    with pytest.raises(TooManyRequests):
        spend(Identity(kind="token", user_id="99"), now=0.0)
