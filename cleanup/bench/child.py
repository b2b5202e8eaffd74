"""One job in a fresh process: `python -m cleanup.bench.child JOB JSON` prints one JSON object.

Jobs of `cleanup.bench.jobs` know the engine alone; those of `cleanup.bench.rows` start Django on the database
that the environment names.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any


def job_of(name: str) -> Callable[..., dict[str, Any]]:
    """Return the job of this name."""
    from cleanup.bench import jobs

    if name in jobs.JOBS:
        return jobs.JOBS[name]
    from cleanup.bench import rows

    return rows.job(name)


def main() -> None:
    """Do the job that the command line names."""
    _, name, given = sys.argv
    said = job_of(name)(**json.loads(given))
    sys.stdout.write(json.dumps(said) + "\n")


if __name__ == "__main__":
    main()
