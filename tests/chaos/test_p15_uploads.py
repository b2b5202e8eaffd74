"""P15: an uploaded file is visible only whole and with the right hash, whatever is cut, and wherever."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.figures import figure
from tests.harness import Site
from tests.servers import PATIENCE, die_with_parent, wait_until
from tests.uploading import (
    Tus,
    Wire,
    is_whole,
    key,
    part_head,
    port_of,
    root,
    rows,
    sha256,
    text,
    visible,
)

__all__ = ["key", "root"]

# Once: a part is bytes, a lease and an offset; rows under many writers at once are tried on both by P16.
pytestmark = [pytest.mark.sqlite_only, pytest.mark.timeout(figure(550, 7_200))]

CUTS = figure(50, 1_000)
#: Of ten cuts; a server takes its time to come back.
WAYS = ("FIN", "RST", "stall", "kill client", "kill server", "FIN", "RST", "stall", "kill client", "RST")
SIZE = (20_000, 600_000)

#: A client in a process of its own: it sends what it is told to and waits to be killed.
CLIENT = """
import socket, sys
port, size = int(sys.argv[1]), int(sys.argv[2])
data = sys.stdin.buffer.read()
wire = socket.create_connection(("127.0.0.1", port))
wire.sendall(data[:size])
print("sent", flush=True)
wire.recv(1)
"""


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    started = Site(web=2).start()
    yield started
    started.stop()


class Cutter:
    """Sends one file with one cut in the middle of it, and finishes it."""

    def __init__(self, site: Site, root: Path, key: str, dice: random.Random) -> None:
        self.site, self.root, self.key, self.dice = site, root, key, dice

    def run(self, way: str) -> None:
        data = text(self.dice.randint(*SIZE))
        with Tus(self.site.web[1].url, self.key) as other:
            path = other.begin(len(data), area="inbox", filename="cut.txt", sha256=sha256(data))
            kept = self.dice.choice((0, self.dice.randrange(len(data) // 2)))
            if kept:
                assert other.patch(path, 0, data[:kept]).status_code == 204
            sent = self.dice.randint(0, len(data) - kept - 1)
            left = self.cut(way, path, data[kept:], kept, sent)
            offset = other.offset(path)
            assert kept <= offset <= kept + sent
            assert data not in visible(self.root).values()
            assert is_whole(self.root)
            self.resume(other, path, data)
            if left is not None:
                left.socket.close()
        assert list(visible(self.root).values()).count(data) == 1
        assert len([row for row in rows(self.site, "inbox") if row[0] == sha256(data)]) == 1

    def cut(self, way: str, path: str, rest: bytes, kept: int, sent: int) -> Wire | None:
        """Send so much of the rest, then cut. A connection that is still open is returned."""
        request = part_head(path, self.key, kept, len(rest)) + rest
        size = len(request) - len(rest) + sent
        if way == "kill client":
            self.kill_client(request, size)
            return None
        wire = Wire(port_of(self.site.web[0]))
        wire.send(request[:size])
        if way == "stall":
            return wire
        if way == "FIN":
            wire.socket.close()
        elif way == "RST":
            wire.reset()
        else:
            self.site.web[0].kill()
            wire.socket.close()
            self.site.mend()
        return None

    def kill_client(self, request: bytes, size: int) -> None:
        words = [sys.executable, "-c", CLIENT, str(port_of(self.site.web[0])), str(size)]
        client = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=die_with_parent
        )
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(request)
        client.stdin.close()
        assert client.stdout.readline() == b"sent\n"
        os.kill(client.pid, signal.SIGKILL)
        client.wait(PATIENCE)
        client.stdout.close()

    def resume(self, tus: Tus, path: str, data: bytes) -> None:
        """Go on where the server says, until it is done; what came late of the cut part may be in between."""

        def step() -> bool:
            try:
                at = tus.offset(path)
            except AssertionError:
                return False  # being written to
            if at == len(data):
                return True
            answer = tus.patch(path, at, data[at:])
            assert answer.status_code in (204, 409, 423), (answer.status_code, answer.text)
            return answer.status_code == 204

        try:
            wait_until(step, what="the rest of the file")
        except httpx.TransportError as error:
            raise AssertionError("the server that nobody cut was not there") from error


def test_p15_a_file_is_visible_only_whole_and_with_the_right_hash_wherever_its_upload_is_cut(
    site: Site, root: Path, key: str, dice: random.Random
) -> None:
    cutter = Cutter(site, root, key, dice)
    ways = [WAYS[number % len(WAYS)] for number in range(CUTS)]
    dice.shuffle(ways)
    for way in ways:
        cutter.run(way)
    found = visible(root)
    assert len(found) == CUTS
    assert is_whole(root)
    assert not list((root / ".staging-uploads").iterdir()), "what was gathered is gone once it is a file"
    counts = {way: ways.count(way) for way in dict.fromkeys(WAYS)}
    print(f"P15: {CUTS} cuts ({counts}): 0 partial files, {len(found)} whole, each resumed")  # noqa: T201
