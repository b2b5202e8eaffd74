"""`python -m cleanup.engine` as a real process: without a framework, ended by signals, killed at any step."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import wait_until

ROOT = Path(__file__).resolve().parents[2]
PASSED = "2020-01-01T00:00:00Z"

pytestmark = [pytest.mark.e2e, pytest.mark.sqlite_only, pytest.mark.timeout(240)]


def engine(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cleanup.engine", *words],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def expired(directory: Path, name: str = "old") -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}.metadata.json").write_text(json.dumps({"expires_at": PASSED}))
    result = directory / f"{name}.result.json.lz4"
    result.write_text("x")
    return result


def test_no_framework_is_loaded_and_the_answer_is_one_object(tmp_path: Path) -> None:
    (tmp_path / "cleanup.toml").write_text('state = "state"\n')
    code = (
        "import sys, runpy\n"
        "sys.argv = ['engine', 'run', '--json']\n"
        "try:\n    runpy.run_module('cleanup.engine', run_name='__main__')\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "names = ('django', 'celery', 'channels', 'bus', 'asyncio', 'rich')\n"
        "assert [name for name in names if name in sys.modules] == []\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    assert json.loads(done.stdout) == {"runs": [], "dry_run": False}


def test_a_person_reads_sentences_and_a_refusal_goes_to_standard_error(tmp_path: Path) -> None:
    done = engine("run", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "cleanup.toml cannot be read" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_daemon_cleans_until_it_is_told_to_end(tmp_path: Path, number: signal.Signals) -> None:
    result = expired(tmp_path / "cache")
    with subprocess.Popen(
        [sys.executable, "-m", "cleanup.engine", "daemon", str(tmp_path / "cache"), "--json"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    ) as daemon:  # fmt: skip
        try:
            wait_until(lambda: not result.exists(), timeout=60, what="the end of the expired result")
            daemon.send_signal(number)
            out, _ = daemon.communicate(timeout=60)
        finally:
            daemon.kill()
    assert daemon.returncode == 0
    assert (json.loads(out)["total_deleted"], json.loads(out)["running"]) == (1, False)


def test_an_application_written_for_the_daemon_runs_unchanged(tmp_path: Path) -> None:
    cache = tmp_path / ".omnimemory" / "cached_results"
    results = [expired(cache), expired(cache / "nested", "old2")]
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "tests.e2e.daemon_example"],
        cwd=ROOT, env={**os.environ, "HOME": str(tmp_path), "PYTHONUTF8": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
        # Shells let their background jobs ignore it, and so would whatever is started from there.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as program:  # fmt: skip
        try:
            wait_until(lambda: not any(map(Path.exists, results)), timeout=60, what="the end of the results")
            program.send_signal(signal.SIGINT)
            out, err = program.communicate(timeout=60)
        finally:
            program.kill()
    assert out.splitlines() == ["✓ Cleanup daemon started", "✓ Cleanup daemon stopped"]
    assert "Cleanup completed: 2 of 2 results removed" in err


@pytest.mark.timeout(600)
def test_a_kill_at_any_step_is_made_good_by_the_next_command(tmp_path: Path) -> None:
    every = 1 if os.environ.get("TEST_DEEP") else 4
    first = random.SystemRandom().randint(1, every)
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.engine_crasher", str(tmp_path), str(first), str(every)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["wrong"] == []
    assert all(answer["steps"].get(verb, 0) > 4 for verb in ("run", "purge", "restore", "rename"))
