"""The verb `bench`: the engine beside other programs, in one run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from cleanup.bench.run import run
from cleanup.management.output import Answer


def bench(options: dict[str, Any]) -> Answer:
    """Measure; tables go to standard output, or with `--json -` to standard error."""
    file = Path(options["file"]) if options["file"] else None
    on = Path(options["on"]) if options["on"] else None
    stream = sys.stderr if options["json"] else sys.stdout
    found = run(options["figure"], quick=options["quick"], on=on, file=file, stream=stream)
    return Answer(data={"figures": [figure.as_json() for figure in found]})
