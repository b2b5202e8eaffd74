"""Those whom a policy asks before a file may go: the concrete verifiers, and how a policy names them.

    specifications    text or JSON to kind and options, in one spelling; KINDS lists what there is
    asking            all verifiers of a policy about one batch, with canaries and counters
    redis_task, qdrant_points, record, http, sidecar, sibling    one module for each kind

Every verifier answers PASS, FAIL or UNKNOWN (`cleanup.engine.verify`), and any doubt is UNKNOWN: a server
that is down is never read as a task that is done.
"""

from cleanup.verifiers.asking import Asker, asker, asking, describe, with_registry
from cleanup.verifiers.kinds import Kind, Option, Surroundings
from cleanup.verifiers.specifications import KINDS, Specification, build, canonical, parse

#: Where a path names its task unless the policy says otherwise: `task-<id>`, as a name or the start of one.
#: A name that follows no convention gives no id, and so no PASS.
TASK_ID_PATTERN = r"(?:^|/)task-(?P<task_id>[A-Za-z0-9_-]+)"

__all__ = [
    "KINDS",
    "TASK_ID_PATTERN",
    "Asker",
    "Kind",
    "Option",
    "Specification",
    "Surroundings",
    "asker",
    "asking",
    "build",
    "canonical",
    "describe",
    "parse",
    "with_registry",
]
