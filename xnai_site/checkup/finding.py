"""What a check finds: one `Finding`, which says what holds or what does not, and how to mend it."""

from __future__ import annotations

import re
from dataclasses import dataclass

OK, WARNING, FAILED = "ok", "warning", "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The outcome of one check."""

    name: str
    #: `ok`, `warning` (works, not well) or `failed`.
    state: str
    detail: str
    #: What to do about it; empty where nothing has to be done.
    mend: str = ""

    def as_json(self) -> dict[str, str]:
        return {"name": self.name, "state": self.state, "detail": self.detail, "mend": self.mend}


def ok(name: str, detail: str) -> Finding:
    """Nothing is wrong."""
    return Finding(name=name, state=OK, detail=detail)


def warning(name: str, detail: str, mend: str) -> Finding:
    """It works, but not well."""
    return Finding(name=name, state=WARNING, detail=detail, mend=mend)


def failed(name: str, detail: str, mend: str = "") -> Finding:
    """It does not work."""
    return Finding(name=name, state=FAILED, detail=detail, mend=mend)


def number(count: int, one: str, many: str = "") -> str:
    """`1 area`, `3 areas`"""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def first_line(error: BaseException) -> str:
    """The first line of an error's text, without the user and password of a URL in it."""
    text = str(error).strip().splitlines()
    return re.sub(r"//[^@/\s]*@", "//…@", text[0]) if text else ""
