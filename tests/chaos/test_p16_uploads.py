"""P16: a hundred uploads at once cost bounded memory and disk; the same content is stored once."""

from __future__ import annotations

import hashlib
import http.client
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Self

import pytest

from tests.figures import figure
from tests.harness import Site
from tests.integration.test_transport import resident
from tests.servers import PATIENCE, wait_until
from tests.uploading import PART, Tus, new_area, port_of, rows, sha256, text

pytestmark = [pytest.mark.timeout(figure(550, 7_200))]

UPLOADS, SIZE, PART_SIZE = 100, figure(5_000_000, 100_000_000), 8 << 20
COPIES = 500
MIB = 1 << 20
#: What the promise allows the web process: so much for each upload, and so much besides.
EACH, BESIDES = MIB, 50 * 1_000_000
#: Disk that bodies may take at once: each upload one part.
SPOOL = UPLOADS * PART_SIZE

FILLER = text(MIB)


@pytest.fixture(scope="module")
def upload_site() -> Iterator[Site]:
    started = Site(web=1).start()
    yield started
    started.stop()


def content(number: int, start: int, stop: int) -> Iterator[bytes]:
    """Bytes `start` to `stop` of the file of that number: like no other, and never in memory as a whole."""
    for block in range(start // MIB, -(-stop // MIB)):
        whole = f"{number:08d}{block:08d}".encode() + FILLER[16:]
        first = block * MIB
        yield whole[max(0, start - first) : min(MIB, stop - first)]


def digest(number: int) -> str:
    found = hashlib.sha256()
    for piece in content(number, 0, SIZE):
        found.update(piece)
    return found.hexdigest()


class Watch:
    """Looks at a process while something goes on: the peaks of its memory, and of files without a name."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.before = self.memory = resident(pid)
        self.spooled = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(PATIENCE)

    def _look(self) -> None:
        while not self._over.wait(0.02):
            self.memory = max(self.memory, resident(self.pid))
            self.spooled = max(self.spooled, self._nameless())

    def _nameless(self) -> int:
        size = 0
        for entry in Path(f"/proc/{self.pid}/fd").iterdir():
            with suppress(OSError):
                if os.readlink(entry).endswith("(deleted)"):
                    size += entry.stat().st_size
        return size


class Senders:
    """All uploads at once: none sends the second half of its first part before all have sent the first."""

    def __init__(self, site: Site, key: str) -> None:
        self.site, self.key = site, key
        self.together = threading.Event()
        self._waiting, self._lock = 0, threading.Lock()

    def send(self, number: int) -> str:
        """Upload a file, part by part; return its hash."""
        expected = digest(number)
        with Tus(self.site.web[0].url, self.key) as tus:
            path = tus.begin(SIZE, area="many", filename=f"{number}.txt", sha256=expected)
        wire = http.client.HTTPConnection("127.0.0.1", port_of(self.site.web[0]), timeout=500)
        for start in range(0, SIZE, PART_SIZE):
            stop = min(SIZE, start + PART_SIZE)
            wire.request("PATCH", path, self.body(number, start, stop), self.headers(start, stop))
            answer = wire.getresponse()
            said = answer.read()
            assert (answer.status, answer.getheader("Upload-Offset")) == (204, str(stop)), said
        wire.close()
        return expected

    def headers(self, start: int, stop: int) -> dict[str, str]:
        told = {"X-API-Key": self.key, "Tus-Resumable": "1.0.0", "Content-Type": PART}
        return {**told, "Upload-Offset": str(start), "Content-Length": str(stop - start)}

    def body(self, number: int, start: int, stop: int) -> Iterator[bytes]:
        middle = start + (stop - start) // 2
        yield from content(number, start, middle)
        if start == 0:
            self.come()
            while not self.together.wait(5):  # a byte now and then: a silent connection is cut
                yield from content(number, middle, middle + 1)
                middle += 1
        yield from content(number, middle, stop)

    def come(self) -> None:
        """One more has sent half of its first part."""
        with self._lock:
            self._waiting += 1
            if self._waiting == UPLOADS:
                self.together.set()


def hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_of(root: Path) -> list[Path]:
    found = [path for path in root.rglob("*") if path.is_file()]
    return [path for path in found if not path.relative_to(root).parts[0].startswith(".")]


def test_p16_a_hundred_uploads_at_once_take_bounded_memory_and_disk(upload_site: Site) -> None:
    root, key = new_area(upload_site, "many"), upload_site.api_key("upload")
    with Tus(upload_site.web[0].url, key) as tus:  # what a process loads once is no cost of an upload
        tus.send(tus.begin(3 * MIB, area="many", filename="first.txt"), text(3 * MIB))
    senders = Senders(upload_site, key)
    with Watch(upload_site.web[0].pid) as watch, ThreadPoolExecutor(UPLOADS) as threads:
        expected = set(threads.map(senders.send, range(UPLOADS)))
    grown = watch.memory - watch.before
    print(  # noqa: T201
        f"P16: {UPLOADS} x {SIZE / 1e6:.0f} MB at once: memory {watch.before / 1e6:.0f} MB"
        f" + {grown / 1e6:.1f} MB, at most {(UPLOADS * EACH + BESIDES) / 1e6:.0f} MB;"
        f" bodies on disk {watch.spooled / 1e6:.0f} MB, at most {SPOOL / 1e6:.0f} MB"
    )
    assert len(expected) == UPLOADS
    assert grown <= UPLOADS * EACH + BESIDES
    assert watch.spooled <= SPOOL
    assert expected < {path.stem for path in files_of(root)}
    assert all(hash_of(path) == path.stem for path in files_of(root))
    wait_until(lambda: watch._nameless() == 0, what="the room of the bodies")


def test_p16_five_hundred_uploads_of_the_same_content_are_one_file_and_five_hundred_rows(
    upload_site: Site,
) -> None:
    root, key, data = new_area(upload_site, "same"), upload_site.api_key("upload"), text(5_000)

    def send(number: int) -> int:
        with Tus(upload_site.web[0].url, key) as tus:
            answer = tus.create(len(data), data, area="same", filename=f"{number}.txt", sha256=sha256(data))
            assert (answer.status_code, answer.headers["Upload-Offset"]) == (201, str(len(data))), answer.text
            return int(answer.status_code)

    with ThreadPoolExecutor(16) as threads:
        assert len(list(threads.map(send, range(COPIES)))) == COPIES
    assert [path.read_bytes() for path in files_of(root)] == [data]
    found = rows(upload_site, "same")
    assert len(found) == COPIES
    assert {(row[0], row[1]) for row in found} == {(sha256(data), len(data))}
    assert len({row[2] for row in found}) == 1
    print(f"P16: {COPIES} uploads of the same content: 1 file, {len(found)} rows")  # noqa: T201
