"""Fetches one file over HTTP into a part file, if there is news: bounded in bytes, time and addresses.

A conditional GET; each redirect is looked at anew (`addresses`). The bytes go to the disk as they come, and
their SHA-256 is taken on the way; an answer whose end cannot be told from a cut is no answer. Whatever goes
wrong is a `FetchFailed`, and no part file is left. On the standard library's `http.client`, with the socket
made here: what is connected to must be the address that was checked, and every single wait must be bounded.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from cleanup.engine.errors import EngineError
from cleanup.staging.addresses import Network, Place, follow, parse, resolve

#: Called with every wait for bytes: how many came so far, and of how many (None: unknown). What it raises
#: ends the fetch.
Watch = Callable[[int, int | None], None]

MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_CHUNK = 65_536
#: Headers of all answers together; http.client alone would take a hundred of 64 KiB each, and more with 1xx.
_MAX_HEAD = 262_144
#: As long as the columns that keep them.
_LONGEST = {"etag": 500, "last_modified": 100, "content_type": 100}


class FetchFailed(EngineError):
    """There is nothing to be had now; `retry_after` is how long the server wants to be left alone."""

    code = "fetch_failed"
    retryable = True

    def __init__(self, message: str, retry_after: timedelta | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TooMuch(FetchFailed):
    """More bytes than one file may have."""

    code = "too_large"


class TooSlow(FetchFailed):
    """Not done in time."""

    code = "too_slow"


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchLimits:
    """What one fetch may take."""

    max_bytes: int
    #: From the first connection to the last byte, redirects included.
    total: timedelta
    #: Without a byte.
    idle: timedelta
    #: That may be reached besides public addresses.
    networks: Sequence[Network] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """What came of it."""

    #: `new`: the part file is there; `unchanged`: the server says so, and there is no part file.
    status: str
    #: To be sent with the next fetch.
    etag: str = ""
    last_modified: str = ""
    content_type: str = ""
    #: As the address calls the file, unquoted and not checked; may be empty.
    name: str = ""
    size: int = 0
    sha256: str = ""


def fetch(
    url: str,
    *,
    part: Path,
    limits: FetchLimits,
    dir_fd: int | None = None,
    etag: str = "",
    last_modified: str = "",
    watch: Watch | None = None,
) -> Fetched:
    """Fetch `url` into the new file `part`, unless it is unchanged since `etag` or `last_modified`.

    Synced and complete when this returns; gone when it raises.

    Args:
        url: http or https.
        part: where the bytes go; must not be there yet.
        limits: in bytes, time and addresses.
        dir_fd: of the directory that `part` lies in; without it `part` is a path of its own.
        etag: of what the caller has, as the server called it.
        last_modified: the same.
        watch: told of every wait.

    Raises:
        AddressRefused: the address, or one that it leads to, is not to be fetched.
        FetchFailed: no answer, not a good one, not in time, or too large.
        OSError: the part file cannot be written (it is there, the disk is full).
    """
    first = place = parse(url)
    known = {
        name: text for name, text in (("If-None-Match", etag), ("If-Modified-Since", last_modified)) if text
    }
    meter = _Meter(limits, watch)
    for _ in range(MAX_REDIRECTS + 1):
        with _asked(place, known, meter) as response:
            location = response.getheader("Location")
            if response.status in _REDIRECTS and location:
                place = follow(place, location)
                continue
            if response.status == 304 and known:
                return Fetched(status="unchanged", etag=etag, last_modified=last_modified)
            size, sha256 = _received(response, place, _Part(part, dir_fd), meter)
            found = Fetched(status="new", size=size, sha256=sha256, **_heads(response))
        return replace(found, name=_name(first, place))
    raise FetchFailed(f"it was sent on more than {MAX_REDIRECTS} times")


def _name(first: Place, last: Place) -> str:
    """The better of two names: one with an extension, rather as the address has it that was asked for."""
    return next(
        (place.name for place in (first, last) if "." in place.name.strip(".")), first.name or last.name
    )


class _Meter:
    """Counts bytes and seconds of one fetch, redirects included."""

    def __init__(self, limits: FetchLimits, watch: Watch | None) -> None:
        self.limits, self._watch = limits, watch
        self._end = time.monotonic() + limits.total.total_seconds()
        self.received = 0
        self.expected: int | None = None
        self._head_left = _MAX_HEAD
        self.in_body = False

    def patience(self) -> float:
        """Seconds that the next call may wait. Raises `TooSlow` when there are none left."""
        if self._watch is not None:
            self._watch(self.received, self.expected)
        if (left := self._end - time.monotonic()) <= 0:
            raise self.late()
        return min(left, self.limits.idle.total_seconds())

    def count_head(self, size: int) -> None:
        """Headers are few; a server that sends them without end is not listened to."""
        if not self.in_body:
            self._head_left -= size
            if self._head_left < 0:
                raise FetchFailed("its headers have no end")

    def late(self) -> TooSlow:
        """What to say of a wait that was too long."""
        if time.monotonic() >= self._end:
            return TooSlow(f"it was not done within {self.limits.total.total_seconds():g} s")
        return TooSlow(f"no byte came for {self.limits.idle.total_seconds():g} s")


# The connection


@contextmanager
def _asked(place: Place, known: dict[str, str], meter: _Meter) -> Iterator[http.client.HTTPResponse]:
    """Ask for `place` on a connection of its own; what it answers stands up to its headers."""
    with _said(place, meter):
        sock = _connected(place, meter)
    try:
        response = http.client.HTTPResponse(_Bounded(sock, meter), method="GET")  # type: ignore[arg-type]
        with _said(place, meter):
            sock.settimeout(meter.patience())
            sock.sendall(_request(place, known))
            response.begin()
        try:
            yield response
        finally:
            response.close()
    finally:
        sock.close()


@contextmanager
def _said(place: Place, meter: _Meter) -> Iterator[None]:
    """Say in our words what goes wrong on the way."""
    try:
        yield
    except TimeoutError as error:
        raise meter.late() from error
    except http.client.IncompleteRead as error:
        raise FetchFailed("it was cut off before its end") from error
    except http.client.HTTPException as error:
        raise FetchFailed(f"{place.host} does not speak HTTP: {type(error).__name__}") from error
    except OSError as error:
        raise FetchFailed(f"{place.host}: {error.strerror or error}") from error
    except ValueError as error:
        raise FetchFailed(f"{place.host} does not speak HTTP: {error}") from error


def _connected(place: Place, meter: _Meter) -> socket.socket:
    """Connect to the first address that answers, each looked at before."""
    problem: OSError | None = None
    for family, address in resolve(place, meter.limits.networks):
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(meter.patience())
            sock.connect(address)
            return _wrapped(sock, place, meter) if place.scheme == "https" else sock
        except OSError as error:
            sock.close()
            problem = error
        except BaseException:
            sock.close()
            raise
    raise problem or OSError("it has no address")


def _wrapped(sock: socket.socket, place: Place, meter: _Meter) -> socket.socket:
    """Speak TLS, and have the name of the host proved. A cut is an error, not an end."""
    sock.settimeout(meter.patience())
    trust = ssl.create_default_context()
    return trust.wrap_socket(sock, server_hostname=place.host, suppress_ragged_eofs=False)


def _request(place: Place, known: dict[str, str]) -> bytes:
    lines = {
        "Host": place.authority,
        "User-Agent": "xnai-sources",
        "Accept": "*/*",
        # What is counted is what is kept: a small answer cannot unfold to a huge file.
        "Accept-Encoding": "identity",
        "Connection": "close",
        **known,
    }
    head = "".join(f"{name}: {text}\r\n" for name, text in lines.items())
    return f"GET {place.target} HTTP/1.1\r\n{head}\r\n".encode("ascii")


class _Bounded(io.RawIOBase):
    """The receiving end of a connection, for `http.client`: every wait has its end."""

    def __init__(self, sock: socket.socket, meter: _Meter) -> None:
        self._sock, self._meter = sock, meter

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(self._meter.patience())
        size = self._sock.recv_into(buffer)
        self._meter.count_head(size)
        return size


# The answer


@dataclass(frozen=True, slots=True)
class _Part:
    """A file that is about to be made."""

    path: Path
    dir_fd: int | None

    def create(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(self.path, flags, 0o600, dir_fd=self.dir_fd)

    def drop(self) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self.path, dir_fd=self.dir_fd)


def _received(
    response: http.client.HTTPResponse, place: Place, part: _Part, meter: _Meter
) -> tuple[int, str]:
    """Check the headers and write the body to `part`; return its size and hash."""
    meter.expected, meter.in_body = _expected(response, meter.limits.max_bytes), True
    descriptor = part.create()
    try:
        digest = hashlib.sha256()
        with open(descriptor, "wb") as file:
            for data in _chunks(response, place, meter):
                file.write(data)
                digest.update(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        part.drop()
        raise
    return meter.received, digest.hexdigest()


def _expected(response: http.client.HTTPResponse, max_bytes: int) -> int | None:
    """How many bytes are to come; None if they come in chunks.

    Raises:
        FetchFailed: the answer is none that can be kept.
    """
    if response.status != 200:
        raise _not_good(response)
    if (encoding := response.getheader("Content-Encoding", "").strip().lower()) not in ("", "identity"):
        raise FetchFailed(f"it came encoded as {encoding[:40]!r}, which was not asked for")
    transfer = response.getheader("Transfer-Encoding", "").strip().lower()
    if transfer not in ("", "chunked"):
        raise FetchFailed(f"it came in the transfer encoding {transfer[:40]!r}")
    if transfer:
        return None
    return _length(response, max_bytes)


def _length(response: http.client.HTTPResponse, max_bytes: int) -> int:
    texts = {text.strip() for text in response.headers.get_all("Content-Length", [])}
    if not texts:
        raise FetchFailed("it does not say how long it is: its end could not be told from a cut")
    text = texts.pop()
    if texts or not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise FetchFailed("it does not say clearly how long it is")
    if (size := int(text)) > max_bytes:
        raise TooMuch(f"it has {size:,} bytes, where {max_bytes:,} is the limit")
    return size


def _not_good(response: http.client.HTTPResponse) -> FetchFailed:
    reason = "".join(letter for letter in response.reason[:60] if letter.isprintable())
    return FetchFailed(
        f"the server answered {response.status} {reason}".strip(),
        _pause(response.getheader("Retry-After", "").strip()),
    )


def _pause(text: str) -> timedelta | None:
    """What `Retry-After` asks for: seconds, or a moment (RFC 9110, 10.2.3)."""
    if text.isascii() and text.isdecimal():
        return timedelta(seconds=min(int(text[:9]), 10**8))
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError):
        return None
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(timedelta(0), aware - datetime.now(UTC))


def _heads(response: http.client.HTTPResponse) -> dict[str, str]:
    return {name: _head(response, name.replace("_", "-"), longest) for name, longest in _LONGEST.items()}


def _head(response: http.client.HTTPResponse, name: str, longest: int) -> str:
    """A header, if it is one that can be kept and sent back."""
    text = response.getheader(name, "").strip()
    return text if len(text) <= longest and text.isascii() and text.isprintable() else ""


def _chunks(response: http.client.HTTPResponse, place: Place, meter: _Meter) -> Iterator[memoryview]:
    """The body, piece by piece. Raises `FetchFailed` when it is too much, or less than was said."""
    buffer = memoryview(bytearray(_CHUNK))
    while True:
        with _said(place, meter):
            size = response.readinto(buffer)
        if not size:
            break
        meter.received += size
        if meter.received > meter.limits.max_bytes:
            raise TooMuch(f"it has more than {meter.limits.max_bytes:,} bytes, which is the limit")
        yield buffer[:size]
    if meter.expected not in (None, meter.received):
        raise FetchFailed(f"it was cut off: {meter.received:,} of {meter.expected:,} bytes came")
