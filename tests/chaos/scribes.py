"""A process of many writers of the audit: `python -m tests.chaos.scribes NUMBER THREADS WRITES SIZE`.

Each thread writes batch after batch under its own name. A write that the database refuses, since others were
first for too long, has written nothing and is done again.
"""

from __future__ import annotations

import sys
from threading import Thread

import django

django.setup()

from django.db import OperationalError, connection  # noqa: E402

from cleanup.engine.audit import AuditRecord  # noqa: E402
from cleanup.stores import DatabaseAuditSink  # noqa: E402

failed: list[BaseException] = []


def write(name: str, writes: int, size: int) -> None:
    """Write all batches of one writer."""
    try:
        for turn in range(writes):
            batch = [
                AuditRecord(at_us=turn * size + n, actor=name, actor_kind="system", action="tested")
                for n in range(size)
            ]
            insist(batch)
    except BaseException as error:
        failed.append(error)
        raise
    finally:
        connection.close()


def insist(batch: list[AuditRecord]) -> None:
    """Write a batch, as often as the database is busy."""
    while True:
        try:
            DatabaseAuditSink().write(batch)
            return
        except OperationalError as error:
            sys.stderr.write(f"again: {error}\n")


def main() -> None:
    """Run all writers of this process."""
    number, threads, writes, size = map(int, sys.argv[1:])
    writers = [Thread(target=write, args=(f"{number}/{n}", writes, size)) for n in range(threads)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
