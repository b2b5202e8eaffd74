"""One of two processes after the same file: `python -m tests.chaos.rivals restore` or `purge`.

For each id of an item on standard input it does its verb, and says on standard output how many files it got.
With `trash ROOT` it moves the old files in ROOT into the trash, for the two to begin with.
"""

from __future__ import annotations

import random
import sys
import time
from uuid import UUID

import django

django.setup()

from cleanup import operations  # noqa: E402
from cleanup.operations import Actor  # noqa: E402

ACTOR = Actor(name="rival")


def trash(root: str) -> None:
    """Make `root` an area and trash all old files in it."""
    area = operations.add_area("race", root, ACTOR)
    policy = operations.add_policy("race", area, ACTOR, age="1d", mode="enforce", max_percent=100)
    operations.execute(operations.start_run(policy, ACTOR).pk)


def got(verb: str, item: UUID) -> int:
    """How many files of the item this process has restored, or purged."""
    if verb == "restore":
        return operations.restore([item], actor=ACTOR).restored
    return operations.purge_now([item], reason="race", actor=ACTOR).purged


def main(verb: str) -> None:
    """Answer line by line."""
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        time.sleep(random.uniform(0, 0.003))
        sys.stdout.write(f"{got(verb, UUID(line.strip()))}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    trash(sys.argv[2]) if sys.argv[1] == "trash" else main(sys.argv[1])
