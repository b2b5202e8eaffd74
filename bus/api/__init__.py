"""Path C: the HTTP API. Commands in the shapes of Centrifugo's server API, and reading for people.

    request --> who is it? (callers) --> what is said? (shapes) --> do it (verbs, operators) --> {"result"}

What the bus refuses is an `error` with its code in an answer of status 200, as in Centrifugo, so that PyPI's
`cent` works unmodified; what is no sound request at all is 400, and nobody we know 401. Every field of a
command either works or is refused: none is ignored. `/api/docs` shows it all, from local files.
"""

from __future__ import annotations

from bus.api import commands, reading, unknown
from bus.api.base import api

__all__ = ["api", "commands", "reading", "unknown"]
