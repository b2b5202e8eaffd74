"""`manage.py up` with real processes: ready, restarts, refusals, and nothing left behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

from tests.harness import START_TIMEOUT
from tests.servers import free_port, wait_until

PROJECT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.sqlite_only, pytest.mark.e2e, pytest.mark.timeout(400)]


class Up:
    """One `manage.py up`, its lines in a file."""

    def __init__(self, folder: Path, *options: str, **variables: str) -> None:
        self.var = folder / "var"
        self.log = folder / f"up-{time.monotonic_ns()}.log"
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        environment = {**inherited, "XNAI_NO_VENV": "1", "XNAI_VAR": str(self.var), **variables}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "manage.py", "up", *options],
                cwd=PROJECT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self.log.read_text()

    def ready(self) -> Up:
        """Wait for the line that says so."""

        def is_ready() -> bool:
            assert self.process.poll() is None, self.said
            return "\nREADY " in f"\n{self.said}"

        wait_until(is_ready, timeout=START_TIMEOUT, what="READY")
        return self

    @property
    def line(self) -> re.Match[str]:
        found = re.search(r"^READY (http://\S+/) user=(\S+) password=(\S+)$", self.said, re.MULTILINE)
        assert found, self.said
        return found

    @property
    def url(self) -> str:
        return self.line[1]

    def children(self) -> dict[str, psutil.Process]:
        """The direct children by the word that tells them apart."""
        words = {"valkey": "valkey-server", "web": "--fd", "worker": "worker", "beat": "beat", "demo": "demo"}
        found = {}
        for child in psutil.Process(self.process.pid).children():
            with suppress(psutil.NoSuchProcess):  # it has just ended
                command = " ".join(child.cmdline())
                found |= {
                    name: child for name, word in words.items() if word in command and name not in found
                }
        return found

    def everything(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self, number: int = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(90)


def refused(folder: Path, *options: str, **variables: str) -> tuple[int, str]:
    """Start an `up` that must not come to life. Returns its exit code and what it said."""
    up = Up(folder, *options, **variables)
    return up.process.wait(START_TIMEOUT), up.said


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if is_alive(process)]


def is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):  # it has just ended
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A site that several tests look at."""
    up = Up(tmp_path_factory.mktemp("up"), "--port", "0", "--no-demo").ready()
    yield up
    up.end()


def test_when_it_says_ready_everything_runs_and_the_password_is_right(site: Up):
    assert set(site.children()) == {"valkey", "web", "worker", "beat"}
    with httpx.Client(base_url=site.url, follow_redirects=True, timeout=60) as browser:
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', browser.get("/admin/login/").text)
        assert token
        form = {"username": site.line[2], "password": site.line[3], "csrfmiddlewaretoken": token[1]}
        page = browser.post("/admin/login/?next=/admin/", data=form, headers={"referer": site.url})
        assert page.status_code == 200
        assert "sessionid" in browser.cookies
        assert browser.get("/static/admin/js/core.js").status_code == 200


def test_the_counters_are_served_and_the_password_stands_nowhere_else(site: Up):
    metrics = httpx.get(f"{site.url}metrics", timeout=60).text
    assert "active_websocket_connections 0.0" in metrics
    assert site.said.count(site.line[3]) == 1
    assert (site.var / "db.sqlite3").stat().st_mode & 0o077 == 0


def test_a_killed_web_process_is_replaced_and_nobody_is_refused_meanwhile(site: Up):
    before = site.children()["web"]
    before.kill()
    # No retry: the socket belongs to the supervisor, so the connection waits in its queue.
    assert httpx.get(f"{site.url}healthz/live", timeout=90).status_code == 200
    assert site.children()["web"].pid != before.pid


def test_a_killed_worker_is_replaced(site: Up):
    before = site.children()["worker"]
    before.kill()
    wait_until(lambda: (now := site.children().get("worker")) and now.pid != before.pid, what="a worker")
    wait_until(lambda: "worker was killed by SIGKILL; it starts again" in site.said, what="the word on it")


def test_a_second_up_on_the_same_state_is_refused(site: Up):
    code, said = refused(site.var.parent, "--port", "0")
    assert code == 1
    assert f"already runs on {site.var} (process {site.process.pid})" in said
    assert httpx.get(f"{site.url}healthz/ready", timeout=60).status_code == 200


def test_doctor_finds_the_running_site_sound(site: Up):
    wait_until(
        lambda: '"beat", "state": "ok"' in doctor(site), timeout=120, interval=1, what="a tick of beat"
    )
    assert '"sound": true' in doctor(site)


def doctor(site: Up) -> str:
    environment = {"PATH": os.environ["PATH"], "XNAI_NO_VENV": "1", "XNAI_VAR": str(site.var)}
    command = [sys.executable, "manage.py", "doctor", "--json"]
    return subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True).stdout


def test_ctrl_c_leaves_nothing_and_the_next_start_finds_its_state(tmp_path: Path):
    first = Up(tmp_path, "--port", "0", "--web", "2").ready()
    password, processes = first.line[3], first.everything()
    assert len(processes) >= 6
    assert first.end(signal.SIGINT) == 0, first.said
    assert alive(processes) == []

    second = Up(tmp_path, "--port", "0", "--no-demo").ready()
    assert second.line[3] == "unchanged"
    assert password not in second.said
    processes = second.everything()
    assert second.end(signal.SIGTERM) == 0, second.said
    assert alive(processes) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_killing_up_itself_leaves_nothing(tmp_path: Path):
    up = Up(tmp_path, "--port", "0").ready()
    processes = up.everything()
    up.end(signal.SIGKILL)
    try:
        wait_until(lambda: not alive(processes), what="the end of all children")
    finally:
        for process in alive(processes):
            process.kill()


def test_a_port_in_use_is_a_clear_refusal_before_anything_starts(tmp_path: Path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, said = refused(tmp_path, "--port", str(port))
    assert code == 1
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in said
    assert f"process {os.getpid()}" in said
    assert "Traceback" not in said
    assert not (tmp_path / "var" / "db.sqlite3").exists()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("DATABASE_URL", "nonsense", "DATABASE_URL must be"),
        ("DATABASE_URL", "sqlite:////nowhere/at/all/db.sqlite3", "the database cannot be used"),
        ("DATABASE_URL", "postgresql://u:hunter2@127.0.0.1:{port}/x", "the database cannot be used"),
        ("REDIS_URL", "redis://:hunter2@127.0.0.1:{port}/0", "REDIS_URL names does not answer"),
        ("REDIS_URL", "http://somewhere", "REDIS_URL is wrong"),
    ],
)
def test_a_broken_address_is_a_clear_refusal(tmp_path: Path, name: str, value: str, words: str):
    code, said = refused(tmp_path, "--port", "0", **{name: value.format(port=free_port())})
    assert code == 1, said
    assert words in said
    assert "Traceback" not in said
    assert "hunter2" not in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--web", "0"], "--web must be at least 1"),
        (["--port", "70000"], "70000 is no port"),
        (["--host", "203.0.113.9"], "cannot listen on 203.0.113.9"),
    ],
)
def test_an_impossible_option_is_a_clear_refusal(tmp_path: Path, options: list[str], words: str):
    code, said = refused(tmp_path, *options)
    assert code == 1, said
    assert words in said
    assert "Traceback" not in said
