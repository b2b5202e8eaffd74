"""P24: the audit chain does not fork, and any change is found."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from django.db import OperationalError, connection, transaction

from cleanup import operations
from cleanup.engine.audit import ChainReport
from cleanup.models import AuditEntry
from cleanup.operations import auditing
from cleanup.stores.checkpoints import DatabaseSource, last_checkpoint
from tests.auditing import AuditFiles, unguarded, write
from tests.chaos.forgeries import FORGERIES, Forger
from tests.figures import figure

FORGED = figure(200, 10_000)
#: Forgeries on one chain; then another one is made.
BLOCK = 100

#: 2 processes of 16 threads: 32 writers.
PROCESSES, THREADS = 2, 16
WRITES, SIZE = figure(5, 60), 25


@pytest.mark.django_db
@pytest.mark.timeout(figure(400, 3_600))
def test_p24_every_forgery_is_found_and_its_place_and_kind_are_named(
    tmp_path: Path, settings: Any, dice: random.Random
) -> None:
    done: Counter[str] = Counter()
    for block in range(0, FORGED, BLOCK):
        with transaction.atomic():
            folder = tmp_path / str(block)
            folder.mkdir()
            files = AuditFiles(folder, settings)
            forger = chain_of(dice, files, prune=block % (2 * BLOCK) == 0)
            with unguarded():
                for number in range(block, min(block + BLOCK, FORGED)):
                    forgery = FORGERIES[number % len(FORGERIES)]
                    forge(forger, forgery)
                    done[forgery.__name__] += 1
            transaction.set_rollback(True)
    assert done.total() == FORGED
    assert len(done) == len(FORGERIES)


def chain_of(dice: random.Random, files: AuditFiles, *, prune: bool) -> Forger:
    """Some sealed stretches, of which the first may be pruned, and a tail that is not sealed yet."""
    write(dice.randint(30, 50))
    files.cut()
    if prune:
        files.prune(up_to=dice.choice((10, 20)))
    write(dice.randint(31, 49))
    files.cut()
    write(3)
    head, last = DatabaseSource().head(), last_checkpoint()
    assert head is not None
    assert last is not None
    assert last.last_seq + 3 <= head[0]
    kept = [DatabaseSource().checkpoint(number) for number in range(1, last.number + 1)]
    checkpoints = [one.checkpoint for one in kept if one]
    assert operations.verify_audit().sound
    return Forger(dice, files, checkpoints, sum(one.pruned for one in kept if one), head[0])


def forge(forger: Forger, forgery: Any) -> None:
    """One forgery, read and undone."""
    before = forger.files.log.read_bytes()
    with transaction.atomic():
        wanted = forgery(forger)
        report = operations.verify_audit()
        transaction.set_rollback(True)
    forger.files.log.write_bytes(before)
    found = (report.sound, report.kind, report.first_bad_seq)
    assert found == (False, wanted.kind, wanted.seq), (forgery.__name__, wanted)


@pytest.mark.e2e
@pytest.mark.timeout(figure(600, 1_200))
@pytest.mark.django_db(transaction=True)
def test_p24_thirty_two_writers_and_two_sealers_never_fork_the_chain(tmp_path: Path, settings: Any) -> None:
    """Meanwhile others read: what they see is sound at every moment."""
    files = AuditFiles(tmp_path, settings)
    scribes = [start_scribe(number, tmp_path) for number in range(PROCESSES)]
    seen: list[ChainReport] = []
    over = Event()
    keepers = [Thread(target=keep_audit, args=(files, seen, over)) for _ in range(2)]
    try:
        for keeper in keepers:
            keeper.start()
        for scribe in scribes:
            scribe.wait()
    finally:
        over.set()
        for keeper in keepers:
            keeper.join()
        for scribe in scribes:
            scribe.kill()
            scribe.wait()
    logs = [(tmp_path / f"scribe-{number}.log").read_text() for number in range(PROCESSES)]
    assert [scribe.returncode for scribe in scribes] == [0] * PROCESSES, logs
    assert seen
    assert [found for found in seen if not found.sound] == []
    auditing.cut_checkpoints(force=True, stretch=100)
    report = operations.verify_audit()
    assert (report.sound, report.kind, report.notes) == (True, None, ())
    assert report.entries == PROCESSES * THREADS * WRITES * SIZE
    assert report.checkpoints >= report.entries // 100
    assert_nothing_was_lost()


def keep_audit(files: AuditFiles, seen: list[ChainReport], over: Event) -> None:
    """Seal and read, again and again."""
    try:
        while not over.is_set():
            try:
                files.cut(stretch=100)
                seen.append(operations.verify_audit())
            except OperationalError:
                pass  # SQLite: the writers were luckier for as long as we waited
            over.wait(0.4)
    finally:
        connection.close()


def assert_nothing_was_lost() -> None:
    """Of each writer every entry is there once, and in its order."""
    seen: dict[str, list[int]] = {}
    for actor, at_us in AuditEntry.objects.order_by("seq").values_list("actor", "at_us"):
        seen.setdefault(actor, []).append(at_us)
    assert len(seen) == PROCESSES * THREADS
    assert all(numbers == list(range(WRITES * SIZE)) for numbers in seen.values())


def start_scribe(number: int, folder: Path) -> subprocess.Popen[bytes]:
    """A process of writers on the database of this test."""
    environment = {**os.environ, "DATABASE_URL": test_database(), "DATABASE_POOL_SIZE": str(THREADS + 2)}
    command = [sys.executable, "-m", "tests.chaos.scribes", str(number), str(THREADS), str(WRITES), str(SIZE)]
    with (folder / f"scribe-{number}.log").open("wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def test_database() -> str:
    """The address of the test's own database, for other processes."""
    name = str(connection.settings_dict["NAME"])
    if connection.vendor == "sqlite":
        return f"sqlite:///{name}"
    return urlunsplit(urlsplit(os.environ["DATABASE_URL"])._replace(path=f"/{name}"))


test_database.__test__ = False  # type: ignore[attr-defined]
