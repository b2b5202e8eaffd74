"""A small demonstration, so that a fresh installation has something to see: `python -m xnai_site.demo URL`.

Nothing in it is pretended. Agents connect with the Python client and a token, talk in `room:demo`, and go
away again; jobs run on the worker and report their progress; their results are files of the area `results`
that expire after some minutes, and the policy `demo` trashes and purges them. It touches files named `demo-*`
and nothing else. The load is a few events a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import signal
import sys
import uuid
from datetime import timedelta

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "xnai_site.settings")
django.setup()

from bus.access.tokens import issue_connection_token  # noqa: E402
from bus.client import BusClient, BusClientError  # noqa: E402  (as below: the models need a Django set up)
from cleanup.models import Mode, RetentionPolicy, Rule, StagingArea  # noqa: E402
from cleanup.operations import Actor, add_policy  # noqa: E402
from xnai_site.celery import app  # noqa: E402

logger = logging.getLogger(__name__)

ROOM = "room:demo"
AGENTS = {
    "demo-scout": ("found a source", "nothing new", "a source has moved"),
    "demo-writer": ("draft ready", "draft revised", "waiting for review"),
    "demo-critic": ("looks right", "a claim has no source", "approved"),
}
#: Seconds: how long an agent stays, stays away, and is silent between two messages; how far apart jobs are.
STAY, AWAY, SILENCE, JOBS = (20, 60), (5, 15), (2, 6), (15, 25)
#: A broker that nobody empties must not be filled by a demonstration.
JOB_EXPIRES = 60


def ensure_policy() -> StagingArea | None:
    """Make the policy that cleans up after the demonstration. Returns the area, None if it was removed."""
    area = StagingArea.objects.filter(name="results", enabled=True).first()
    if area is not None and not RetentionPolicy.objects.filter(name="demo").exists():
        add_policy(
            "demo",
            area,
            Actor.system("demo"),
            rule=Rule.EXPIRES_AT,
            include=["demo-*"],
            mode=Mode.ENFORCE,
            grace_period=timedelta(minutes=5),
            schedule="1min",
            max_percent=100,  # on a fresh installation the area holds nothing else
        )
    return area


async def live(agent: str, phrases: tuple[str, ...], address: str) -> None:
    """One agent that comes and goes, for ever."""
    while True:
        await asyncio.sleep(random.uniform(*AWAY))
        try:
            await visit(agent, phrases, address)
        except (BusClientError, OSError) as error:
            logger.info("%s could not stay: %s", agent, error)


async def visit(agent: str, phrases: tuple[str, ...], address: str) -> None:
    """Connect, talk for a while, leave."""
    token = issue_connection_token(agent, ttl=timedelta(hours=1), agent_id=agent, scopes=["publish"])
    async with BusClient(address, agent_id=agent, token=token) as client:
        with contextlib.suppress(TimeoutError):  # it has stayed as long as it wanted
            async with asyncio.timeout(random.uniform(*STAY)):
                while True:
                    await asyncio.sleep(random.uniform(*SILENCE))
                    await client.publish(ROOM, "agent.message", {"text": random.choice(phrases)})


async def work(folder: str) -> None:
    """Queue a job every now and then, for ever."""
    while True:
        name = f"demo-{uuid.uuid4().hex[:12]}"
        await asyncio.to_thread(queue, folder, name, random.randint(8, 20))
        await asyncio.sleep(random.uniform(*JOBS))


def queue(folder: str, name: str, documents: int) -> None:
    """Send the job. Its id is its name, so that its card on the dashboard and its file are told together."""
    try:
        app.send_task(
            "xnai_site.tasks.distil_for_show",
            [folder, name, documents],
            task_id=name,
            expires=JOB_EXPIRES,
            retry=False,
        )
    except app.connection_for_write().recoverable_connection_errors as error:
        logger.info("no job was queued: %s", error)


async def run(site: str, area: StagingArea | None) -> None:
    """Everything at once, until told to stop."""
    address = site.rstrip("/").replace("http", "ws", 1) + "/connection/websocket"
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)  # type: ignore[union-attr]
    async with asyncio.TaskGroup() as group:
        for agent, phrases in AGENTS.items():
            group.create_task(live(agent, phrases, address))
        if area is not None:
            group.create_task(work(area.path))


def main() -> None:
    area = ensure_policy()
    with contextlib.suppress(asyncio.CancelledError, KeyboardInterrupt):
        asyncio.run(run(sys.argv[1], area))


if __name__ == "__main__":
    main()
