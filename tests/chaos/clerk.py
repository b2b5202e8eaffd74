"""A process beside the servers that does business: `python -m tests.chaos.clerk` inside a site's environment.

Order after order it writes a row of its own and publishes an event in one transaction, and says on standard
output what was committed; between orders it does what beat's tasks do. Started again after a kill it goes
on behind its last row.
"""

from __future__ import annotations

import itertools
import sys
import time

import django

django.setup()

from django.contrib.auth.models import Group  # noqa: E402
from django.db import DatabaseError, close_old_connections, transaction  # noqa: E402

from bus import tasks  # noqa: E402
from bus.log.current import event_log  # noqa: E402
from bus.protocol.errors import BusError  # noqa: E402
from bus.publishing import end, publish  # noqa: E402

TOPIC = "order:all"


def last_order() -> int:
    """The number of the last order that is in the books."""
    return max(
        (int(name.removeprefix("order-")) for name in Group.objects.values_list("name", flat=True)), default=0
    )


def take_order(number: int) -> None:
    """One row and one event: both are committed, or neither."""
    with transaction.atomic():
        Group.objects.create(name=f"order-{number}")
        place = publish(
            TOPIC, "order.saved", {"n": number}, f"order-{number}", tags={"key": f"order-{number}"}
        )
    sys.stdout.write(f"acked {number} {place.offset} {place.epoch}\n")
    sys.stdout.flush()


def do_chores(number: int) -> None:
    """Trim, remove, and reap."""
    for _ in range(4):
        publish("chore:old", "output")
    event_log().trim("chore:old", max_age=None, max_events=2)
    publish(f"task:chore-{number}", "task.started")
    end(f"task:chore-{number}")
    event_log().remove(f"task:chore-{number}")
    tasks.reap_connections()


def main() -> None:
    """Work until killed; a database that is away is waited for."""
    for _ in itertools.count():
        try:
            number = last_order() + 1
            take_order(number)
            if number % 4 == 0:
                do_chores(number)
        except (BusError, DatabaseError) as error:
            sys.stdout.write(f"waits: {type(error).__name__}\n")
            close_old_connections()
            time.sleep(0.1)
        time.sleep(0.02)


if __name__ == "__main__":
    main()
