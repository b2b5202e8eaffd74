"""A worker is killed within every step of the pipeline: the next one goes on, and makes one set of files."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.harness import Site

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

ROLES = ("incoming", "extracted", "distilled", "rejected")

#: A child is killed at the n-th write to its job, before or after it, for every n; then its parent goes on.
_KILLED = """
import json, os, signal
from django.db import connections
from cleanup.models import PipelineJob, StagedFile, StagingArea
from cleanup.operations import Actor
from cleanup.staging import pipeline
from cleanup.staging.content import Incoming, stage_bytes
from cleanup.stores import jobs
from cleanup.stores.sql import database_now

area, who, renew = StagingArea.objects.get(name="incoming"), Actor.system("test"), jobs.renew

def leave_database():
    # Parent and child must not share a connection, nor a pool of them.
    connections.close_all()
    for connection in connections.all():
        if connection.vendor == "postgresql":
            connection.close_pool()

def take(key, left, after):
    def dying(job, **changes):
        nonlocal left
        left -= 1
        if left == 0 and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        renew(job, **changes)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    pipeline.jobs.renew = dying
    pipeline.carry_out(key)
    os._exit(0)

def killed(name, data, at, after):
    row = stage_bytes(area, data + f" {at} {after}".encode(), Incoming(name=name), who)
    job = pipeline.queue(row, who, wake=False)
    leave_database()
    child = os.fork()
    if not child:
        take(job.pk, at, after)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        return None
    due = job.pk in pipeline.due(database_now())
    pipeline.carry_out(job.pk)
    job.refresh_from_db()
    made = StagedFile.objects.filter(origin=row.pk).select_related("area").order_by("area__name", "name")
    return {"due": due, "state": job.state, "made": [one.area.name for one in made]}

found = []
for name, data in (("good.txt", b"text"), ("bad.pdf", b"%PDF-1.7")):
    for after in (False, True):
        at = 1
        while (one := killed(name, data, at, after)) is not None:
            found.append([name, one])
            at += 1
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    site = Site(web=0)
    site.start()
    for role in ROLES:
        root = site.folder / "staging" / role
        root.mkdir(parents=True)
        site.manage("cleanup", "areas", "add", role, str(root))
    yield site
    site.stop()


def test_killed_within_any_step_the_next_worker_makes_one_set_of_files(site: Site) -> None:
    found = json.loads(site.python(_KILLED))
    outcomes = {
        "good.txt": {"due": True, "state": "done", "made": ["distilled", "extracted"]},
        "bad.pdf": {"due": True, "state": "refused", "made": ["rejected", "rejected"]},
    }
    assert [(name, one) for name, one in found if one != outcomes[name]] == []
    # begun, extracted, distilled, told to the index, finished; and begun, reason, rejected, finished.
    assert [sum(name == kind for name, _ in found) for kind in outcomes] == [2 * 5, 2 * 4]
    assert site.manage_json("cleanup", "audit", "verify")["sound"]
