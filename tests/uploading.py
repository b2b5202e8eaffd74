"""For tests of uploads over HTTP: areas, a small client of tus, raw connections, a proxy that cuts bodies."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.harness import Site, Web
from tests.proxy import TcpProxy
from tests.servers import PATIENCE

PART = "application/offset+octet-stream"


def sha256(data: bytes) -> str:
    """Its SHA-256, hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def text(size: int) -> bytes:
    """Random bytes that are text: what a file called .txt may hold."""
    return base64.b64encode(os.urandom(size * 3 // 4 + 3))[:size]


def new_area(site: Site, name: str) -> Path:
    """A new, empty staging area."""
    root = site.folder / "staging" / name
    root.mkdir(parents=True, exist_ok=True)
    site.manage("cleanup", "areas", "add", name, str(root))
    return root


def visible(root: Path) -> dict[str, bytes]:
    """Every file of an area under a final name, with what it holds."""
    found = [path for path in sorted(root.rglob("*")) if path.is_file()]
    names = {path: path.relative_to(root) for path in found}
    return {
        str(name): path.read_bytes()
        for path, name in names.items()
        if not name.parts[0].startswith((".staging-", ".trash"))
    }


def is_whole(root: Path) -> bool:
    """Whether every file under a final name holds what its name says: names are made of hashes."""
    return all(sha256(data) == Path(name).stem for name, data in visible(root).items())


def metadata(**pairs: str) -> str:
    """An Upload-Metadata."""
    return ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in pairs.items())


def checksum(data: bytes, algorithm: str = "sha256") -> str:
    """An Upload-Checksum."""
    return f"{algorithm} {base64.b64encode(hashlib.new(algorithm, data).digest()).decode()}"


class Tus:
    """A client of tus that does one request at a time and shows every answer."""

    def __init__(self, base: str, key: str = "", **headers: str) -> None:
        self.base = base
        self.headers = {"Tus-Resumable": "1.0.0", **({"X-API-Key": key} if key else {}), **headers}
        self.http = httpx.Client(trust_env=False, timeout=PATIENCE)

    def __enter__(self) -> Tus:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def ask(self, method: str, path: str = "/files/", data: bytes = b"", **headers: str) -> httpx.Response:
        """One request; underscores of the names of headers stand for hyphens, and None drops one."""
        given = {**self.headers, **{name.replace("_", "-"): value for name, value in headers.items()}}
        sent = {name: value for name, value in given.items() if value is not None}
        content = {"content": data} if data else {}
        return self.http.request(method, self.base + path, headers=sent, **content)

    def create(
        self, size: int, data: bytes = b"", *, headers: dict[str, str] | None = None, **told: str
    ) -> Any:
        """Begin an upload; returns the answer."""
        more = {**({"Content-Type": PART} if data else {}), **(headers or {})}
        return self.ask("POST", data=data, Upload_Length=str(size), Upload_Metadata=metadata(**told), **more)

    def begin(self, size: int, **told: str) -> str:
        """Begin an upload and return its path."""
        answer = self.create(size, **told)
        assert answer.status_code == 201, (answer.status_code, answer.text)
        return str(answer.headers["Location"])

    def offset(self, path: str) -> int:
        """Where an upload stands."""
        answer = self.ask("HEAD", path)
        assert answer.status_code == 200, answer.status_code
        return int(answer.headers["Upload-Offset"])

    def patch(self, path: str, offset: int, data: bytes, **headers: str) -> httpx.Response:
        """Send a part."""
        return self.ask("PATCH", path, data, Upload_Offset=str(offset), Content_Type=PART, **headers)

    def send(self, path: str, data: bytes, *, at: int = 0, part: int = 1 << 20) -> None:
        """Send the rest of a file, part by part."""
        while at < len(data):
            answer = self.patch(path, at, data[at : at + part])
            assert answer.status_code == 204, (answer.status_code, answer.text)
            at = int(answer.headers["Upload-Offset"])


def head_of(method: str, path: str, headers: dict[str, Any]) -> bytes:
    """The head of a request as it goes over the wire; a list is a header that is there more than once."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1"]
    for name, value in headers.items():
        lines += [f"{name}: {one}" for one in (value if isinstance(value, list) else [value])]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class Wire:
    """One connection, byte by byte."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def reset(self) -> None:
        """Close with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def answer(self) -> tuple[int, bytes]:
        """Read until the other side closes: the status, and all that was said."""
        said = b""
        with contextlib.suppress(ConnectionError):
            while piece := self.socket.recv(65_536):
                said += piece
        return (int(said.split()[1]) if said else 0), said


def part_head(path: str, key: str, offset: int, length: int, **headers: str) -> bytes:
    """The head of a PATCH, after which the body comes; the connection ends with its answer."""
    given = {
        "X-API-Key": key, "Tus-Resumable": "1.0.0", "Content-Type": PART, "Upload-Offset": offset,
        "Content-Length": length, "Connection": "close",
    }  # fmt: skip
    return head_of("PATCH", path, {**given, **headers})


def port_of(web: Web) -> int:
    """The port of a web process."""
    return int(urlsplit(web.url).port or 0)


class UploadProxy(TcpProxy):
    """A proxy that can cut after so many bytes towards the server, in the middle of a body."""

    #: Bytes that may still go to the server before everything is cut, and how.
    _sendable: int | None = None
    _way = "RST"

    def cut_upload_after(self, count: int, way: str) -> None:
        """Act once `count` more bytes have gone to the server: `RST`, `FIN`, or `stall`, a black hole."""
        self._do(lambda: (setattr(self, "_sendable", count), setattr(self, "_way", way)))

    @property
    def has_cut(self) -> bool:
        """Whether it has come to that."""
        return self._do(lambda: self._sendable is None)

    async def _pass(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, to_client: bool = False
    ) -> None:
        if to_client:
            await super()._pass(source, target, to_client=True)
            return
        while piece := await source.read(16_384):
            await self._flowing.wait()
            if self._sendable is not None and len(piece) >= self._sendable:
                target.write(piece[: self._sendable])
                await target.drain()
                self._sendable = None
                if self._way != "stall":
                    self._cut(reset=self._way == "RST")
                    return
                self._flowing.clear()
                await self._flowing.wait()
                return
            if self._sendable is not None:
                self._sendable -= len(piece)
            target.write(piece)
            await target.drain()
        with contextlib.suppress(OSError):
            target.write_eof()


def rows(site: Site, area: str) -> list[tuple[Any, ...]]:
    """Hash, size and content of the living rows of an area."""
    return site.sql(
        "SELECT f.sha256, f.size, f.content_id FROM cleanup_stagedfile f"
        " JOIN cleanup_stagingarea a ON a.id = f.area_id WHERE a.name = %s AND f.deleted_at IS NULL",
        area,
    )


# Fixtures, for modules that import them and have a fixture `site` ------------------------------------------


@pytest.fixture(scope="module")
def root(site: Site) -> Path:
    """The folder of the area `inbox`."""
    return new_area(site, "inbox")


@pytest.fixture(scope="module")
def key(site: Site) -> str:
    """An API key that may upload."""
    return site.api_key("upload")


@pytest.fixture
def tus(site: Site, root: Path, key: str) -> Iterator[Tus]:
    """A client with that key."""
    with Tus(site.web[0].url, key) as client:
        yield client
