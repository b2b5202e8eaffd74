"""The wheel `xnai-bus` in an environment that has nothing else: an agent without Django and this project."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import ROOT, Site

pytestmark = [pytest.mark.e2e, pytest.mark.sqlite_only, pytest.mark.timeout(600)]

AGENT = """
import asyncio, importlib.util, json, sys
from bus.client import BusClient

async def main(url, token):
    async with BusClient(url, agent_id="wheel", token=token) as client:
        place = await client.publish("room:wheel", "output", {"n": 1}, key="once")
        async for event in client.events("room:wheel", cursor="notes"):
            lag = await client.ack(event.topic, event.offset, "notes", epoch=event.epoch)
            break
        print(json.dumps({
            "place": place.offset, "data": event.data, "lag": lag, "connects": client.stats.connects,
            "others": sorted(name for name in ("django", "channels", "msgspec") if name in sys.modules),
            "server": importlib.util.find_spec("bus.models") is not None,
        }))

asyncio.run(main(*sys.argv[1:]))
"""


def run(*words: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, capture_output=True, text=True, timeout=240, check=False
    )
    if "Could not find a version" in done.stderr or "No matching distribution" in done.stderr:
        pytest.skip("no package index: an empty environment needs one")
    assert done.returncode == 0, f"{words}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    options = ("--no-deps", "--quiet", "--disable-pip-version-check", "--wheel-dir", folder)
    run(sys.executable, "-m", "pip", "wheel", *options, ROOT, cwd=folder)
    (built,) = folder.glob("xnai_bus-*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the wheel and what it asks for."""
    folder = tmp_path_factory.mktemp("agent")
    venv.create(folder, with_pip=False)
    interpreter = folder / "bin" / "python"
    options = ("--quiet", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "--python", interpreter, "install", *options, wheel, cwd=folder)
    return interpreter


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    started = Site().start()
    yield started
    started.stop()


def test_an_agent_with_nothing_but_the_wheel(site: Site, python: Path, tmp_path: Path) -> None:
    token = site.token("wheel", "publish")
    told = json.loads(run(python, "-I", "-c", AGENT, site.web[0].socket, token, cwd=tmp_path))
    assert told == {"place": 1, "data": {"n": 1}, "lag": 0, "connects": 1, "others": [], "server": False}


def test_the_wheel_asks_for_little(python: Path, tmp_path: Path) -> None:
    listed = run(sys.executable, "-m", "pip", "--python", python, "list", "--format", "json", cwd=tmp_path)
    names = {entry["name"] for entry in json.loads(listed)}
    assert names == {"xnai-bus", "centrifuge-python", "protobuf", "websockets", "stamina", "tenacity"}


def test_the_wheel_carries_its_types_and_the_same_versions_as_the_site(wheel: Path, python: Path) -> None:
    from packaging.requirements import Requirement

    listed = run(python, "-I", "-c", "import bus.client; print(bus.client.__path__[0])", cwd=wheel.parent)
    assert (Path(listed.strip()) / "py.typed").is_file()
    code = "import importlib.metadata as m; print('\\n'.join(m.requires('xnai-bus')))"
    wanted = [Requirement(line) for line in run(python, "-I", "-c", code, cwd=wheel.parent).splitlines()]
    pins = (line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines())
    site = {
        found.name: next(iter(found.specifier)).version for pin in pins if pin for found in [Requirement(pin)]
    }
    assert wanted
    for requirement in wanted:
        assert requirement.specifier.contains(site[requirement.name]), requirement
