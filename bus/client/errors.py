"""Errors of the client.

BusClientError
├── Closed        the connection has ended for good, with the server's code and reason
├── Refused       the server has refused a request, with its code
└── BufferFull    too many events wait for the connection to come back
"""

from __future__ import annotations


class BusClientError(Exception):
    """Base of all errors of the client."""


class Closed(BusClientError):
    """The connection has ended and the client does not come back by itself."""

    def __init__(self, code: int, reason: str) -> None:
        self.code = code
        self.reason = reason
        super().__init__(f"{code}: {reason}")


class Refused(BusClientError):
    """The server has refused a request. `retryable`: the same request may be sent again."""

    def __init__(self, code: int, message: str, *, retryable: bool = False) -> None:
        self.code = code
        self.message = message
        self.retryable = retryable
        super().__init__(f"{code}: {message}")


class BufferFull(BusClientError):
    """As many events wait to be published as may; this one was not taken."""
