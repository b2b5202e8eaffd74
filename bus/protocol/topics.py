"""Names of topics, and which rule holds for a name.

A topic is `area:id`, or an area alone (`broadcast`), in at most 200 bytes of `[A-Za-z0-9_.:@-]`. Rules are
found by pattern, the most specific first. `group_name` is the name by which the processes of a site know a
topic in the channel layer, whose own grammar is narrower.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from hashlib import blake2b
from typing import Generic, Protocol, TypeVar

from bus.protocol.errors import BadRequest

MAX_TOPIC_BYTES = 200
#: Leaves room for `agent:` and more.
MAX_AGENT_ID = 180

#: Names remembered with their rule; beyond it the memory starts anew, for clients may think of any name.
_REMEMBERED = 10_000

_NAME = re.compile(rf"[A-Za-z0-9_.:@-]{{1,{MAX_TOPIC_BYTES}}}")
_PATTERN = re.compile(rf"[A-Za-z0-9_.:@*-]{{1,{MAX_TOPIC_BYTES}}}")


def is_topic(name: object) -> bool:
    """Tell whether `name` is a well-formed topic name."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def check_topic(name: object) -> str:
    """Return `name` if it is a well-formed topic name.

    Raises:
        BadRequest: it is not.
    """
    if isinstance(name, str) and _NAME.fullmatch(name) is not None:
        return name
    raise BadRequest("a topic is 1 to 200 characters of A-Z a-z 0-9 _ . : @ -")


def is_agent_id(name: object) -> bool:
    """Tell whether `name` can be an agent's: its inbox `agent:<name>` is a topic, and rows can hold it."""
    return isinstance(name, str) and 0 < len(name) <= MAX_AGENT_ID and is_topic(f"agent:{name}")


def split(topic: str) -> tuple[str, str]:
    """Return area and id: `cleanup:run:7` is `("cleanup", "run:7")`, `broadcast` is `("broadcast", "")`."""
    area, _, rest = topic.partition(":")
    return area, rest


def group_name(topic: str) -> str:
    """Return the channel-layer group of a topic: letters, digits and a dot, no two topics alike."""
    return "bus." + blake2b(topic.encode(), digest_size=20).hexdigest()


def is_pattern(text: object) -> bool:
    """Tell whether `text` is a well-formed pattern of topic names: a name in which `*` may stand."""
    return isinstance(text, str) and _PATTERN.fullmatch(text) is not None


def matches(pattern: str, topic: str) -> bool:
    """Tell whether `topic` fits `pattern`, in which only `*` is special: any run of characters."""
    return _compiled(pattern).fullmatch(topic) is not None


@lru_cache(maxsize=1_000)
def _compiled(pattern: str) -> re.Pattern[str]:
    # Each literal between two stars is taken where it comes first and not tried anywhere else: so a
    # pattern of many stars costs one pass over the name, not one pass to the power of the stars.
    first, *rest = (re.escape(part) for part in pattern.split("*"))
    middle = "".join(f"(?>.*?{part})" for part in rest[:-1])
    return re.compile(first + middle + "".join(f".*{part}" for part in rest[-1:]))


class HasPattern(Protocol):
    """Anything that is a rule for the topics of one pattern."""

    @property
    def pattern(self) -> str:
        """Topic name in which `*` stands for any run of characters."""


RuleT = TypeVar("RuleT", bound=HasPattern)


class RuleBook(Generic[RuleT]):
    """The rules of all topics. The most specific pattern that fits wins; among equals the first given.

    More specific is: without a star before with one, then the longer literal text.
    """

    def __init__(self, rules: Iterable[RuleT]) -> None:
        self._rules: list[tuple[re.Pattern[str], RuleT]] = [
            (_compiled(rule.pattern), rule) for rule in sorted(rules, key=_vagueness)
        ]
        self._known: dict[str, RuleT | None] = {}

    def find(self, topic: str) -> RuleT | None:
        """Return the rule of `topic`, or None: then the topic is unknown."""
        try:
            return self._known[topic]
        except KeyError:
            pass
        rule = next((rule for pattern, rule in self._rules if pattern.fullmatch(topic)), None)
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[topic] = rule
        return rule


def _vagueness(rule: HasPattern) -> tuple[int, int]:
    if not is_pattern(rule.pattern):
        raise ValueError(f"{rule.pattern!r} is no pattern of topic names")
    stars = rule.pattern.count("*")
    return stars, stars - len(rule.pattern)
