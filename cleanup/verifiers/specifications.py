"""How a policy names those whom it asks: a kind, and options where the defaults do not do.

As text that is `redis_task` or `redis_task:key=job:{task_id},value=done`; as JSON `{"kind": "redis_task",
"value": "done"}`. `canonical` makes the one spelling that a policy version keeps, and refuses what could not
be obeyed, so that a mistake shows when a policy is saved and not when its files are due.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from cleanup.engine.errors import PolicyInvalid
from cleanup.engine.verify import Verifier
from cleanup.verifiers import http, qdrant_points, record, redis_task, sibling, sidecar
from cleanup.verifiers.kinds import Kind, Surroundings

#: Every kind that a policy may name.
KINDS: dict[str, Kind] = {
    "redis_task": redis_task.KIND,
    "qdrant_points": qdrant_points.KIND,
    "record": record.KIND,
    "http": http.KIND,
    "sidecar": sidecar.KIND,
    "sibling": sibling.KIND,
}

Specification = str | Mapping[str, Any]

#: Characters of one option.
_MAX_OPTION = 1_000


def parse(specification: Specification) -> tuple[str, dict[str, str]]:
    """Read a specification as its kind and all of its options.

    Raises:
        PolicyInvalid: an unknown kind or option, or one that could not be obeyed.
    """
    kind, given = _parts(specification)
    known = KINDS.get(kind)
    if known is None:
        raise PolicyInvalid(f"unknown verifier {kind!r}; there are: {', '.join(KINDS)}")
    for name, value in given.items():
        if name not in known.options:
            raise PolicyInvalid(f"verifier {kind} has no option {name!r}; it has: {', '.join(known.options)}")
        if not isinstance(value, str) or not value.isprintable() or len(value) > _MAX_OPTION:
            raise PolicyInvalid(f"verifier {kind}: {name} must be printable text of at most {_MAX_OPTION}")
    options = {name: option.default for name, option in known.options.items()} | given
    if complaint := _complaint(known, options):
        raise PolicyInvalid(f"verifier {kind}: {complaint}")
    return kind, options


def _complaint(kind: Kind, options: Mapping[str, str]) -> str | None:
    try:
        used = kind.placeholders(options)
    except PolicyInvalid as error:
        return str(error)
    canaries = [options[name] for name in ("canary_present", "canary_absent") if options.get(name)]
    if canaries and used != {"task_id"}:
        return "a canary is the id of a task, so {task_id} is the only placeholder that it allows"
    if len(canaries) == 2 and canaries[0] == canaries[1]:
        return "the same canary cannot be present and absent"
    return kind.check(options)


def _parts(specification: Specification) -> tuple[str, dict[str, Any]]:
    if isinstance(specification, str) and specification.lstrip().startswith("{"):
        specification = _object(specification)
    if isinstance(specification, Mapping):
        given = dict(specification)
        return str(given.pop("kind", "")), given
    if not isinstance(specification, str):
        raise PolicyInvalid(f"a verifier is named by text or by an object, not by {specification!r}")
    kind, _, rest = specification.partition(":")
    given = {}
    for option in filter(None, rest.split(",")):
        name, equals, value = option.partition("=")
        if not equals:
            raise PolicyInvalid(f"verifier {kind}: {option!r} is not NAME=VALUE")
        given[name.strip()] = value
    return kind.strip(), given


def _object(text: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PolicyInvalid(f"a verifier is not JSON: {error}") from error
    return found if isinstance(found, dict) else {}


def canonical(specification: Specification) -> str:
    """The one spelling of a specification: the kind, and those options that differ from the defaults.

    Text, or JSON where a comma in a value would be read as the end of an option.

    Raises:
        PolicyInvalid: see `parse`.
    """
    kind, options = parse(specification)
    known = KINDS[kind].options
    differing = {name: value for name, value in options.items() if value != known[name].default}
    if any("," in value for value in differing.values()):
        return json.dumps({"kind": kind, **differing}, ensure_ascii=False, separators=(",", ":"))
    shown = ",".join(f"{name}={value}" for name, value in differing.items())
    return f"{kind}:{shown}" if shown else kind


def build(
    specifications: Iterable[Specification], surroundings: Surroundings | None = None
) -> list[Verifier]:
    """Make the verifiers that a policy names.

    Raises:
        PolicyInvalid: see `parse`.
    """
    made: dict[str, Verifier] = {}
    for specification in specifications:
        kind, options = parse(specification)
        name = canonical(specification)
        made[name] = KINDS[kind].make(name, options, surroundings or Surroundings())
    return list(made.values())
