"""P1: an ack means committed and synced: on SQLite strace watches a real server, PostgreSQL is asked."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from django.db import connection, connections

from bus.log import Appended, NewEvent
from bus.log.database import DatabaseEventLog
from bus.log.writer import LogWriter
from bus.protocol.errors import BusError
from tests import services
from tests.harness import Site
from tests.servers import wait_until
from tests.swarm import Swarm

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

ACKS = 1_000
CALLS = "fdatasync,fsync,pwrite64,write,writev,sendto,sendmsg"
#: Longer than a page of the database and than a frame of answers.
STRING = 20_000

#: A line of strace: thread, call, its first argument with what the descriptor stands for, the rest.
LINE = re.compile(r"^(\d+) +(\w+)\((\d+)<(.*?)>(.*)$")
RESUMED = re.compile(r"^(\d+) +<\.\.\. (\w+) resumed>")
#: An event in a page of the log, by the tag that holds its key; an ack in a frame, by the command it answers.
STORED = re.compile(r'\\"key\\":\\"synced-(\d+)\\"')
ANSWERED = re.compile(r'\\"id\\":(\d+),\\"rpc\\":\{\\"data\\"')


@dataclass(slots=True, kw_only=True)
class Evidence:
    """What a trace tells, each with the number of its line."""

    #: Event to the line at which it was first written to the write-ahead log.
    written: dict[int, int] = field(default_factory=dict)
    #: Where a sync of the write-ahead log began, and where it was done.
    synced: list[tuple[float, float]] = field(default_factory=list)
    #: Event to the line at which its ack went out.
    acked: dict[int, int] = field(default_factory=dict)

    def too_early(self) -> list[int]:
        """Events whose ack went out before they were written and synced."""
        return [
            number
            for number, sent in self.acked.items()
            if not any(self.written.get(number, sent) < began < done < sent for began, done in self.synced)
        ]


def read_trace(lines: Iterable[str]) -> Evidence:
    """Find the writes, the syncs and the acks in a trace of all threads."""
    evidence = Evidence()
    syncing: dict[str, int] = {}
    for place, line in enumerate(lines):
        if (resumed := RESUMED.match(line)) and resumed[1] in syncing and "= 0" in line:
            evidence.synced.append((syncing.pop(resumed[1]), place))
        if not (call := LINE.match(line)):
            continue
        thread, name, _, what, rest = call.groups()
        if what.endswith("-wal"):
            _note_file(evidence, syncing, thread, name, rest, place)
        elif what.startswith("TCP:"):
            for found in ANSWERED.findall(rest):
                evidence.acked.setdefault(int(found) - 1, place)
    return evidence


def _note_file(
    evidence: Evidence, syncing: dict[str, int], thread: str, name: str, rest: str, place: int
) -> None:
    if name in ("fdatasync", "fsync") and "unfinished" in rest:
        syncing[thread] = place
    elif name in ("fdatasync", "fsync") and "= 0" in rest:
        # Began after the line before, and was done with this one: numbers between whole lines say so.
        evidence.synced.append((place, place + 0.5))
    elif name in ("pwrite64", "write"):
        for found in STORED.findall(rest):
            evidence.written.setdefault(int(found), place)


def test_p01_the_trace_of_a_hasty_server_is_found_out():
    """The judge itself can fail: an ack between write and sync, and one after the sync of something else."""
    written = '7 pwrite64(9</x/db-wal>, "{\\"key\\":\\"synced-1\\"}", 99, 0) = 99'
    acked = '8 sendto(3<TCP:[a->b]>, "\\x81{\\"id\\":2,\\"rpc\\":{\\"data\\":{}}}", 40) = 40'
    synced, other = "7 fdatasync(9</x/db-wal>) = 0", "7 fdatasync(9</x/db>) = 0"
    half, rest = "7 fdatasync(9</x/db-wal> <unfinished ...>", "7 <... fdatasync resumed>) = 0"
    assert read_trace([written, synced, acked]).too_early() == []
    assert read_trace([written, half, rest, acked]).too_early() == []
    for trace in (
        [written, acked, synced],
        [synced, written, acked],
        [written, other, acked],
        [written, half, acked, rest],
        [synced, acked],
    ):
        assert read_trace(trace).too_early() == [1], trace


def _can_trace() -> bool:
    """Whether strace is here and may trace a child."""
    program = shutil.which("strace")
    return bool(program) and subprocess.run([program, "true"], capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, Path]]:
    """A site whose server runs under strace, and the file that strace writes."""
    site, trace = Site(), tmp_path_factory.mktemp("strace") / "trace"
    options = ["-f", "--seccomp-bpf", "-yy", "-s", str(STRING), "-e", f"trace={CALLS}", "-o", str(trace)]
    site.web[0].command = ["strace", *options, *site.web[0].command]
    yield site.start(), trace
    site.stop()


@pytest.mark.skipif(services.postgres is not None, reason="the write-ahead log of PostgreSQL is its server's")
@pytest.mark.skipif(not _can_trace(), reason="needs strace and the right to trace (apt-get install strace)")
def test_p01_a_sync_of_the_write_ahead_log_precedes_each_ack(traced: tuple[Site, Path]) -> None:
    site, trace = traced
    with Swarm() as swarm:
        feeder = swarm.feed(
            [site.web[0].socket],
            "sync:all",
            site.token("syncs", "publish"),
            series="synced",
            count=ACKS,
            window=16,
        )
        acks = feeder.finish()
    wait_until(lambda: len(_read(trace).acked) >= ACKS, what="the whole trace", interval=0.5)
    evidence = _read(trace)
    assert len(acks) == ACKS
    assert evidence.acked.keys() == set(range(1, ACKS + 1))
    assert evidence.too_early() == []
    #: Many share a sync; but never were there so few that one could have come before its events.
    assert len(evidence.synced) >= ACKS // 512


def _read(trace: Path) -> Evidence:
    with trace.open(errors="replace") as lines:
        return read_trace(lines)


class Asking(DatabaseEventLog):
    """The log of the database, which asks its connection how it commits."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[str] = []

    def append_each(self, events: list[NewEvent]) -> list[Appended | BusError]:
        with connection.cursor() as cursor:
            cursor.execute("SHOW synchronous_commit")
            self.answers.append(cursor.fetchone()[0])
        return super().append_each(events)


@pytest.mark.skipif(services.postgres is None, reason="SQLite has no such setting; strace watches it")
@pytest.mark.django_db(transaction=True)
def test_p01_the_writer_commits_synchronously_whatever_the_default_of_the_server_is():
    name = connection.settings_dict["NAME"]
    with connection.cursor() as cursor:
        cursor.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = off')
    connections.close_all()
    log = Asking()
    writer = LogWriter(log)
    writer.start()
    try:
        writer.submit(NewEvent(topic="sync:1", event_type="output", payload=b"{}")).result(60)
    finally:
        writer.stop()
        with connection.cursor() as cursor:
            cursor.execute(f'ALTER DATABASE "{name}" RESET synchronous_commit')
    assert log.answers == ["on"]
