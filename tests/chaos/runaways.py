"""Policies that suddenly find far too much, an area each: `python -m tests.chaos.runaways ROOT`.

Run inside a site's environment. Each has been looking after a few files for some runs, and now something is
wrong: with the policy, with its area, with the clock, with what is asked. All are due at once.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import django

django.setup()

import redis  # noqa: E402

from cleanup.conf import conf  # noqa: E402
from cleanup.models import CleanupRun, RetentionPolicy  # noqa: E402
from tests.retention import DAY, Staging, write  # noqa: E402

#: Files that each policy used to find, in how many runs.
HABIT, RUNS = 3, 6
#: Files that it finds now: more than ten times as many.
FOUND = 40

#: What each is called, and what of its policy differs from the others'. Those that take the whole area stand
#: above a share of it, too; the others are stopped by their history alone.
POLICIES: dict[str, dict[str, Any]] = {
    "ten-times": {"max_percent": 100},
    "exclude-emptied": {"exclude": []},
    "clock-behind": {"age": "30d"},
    "companions-expired": {"rule": "expires_at", "age": ""},
    "verifier-says-yes": {
        "verifiers": ["redis_task"],
        "max_percent": 100,
    },
    "include-widened": {"include": ["**"], "exclude": ["new/**"]},
}


def fill(root: Path, name: str) -> None:
    """Make the files that the policy is going to find."""
    for number in range(FOUND):
        place = root / f"{number % 4}" / f"task-{number:04}"
        if name == "clock-behind":
            write(place, age=20 * 365 * DAY)
        elif name == "companions-expired":
            write(place.with_suffix(".result.json.lz4"))
            expired = {"expires_at": (datetime.now(UTC) - DAY).isoformat()}
            write(place.with_suffix(".metadata.json"), json.dumps(expired))
        else:
            write(place)


def main() -> None:
    """Make areas, files, policies and their histories."""
    root = Path(sys.argv[1])
    root.mkdir()
    store = redis.Redis.from_url(conf().redis_url)
    for number in range(FOUND):
        store.set(f"task:{number:04}:status", "Complete")
    for name, fields in POLICIES.items():
        staging = Staging(root, name)
        fill(staging.root, name)
        policy = staging.policy(name, **{"max_percent": 50, **fields})
        CleanupRun.objects.bulk_create(
            CleanupRun(
                policy_version=policy.versions.get(), area=staging.area, state="done", trashed=HABIT,
                actor="schedule",
            )
            for _ in range(RUNS)
        )  # fmt: skip
    RetentionPolicy.objects.update(next_due_at=datetime.now(UTC) - timedelta(seconds=1))


if __name__ == "__main__":
    main()
