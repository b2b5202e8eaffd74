"""Takes away what dead servers left: rows of connections, open sessions, presence.

Beat calls it, and every server process looks for itself, so that nobody waits for beat: whoever is first
removes the rows and tells of them. A server is dead when its lease was seen unchanged for its length less a
heartbeat, by the steady clock of whoever looks; wall clocks, which jump and disagree, are not asked.
"""

from __future__ import annotations

import asyncio
import logging

from django.db import DatabaseError

from bus.connections import leases, presence
from bus.log.threads import in_thread

logger = logging.getLogger(__name__)

#: Seconds between two looks of a server: one small query.
LOOK_INTERVAL = 2.0


def reap() -> int:
    """Remove the rows of dead servers and of lost connections, and end their presence; return how many
    connections went."""
    went, servers = leases.reap()
    left = presence.end_orphans()
    if went or servers or left:
        logger.info("reaped %d connections, servers %s, %d presences", went, servers, left)
    return went


async def watch_for_ever() -> None:
    """Look at the leases of all servers, again and again, and reap as soon as one is over."""
    while True:
        await asyncio.sleep(LOOK_INTERVAL)
        try:
            if await in_thread(leases.silent_servers):
                await in_thread(reap)
        except DatabaseError as error:
            logger.warning("the leases of servers could not be read: %s", error)
        except Exception:
            logger.exception("the leases of servers were not looked after")
