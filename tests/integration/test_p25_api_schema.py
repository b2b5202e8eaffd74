"""The HTTP API against its own description: generated requests, sound and unsound, by schemathesis.

Whatever comes in, the answer is JSON of the described shape and never a server error, and nothing of how the
server is built is in it.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from tests.harness import ROOT, Site

pytestmark = [pytest.mark.sqlite_only, pytest.mark.timeout(400)]

CHECKS = [not_a_server_error, status_code_conformance, response_schema_conformance]
#: Requests of each kind to each operation.
EXAMPLES = 8
COMMANDS = (
    *("publish", "broadcast", "history", "history_remove", "presence", "presence_stats", "rpc", "batch"),
    *("channels", "info", "connections", "disconnect", "unsubscribe", "subscribe", "refresh"),
    *("revoke_token", "invalidate_user_tokens"),
)
LABELS = [f"POST /api/{name}" for name in COMMANDS] + [
    f"GET /api/{path}" for path in ("topics", "topics/{topic}/events", "connections")
]

#: Files, frames of a stack, names of our modules and tables.
INSIDE = re.compile(
    re.escape(str(ROOT))
    + r"|Traceback|File \"|site-packages|\.py\b|bus\.[a-z]+\.|bus_[a-z]+|django|pydantic|SELECT "
)


@pytest.fixture(scope="module")
def headers(site: Site) -> dict[str, str]:
    others = ("read:connections", "manage:connections", "manage:topics", "manage:tokens")
    return {"X-API-Key": site.api_key("publish", "publish:task", *others)}


@pytest.fixture(scope="module")
def operations(site: Site) -> dict[str, Any]:
    schema = schemathesis.openapi.from_url(f"{site.web[0].url}/api/openapi.json")
    found = [result.ok() for result in schema.get_all_operations()]
    return {operation.label: operation for operation in found}


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("label", LABELS)
def test_p25_every_answer_is_as_described(
    operations: dict[str, Any], headers: dict[str, str], label: str, mode: GenerationMode
) -> None:
    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operations[label].as_strategy(generation_mode=mode))
    def holds(case: Any) -> None:
        answer = case.call(headers=headers)
        assert INSIDE.search(answer.text) is None, answer.text
        case.validate_response(answer, checks=CHECKS)

    holds()


def test_p25_every_operation_is_tried(operations: dict[str, Any]) -> None:
    assert sorted(operations) == sorted(LABELS)
