"""Texts with placeholders, filled in for one file: `task:{task_id}:status`.

A template is checked when a policy is saved; an unknown placeholder or a lone brace is refused, so a spelling
mistake never becomes a key that exists for no file. Filling gives None where something is not known.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from cleanup.engine.errors import PolicyInvalid
from cleanup.engine.verify import Subject

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")

Quote = Callable[[str], str]


def name_of(path: str) -> str:
    """The last component of an escaped path."""
    return path.rpartition("/")[2]


def stem_of(path: str) -> str:
    """The name without its last suffix: `a.tar` of `x/a.tar.gz`."""
    name = name_of(path)
    stem, dot, _ = name.rpartition(".")
    return stem if dot and stem else name


#: What a placeholder stands for; paths are below the area, and escaped.
PLACEHOLDERS: dict[str, Callable[[Subject], str | None]] = {
    "task_id": lambda subject: subject.task_id,
    "name": lambda subject: name_of(subject.path) or None,
    "stem": lambda subject: stem_of(subject.path) or None,
    "path": lambda subject: subject.path or None,
    "area": lambda subject: subject.area,
    "sha256": lambda subject: subject.sha256,
}


def placeholders_of(*names: str) -> Callable[[Mapping[str, str]], frozenset[str]]:
    """What finds the placeholders of the options `names`, which are templates."""

    def find(options: Mapping[str, str]) -> frozenset[str]:
        return frozenset().union(*(Template(options[name]).placeholders for name in names))

    return find


class Template:
    """A text with placeholders."""

    def __init__(self, text: str) -> None:
        """Read `text`.

        Raises:
            PolicyInvalid: an unknown placeholder, or a brace that belongs to none.
        """
        self.text = text
        self.placeholders = frozenset(_PLACEHOLDER.findall(text))
        if unknown := sorted(self.placeholders - set(PLACEHOLDERS)):
            known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
            raise PolicyInvalid(f"unknown placeholder {{{unknown[0]}}} in {text!r}; there are: {known}")
        if re.search(r"[{}]", _PLACEHOLDER.sub("", text)):
            raise PolicyInvalid(f"a lone brace in {text!r}")

    def fill(self, subject: Subject, quote: Quote = str) -> str | None:
        """The text for one file; None if a placeholder stands for nothing that is known of it."""
        values = {name: PLACEHOLDERS[name](subject) for name in self.placeholders}
        if not all(values.values()):
            return None
        return _PLACEHOLDER.sub(lambda match: quote(values[match[1]] or ""), self.text)

    def lacking(self, subject: Subject) -> str:
        """What is not known of a file that could not be filled in, in words: `no task id`."""
        names = sorted(name for name in self.placeholders if not PLACEHOLDERS[name](subject))
        return "no " + " and no ".join(name.replace("_", " ") for name in names)
