"""The golden conversations, and the Python client and the JavaScript client as their hearers."""

from __future__ import annotations

import asyncio
import os
from typing import Any
from urllib.parse import quote

import pytest

from bus.client import BusClient, BusClientError, Closed, Refused
from tests.e2e.test_browser_modules import HERE, node
from tests.vectors import FILE, TOPIC, VECTORS, scripted

pytestmark = pytest.mark.sqlite_only


async def hear(client: BusClient, vector: dict[str, Any]) -> tuple[list[Any], BusClientError | None]:
    """Read until as much came as should, or the end."""
    heard: list[Any] = []
    try:
        async with asyncio.timeout(60):
            async for event in client.events(TOPIC):
                heard.append([event.offset, event.data, event.after_gap])
                if len(heard) == len(vector["events"]) and not {"ends", "closes"} & set(vector):
                    break
    except BusClientError as error:
        return heard, error
    return heard, None


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
async def test_the_python_client_understands(vector: dict[str, Any]) -> None:
    async with scripted() as (address, script), BusClient(address + quote(vector["name"])) as client:
        heard, error = await hear(client, vector)
    assert heard == vector["events"]
    assert script.surprises == []
    code = error.code if isinstance(error, (Closed, Refused)) else None
    assert code == vector.get("ends", vector.get("closes"))
    assert isinstance(error, Closed) is ("closes" in vector)


async def test_the_javascript_client_understands_the_same() -> None:
    async with scripted() as (address, script):
        run = await asyncio.create_subprocess_exec(
            *(node(), "--no-warnings", "--test", "--test-timeout=60000", "--test-reporter=tap"),
            str(HERE / "vectors.test.mjs"),
            env={**os.environ, "VECTORS": str(FILE), "VECTORS_URL": address},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            output = (await asyncio.wait_for(run.communicate(), 100))[0].decode()
        finally:
            if run.returncode is None:
                run.kill()
    assert run.returncode == 0, output
    assert f"# pass {len(VECTORS)}" in output
    assert script.surprises == []
