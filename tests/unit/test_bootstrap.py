"""The ground of `up`: the state folder, its lock, its key, and the address of its own Valkey."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import free_port
from xnai_site import bootstrap

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def own_umask() -> Iterator[None]:
    """Holding the state narrows the umask of the whole process: give the other tests theirs back."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def var(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.delenv("SECRET_KEY", raising=False)
    monkeypatch.delenv("REDIS_URL", raising=False)
    yield tmp_path / "var"
    if bootstrap._state_lock is not None:
        bootstrap._state_lock.close()
        bootstrap._state_lock = None


def test_the_state_folder_and_its_secrets_are_for_the_owner_alone(var: Path):
    bootstrap.hold_state(var)
    assert stat.S_IMODE(var.stat().st_mode) == 0o700
    assert stat.S_IMODE((var / "secret_key").stat().st_mode) == 0o600
    assert stat.S_IMODE((var / "valkey" / "url").stat().st_mode) == 0o600


def test_key_and_address_survive_a_second_start(var: Path):
    bootstrap.hold_state(var)
    first = [(var / name).read_text() for name in ("secret_key", "valkey/url")]
    bootstrap._state_lock.close()
    bootstrap.hold_state(var)
    assert [(var / name).read_text() for name in ("secret_key", "valkey/url")] == first


def test_a_second_up_on_the_same_folder_is_refused(var: Path):
    bootstrap.hold_state(var)
    script = f"""
import sys; sys.path.insert(0, {str(PROJECT / "xnai_site")!r}); import bootstrap; from pathlib import Path
try:
    bootstrap.hold_state(Path({str(var)!r}))
except bootstrap.BootstrapError as error:
    sys.exit(str(error))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"already runs on {var} (process {os.getpid()})" in done.stderr


def test_a_port_that_somebody_else_has_taken_is_given_up(var: Path):
    bootstrap.hold_state(var)
    address = var / "valkey" / "url"
    with socket.socket() as other:
        port = free_port()
        other.bind(("127.0.0.1", port))
        address.write_text(f"redis://:secret@127.0.0.1:{port}/0\n")
        bootstrap.choose_valkey_address(var / "valkey")
    assert f":{port}/" not in address.read_text()


def test_a_state_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(bootstrap.BootstrapError, match="XNAI_VAR"):
        bootstrap.hold_state(tmp_path / "file" / "var")
