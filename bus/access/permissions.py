"""Who may do what with which topic.

An `Identity` is whoever stands behind a request, made by the edges from a token, a key or a session. Rules
are those of `BUS["TOPICS"]`, the most specific pattern first. Every door asks here, nobody decides
elsewhere: a topic without a rule does not exist, and what no rule grants is refused. Rules are read when a
process starts: a change of them needs a restart.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias

from django.core.signals import setting_changed

from bus.conf import TopicOptions, conf
from bus.protocol import topics
from bus.protocol.errors import PermissionDenied, UnknownTopic

#: What one can do with a topic. `presence` is to see who is there.
Verb: TypeAlias = Literal["subscribe", "publish", "history", "presence"]

#: How an identity was established.
Kind: TypeAlias = Literal["server", "key", "token", "user", "anonymous"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Whoever stands behind a request."""

    kind: Kind
    #: The Django user, or the `sub` of a token; empty for a key and for nobody.
    user_id: str = ""
    #: The agent this is, whose inbox is `agent:<agent_id>`; empty for people.
    agent_id: str = ""
    is_staff: bool = False
    #: Whether the role of a person lets it publish where staff may: a viewer only reads.
    may_publish: bool = True
    #: Such as `publish:agent`; taken literally.
    scopes: frozenset[str] = frozenset()
    #: If there are any, no topic outside of them is reachable, whatever the rules grant.
    topic_patterns: tuple[str, ...] = ()

    def reaches(self, topic: str) -> bool:
        """Tell whether a topic lies within the patterns, where there are any."""
        patterns = self.topic_patterns
        return not patterns or any(topics.matches(pattern, topic) for pattern in patterns)

    @property
    def name(self) -> str:
        """How the log names it as a publisher."""
        if self.agent_id:
            return f"agent:{self.agent_id}"
        return f"user:{self.user_id}" if self.user_id else self.kind


#: Our own code. May do everything.
SERVER = Identity(kind="server")
#: Nobody that we know.
ANONYMOUS = Identity(kind="anonymous")


@lru_cache(maxsize=1)
def _rules() -> topics.RuleBook[TopicOptions]:
    return topics.RuleBook(conf().topics)


def rule_of(topic: str) -> TopicOptions:
    """Return the rule of a topic.

    Raises:
        BadRequest: this is no name of a topic.
        UnknownTopic: no rule fits it.
    """
    rule = _rules().find(topics.check_topic(topic))
    if rule is None:
        raise UnknownTopic
    return rule


def allows(identity: Identity, verb: Verb, topic: str, *, by_token: Container[str] = ()) -> bool:
    """Tell whether `identity` may. False for a topic that has no rule.

    Args:
        identity: who.
        verb: does what.
        topic: with which topic.
        by_token: topics for which it holds a subscription token.

    Raises:
        BadRequest: this is no name of a topic.
    """
    topics.check_topic(topic)
    rule = _rules().find(topic)
    return rule is not None and _granted(identity, verb, topic, rule, by_token)


def check(identity: Identity, verb: Verb, topic: str, *, by_token: Container[str] = ()) -> TopicOptions:
    """Return the rule of `topic` if `identity` may. Arguments are those of `allows`.

    Raises:
        BadRequest: this is no name of a topic.
        UnknownTopic: no rule fits it.
        PermissionDenied: it may not.
    """
    rule = rule_of(topic)
    if not _granted(identity, verb, topic, rule, by_token):
        raise PermissionDenied
    return rule


def _granted(
    identity: Identity, verb: Verb, topic: str, rule: TopicOptions, by_token: Container[str]
) -> bool:
    if identity.kind == "server":
        return True
    if not identity.reaches(topic):
        return False
    if identity.is_staff and verb != "publish":
        return True
    if identity.is_staff and not identity.may_publish:
        return False
    if verb == "subscribe" and topic in by_token:
        return True
    return any(_holds(identity, grant, topic, by_token) for grant in _grants(rule, verb))


def _grants(rule: TopicOptions, verb: Verb) -> tuple[str, ...]:
    given = {
        "subscribe": rule.subscribe,
        "publish": rule.publish,
        "history": rule.history,
        "presence": rule.presence_read,
    }[verb]
    return (given,) if isinstance(given, str) else given


def _holds(identity: Identity, grant: str, topic: str, by_token: Container[str]) -> bool:
    match grant:
        case "authenticated":
            return identity.kind != "anonymous"
        case "staff":
            return identity.is_staff
        case "token":
            return topic in by_token
        case "owner":
            return bool(identity.agent_id) and topics.split(topic)[1] == identity.agent_id
        case _:
            kind, _, scope = grant.partition(":")
            return kind == "scope" and scope in identity.scopes


def _forget(*, setting: str, **_: Any) -> None:
    if setting == "BUS":
        _rules.cache_clear()


setting_changed.connect(_forget)
