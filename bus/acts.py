"""What operators do, told to whoever keeps a record of it.

An act is told within the transaction of its change, where there is one: a receiver that cannot write it down
raises, and the change does not happen. The bus itself knows no audit; the site connects the two.
"""

from __future__ import annotations

import getpass
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from django.dispatch import Signal

from bus.access.permissions import SERVER, Identity

#: Sent with `act`. Not robust on purpose: what cannot be recorded is not done.
acted = Signal()


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """Who acts."""

    name: str
    #: `user` (a person in the console) or `command` (a person at a shell).
    kind: str = "user"
    #: As whom events are published: the rules of the topics hold for it.
    identity: Identity = SERVER

    @classmethod
    def at_the_shell(cls) -> Self:
        """Whoever has called a command."""
        try:
            return cls(name=getpass.getuser(), kind="command")
        except (KeyError, OSError):
            return cls(name="unknown", kind="command")  # a user id without a name, as in some containers


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """Something that was done."""

    operator: Operator
    #: Such as `bus_disconnected`.
    action: str
    #: What it was done to: a topic, an agent, a key.
    target: str
    reason: str
    #: What else there is to know, as JSON can hold it.
    facts: Mapping[str, Any]


def note(operator: Operator, action: str, target: str, *, reason: str = "", **facts: Any) -> None:
    """Tell of an act. Raises what a receiver does that cannot write it down."""
    act = Act(operator=operator, action=action, target=target, reason=reason, facts=facts)
    acted.send(sender=Act, act=act)
