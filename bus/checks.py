"""System checks of the bus: `manage.py check` speaks before a user does.

`problems` reads `settings.BUS` as it was written, before anything is made of it, so that a mistake is told in
words rather than found by a client: an unknown key, a value of the wrong kind, a rule with a grant that does
not exist, a key for tokens that can be guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register

from bus.conf import BusSettings, TopicOptions
from bus.protocol.topics import is_pattern

#: HS256 is as strong as its key, up to 256 bits.
SECRET_BYTES = 32
#: A random secret of that length has more different characters; `xxxx...` and `abcabc...` do not.
SECRET_CHARACTERS = 10

_DELIVERIES = ("must", "latest", "ephemeral")
_GRANTS = ("authenticated", "staff", "owner", "token", "server")
_SCOPE = re.compile(r"scope:[A-Za-z0-9_.:-]{1,100}")
#: Keys of a rule that hold grants.
_VERBS = ("subscribe", "publish", "history", "presence_read")
#: Settings that may be zero.
_MAY_BE_ZERO = frozenset({"token_leeway"})


def _is_list_of_text(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(entry, str) for entry in value)


#: What a value has to be, by the annotation of its field: in words, and as a test.
_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "int": ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    "float": ("a number", lambda value: isinstance(value, (int, float)) and not isinstance(value, bool)),
    "bool": ("True or False", lambda value: isinstance(value, bool)),
    "str": ("text", lambda value: isinstance(value, str)),
    "timedelta": ("a timedelta", lambda value: isinstance(value, timedelta)),
    "tuple[str, ...]": ("a list of texts", _is_list_of_text),
    "str | tuple[str, ...]": (
        "text or a list of texts",
        lambda value: isinstance(value, str) or _is_list_of_text(value),
    ),
    "None": ("None", lambda value: value is None),
}


@register("bus")
def check_settings(**_: Any) -> list[CheckMessage]:
    """Report every mistake in `settings.BUS`."""
    return [Error(text, id="bus.E001") for text in problems(getattr(settings, "BUS", {}))]


@register("bus")
def check_secrets(**_: Any) -> list[CheckMessage]:
    """Report keys of tokens that are too short or too regular to be secret."""
    given = {name.lower(): value for name, value in getattr(settings, "BUS", {}).items()}
    secrets = {"TOKEN_SECRET": [given.get("token_secret") or settings.SECRET_KEY]}
    secrets["TOKEN_PREVIOUS_SECRETS"] = given.get("token_previous_secrets", ())
    found: list[CheckMessage] = []
    for name, values in secrets.items():
        texts = [value for value in values if isinstance(value, str)]
        found += [_short(name) for value in texts if len(value.encode()) < SECRET_BYTES]
        found += [_regular(name) for value in texts if len(set(value)) < SECRET_CHARACTERS]
    return found


def _short(name: str) -> CheckMessage:
    hint = 'Make one with: python -c "import secrets; print(secrets.token_urlsafe(48))"'
    return Error(f"BUS[{name!r}] is shorter than {SECRET_BYTES} bytes.", hint=hint, id="bus.E002")


def _regular(name: str) -> CheckMessage:
    text = f"BUS[{name!r}] has fewer than {SECRET_CHARACTERS} different characters: it can be guessed."
    return Warning(text, id="bus.W001")


def problems(given: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with `settings.BUS`, one sentence each."""
    known = {entry.name.upper(): entry for entry in fields(BusSettings)}
    found = [f"BUS has no setting {name!r}." for name in given if str(name).upper() not in known]
    for name, value in given.items():
        entry = known.get(str(name).upper())
        if entry is None or entry.name == "topics":
            continue
        found += _value_problems(f"BUS[{entry.name.upper()!r}]", entry.name, entry.type, value)
    found += _rule_problems({str(name).upper(): value for name, value in given.items()}.get("TOPICS", ()))
    return found


def _value_problems(where: str, name: str, kind: Any, value: Any) -> Iterator[str]:
    if (fits := _fits(str(kind), value)) is not None:
        yield f"{where} must be {fits}, not {value!r}."
    elif not _is_positive(value, zero=name in _MAY_BE_ZERO):
        yield f"{where} must be {'at least' if name in _MAY_BE_ZERO else 'more than'} zero."


def _fits(kind: str, value: Any) -> str | None:
    """Return None if the value is of the kind, else the kind in words."""
    wanted = [_KINDS[kind]] if kind in _KINDS else [_KINDS[part] for part in kind.split(" | ")]
    if any(test(value) for _, test in wanted):
        return None
    return " or ".join(words for words, _ in wanted)


def _is_positive(value: Any, *, zero: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float, timedelta)):
        return True
    nothing: Any = timedelta(0) if isinstance(value, timedelta) else 0
    return bool(value >= nothing if zero else value > nothing)


def _rule_problems(rules: Any) -> Iterator[str]:
    if not isinstance(rules, (list, tuple)):
        yield "BUS['TOPICS'] must be a list of dictionaries."
        return
    seen: set[Any] = set()
    for number, rule in enumerate(rules, start=1):
        if not isinstance(rule, Mapping) or "pattern" not in rule:
            yield f"BUS['TOPICS'] rule {number} must be a dictionary with a pattern."
            continue
        where = f"BUS['TOPICS'] {rule['pattern']!r}"
        yield from (f"{where}: {text}" for text in _faults_of(rule))
        if is_pattern(rule["pattern"]) and rule["pattern"] in seen:
            yield f"{where}: there are two rules for this pattern, and only the first counts."
        seen.add(str(rule["pattern"]))


def _faults_of(rule: Mapping[str, Any]) -> Iterator[str]:
    known = {entry.name: entry for entry in fields(TopicOptions)}
    if not is_pattern(rule["pattern"]):
        yield "a pattern is 1 to 200 characters of A-Z a-z 0-9 _ . : @ - and *."
    for name, value in rule.items():
        entry = known.get(str(name))
        if entry is None:
            yield f"a rule has no {name!r}; it has {', '.join(known)}."
        elif name != "pattern" and (fits := _fits(str(entry.type), value)) is not None:
            yield f"{name} must be {fits}, not {value!r}."
        elif name in _VERBS:
            yield from _grant_faults(name, (value,) if isinstance(value, str) else value)
        elif name != "pattern" and not _is_positive(value, zero=False):
            yield f"{name} must be more than zero."
    delivery = rule.get("delivery", "must")
    if isinstance(delivery, str) and delivery not in _DELIVERIES:
        yield f"delivery must be must, latest or ephemeral, not {delivery!r}."


def _grant_faults(verb: str, grants: Iterable[str]) -> Iterator[str]:
    for grant in grants:
        if grant not in _GRANTS and _SCOPE.fullmatch(grant) is None:
            yield f"{verb} is granted to {', '.join(_GRANTS)} or scope:NAME, not to {grant!r}."
        elif grant == "token" and verb == "publish":
            yield "publish cannot be granted to 'token': a subscription token is for reading."
