"""Messages that nobody should send: valid commands with wrong values, and then the bytes of them mangled.

Everything comes from one seeded generator, so a seed is a conversation that can be had again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random
from typing import Any

#: Values that are wrong in most places, and right in few.
NASTY: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2**31,
    2**32,
    2**63 - 1,
    2**63,
    -(2**63) - 1,
    2**200,
    1.5,
    1e308,
    -0.0,
    float("nan"),
    float("inf"),
    "",
    " ",
    "x",
    "a" * 201,
    "ü😀",
    "\0",
    "\ud800",
    "\u202e\n\r\t",
    "task:1",
    "lab:1",
    "lab:1\n",
    "agent:fuzz",
    "*",
    "../../etc/passwd",
    "%00",
    "';--",
    [],
    {},
    [[]],
    [1, "a", None],
    {"": ""},
    {"agent_id": 1},
    {"a": {"b": {"c": [1, 2, {"d": None}]}}},
)
TOPICS = ("lab:1", "lab:2", "task:1", "agent:fuzz", "broadcast", "sys:stats", "cleanup:audit", "no topic", "")

#: The fields of each command, and of what it carries.
COMMANDS: dict[str, tuple[str, ...]] = {
    "connect": ("token", "data", "name", "version", "subs", "headers", "flag"),
    "subscribe": (
        "channel",
        "token",
        "recover",
        "epoch",
        "offset",
        "positioned",
        "recoverable",
        "flag",
        "data",
    ),
    "unsubscribe": ("channel",),
    "publish": ("channel", "data"),
    "presence": ("channel",),
    "presence_stats": ("channel",),
    "history": ("channel", "limit", "since", "reverse"),
    "rpc": ("method", "data"),
    "send": ("data",),
    "refresh": ("token",),
    "sub_refresh": ("channel", "token"),
    "ping": (),
    "no_such": ("x",),
}
METHODS = ("bus.publish", "bus.ack", "bus.cursor", "bus.end", "bus.whoami", "no.such", "")
CALL = ("topic", "event_type", "data", "key", "offset", "cursor", "status", "tags", "epoch", "run_id")
PLAIN = ("ping", "ack", "publish", "subscribe", "dance")
API = ("publish", "broadcast", "history", "presence", "presence_stats", "channels", "info", "disconnect")
API += ("unsubscribe", "history_remove", "batch", "no_such")
BODY = ("channel", "channels", "data", "idempotency_key", "tags", "limit", "since", "reverse", "pattern")
BODY += ("user", "client", "commands", "parallel", "skip_history", "b64data", "info")


class Fuzzer:
    """A source of messages.

    Args:
        seed: of everything. broken: how many of the messages are mangled beyond their values.
    """

    def __init__(self, seed: object, *, broken: float = 0.5) -> None:
        self.chance = Random(f"fuzz {seed}")
        self._broken = broken

    def frame(self) -> str | bytes:
        """A frame of the Centrifugo protocol, of one command or several."""
        count = 1 if self.chance.random() < 0.7 else self.chance.randint(2, 5)
        return self._mangled("\n".join(_text(self.command()) for _ in range(count)))

    def plain(self) -> str | bytes:
        """A frame of the plain protocol."""
        words = {"type": self._pick(PLAIN), **self._fields(("topic", *CALL))}
        return self._mangled(_text(words if self.chance.random() < 0.9 else self.value()))

    def body(self) -> bytes:
        """A body for the HTTP API."""
        mangled = self._mangled(_text(self._fields(BODY)))
        return mangled if isinstance(mangled, bytes) else mangled.encode(errors="surrogatepass")

    def method(self) -> str:
        """A path of the HTTP API."""
        return self._pick(API)

    def command(self) -> dict[str, Any]:
        """A command whose fields have any values."""
        name = self._pick(tuple(COMMANDS))
        body: Any = self._fields(COMMANDS[name])
        if name == "rpc":
            body = {"method": self._pick(METHODS), "data": self._fields(CALL)}
        command = {"id": self.chance.randint(1, 9), name: body}
        if self.chance.random() < 0.1:
            command[self.chance.choice(["id", name, self._pick(tuple(COMMANDS))])] = self.value()
        return command

    def value(self, depth: int = 0) -> Any:
        """Any value."""
        dice = self.chance.random()
        if dice < 0.8 or depth > 3:
            return self.chance.choice(NASTY)
        if dice < 0.9:
            return [self.value(depth + 1) for _ in range(self.chance.randint(0, 3))]
        if dice < 0.99:
            return {self._pick(CALL): self.value(depth + 1) for _ in range(self.chance.randint(0, 3))}
        nested: Any = 1
        for _ in range(self.chance.choice([31, 33, 34, 35, 200, 900])):
            nested = [nested]
        return nested

    def _fields(self, names: Sequence[str]) -> dict[str, Any]:
        taken = [name for name in names if self.chance.random() < 0.7]
        return {name: self._fit(name) if self.chance.random() < 0.7 else self.value() for name in taken}

    def _fit(self, name: str) -> Any:
        """A value of the right sort."""
        if name in ("channel", "topic"):
            return self._pick(TOPICS)
        if name in ("offset", "limit", "flag"):
            return self.chance.randint(0, 5)
        if name == "since":
            return {"offset": self.chance.randint(0, 5), "epoch": self._pick(("", "e"))}
        if name in ("recover", "reverse", "positioned", "recoverable", "parallel"):
            return self.chance.random() < 0.5
        if name in ("data", "tags"):
            return {"a": "b"}
        return self._pick(("output", "completed", "e", "k"))

    def _pick(self, choices: Sequence[str]) -> str:
        return self.chance.choice(choices)

    def _mangled(self, text: str) -> str | bytes:
        if self.chance.random() >= self._broken:
            return text
        if self.chance.random() < 0.5:
            return self._twist(text)
        data = bytearray(text.encode(errors="surrogatepass"))
        for _ in range(self.chance.randint(1, 6)):
            place = self.chance.randrange(len(data) + 1)
            data[place : place + self.chance.randint(0, 2)] = self.chance.randbytes(self.chance.randint(0, 2))
        return bytes(data)

    def _twist(self, text: str) -> str:
        """Cut, double or exchange pieces, so that it stays nearly right."""
        start, end = sorted(self.chance.randrange(len(text) + 1) for _ in range(2))
        piece = text[start:end]
        choices = (
            text[:start] + text[end:],
            text[:end] + piece + text[end:],
            text[:start]
            + self._pick(('"', "{", "}", "[", ",", ":", "\\u0000", "\\ud83d", "\n", "NaN"))
            + text[start:],
            text[:start],
            text.replace('"channel"', '"channel":"x","channel"', 1),
        )
        return self.chance.choice(choices)


def _text(value: Any) -> str:
    return json.dumps(value)
