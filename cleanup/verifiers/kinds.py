"""What a kind of verifier is: its options, what they must satisfy, and how it is made.

Each module beside this one ends with one or two `Kind`s; `specifications` gathers them. Options are text,
whatever they mean, so that a policy keeps them in one spelling.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cleanup.engine.area import AreaHandle
from cleanup.engine.verify import Verifier

Options = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option of a kind."""

    default: str = ""
    #: One line for a person who writes a policy.
    meaning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a verifier may need besides its options."""

    #: The open area that the files are in; None where nobody has opened one.
    area: AreaHandle | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of verifier."""

    #: One line: what it asks.
    summary: str
    options: Mapping[str, Option]
    #: Says what is wrong with complete options, or None.
    check: Callable[[Options], str | None]
    #: From the name under which policies list it.
    make: Callable[[str, Options, Surroundings], Verifier]
    #: The placeholders of all its templates. Raises `PolicyInvalid` for one that does not exist.
    placeholders: Callable[[Options], frozenset[str]]


#: Of every kind whose questions are about tasks.
CANARIES: Mapping[str, Option] = {
    "canary_present": Option(meaning="id of a task that must pass, asked before and after each run"),
    "canary_absent": Option(meaning="id of a task that must fail, asked before and after each run"),
}
