"""`manage.py` prepares a checkout: an environment of its own, the packages, once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from xnai_site import bootstrap

PROJECT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.sqlite_only


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of its own with nothing to install, so that no package is fetched."""
    (tmp_path / "xnai_site").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "requirements.txt").write_text("# nothing\n")
    (tmp_path / "tests" / "requirements.txt").write_text("# nothing\n")
    for name, path in {
        "ROOT": tmp_path,
        "VENV": tmp_path / ".venv",
        "PYTHON": tmp_path / ".venv" / "bin" / "python",
        "REQUIREMENTS": tmp_path / "requirements.txt",
        "TEST_REQUIREMENTS": tmp_path / "tests" / "requirements.txt",
    }.items():
        monkeypatch.setattr(bootstrap, name, path)
    make_venv(tmp_path / ".venv")
    return tmp_path


def make_venv(folder: Path) -> None:
    """An environment without pip, which takes seconds less; the pip of this Python then installs into it."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)


def test_packages_are_installed_once_for_one_content_of_the_file(checkout: Path):
    requirements = checkout / "requirements.txt"
    bootstrap.ensure_packages([requirements])
    assert bootstrap.is_installed(requirements)
    requirements.write_text("# something else\n")
    assert not bootstrap.is_installed(requirements)


def test_another_python_needs_another_installation(checkout: Path):
    requirements = checkout / "requirements.txt"
    bootstrap.ensure_packages([requirements])
    config = checkout / ".venv" / "pyvenv.cfg"
    config.write_text(config.read_text().replace("version = 3", "version = 4"))
    assert not bootstrap.is_installed(requirements)


def test_a_failed_installation_leaves_no_stamp_and_says_so(checkout: Path, capfd):
    requirements = checkout / "requirements.txt"
    requirements.write_text("/nowhere/there-is-no-such-package-1.0.whl\n")
    with pytest.raises(bootstrap.BootstrapError, match="were not installed"):
        bootstrap.ensure_packages([requirements])
    assert not bootstrap.stamp_of(requirements).exists()
    assert "there-is-no-such-package" in capfd.readouterr().err


def test_a_venv_whose_interpreter_is_gone_is_made_anew(checkout: Path):
    requirements = checkout / "requirements.txt"
    bootstrap.ensure_packages([requirements])
    python = checkout / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to("/nowhere/python3")
    bootstrap.ensure_packages([requirements])
    assert bootstrap.runs(python, "-c", "")


def test_two_processes_that_prepare_at_once_wait_for_each_other(checkout: Path):
    shutil.rmtree(checkout / ".venv")
    (checkout / "xnai_site" / "bootstrap.py").write_text((PROJECT / "xnai_site" / "bootstrap.py").read_text())
    script = (
        "import sys; sys.path.insert(0, 'xnai_site'); import bootstrap\n"
        "bootstrap.ensure_packages([bootstrap.REQUIREMENTS])\n"
    )
    command = [sys.executable, "-c", script]
    both = [subprocess.Popen(command, cwd=checkout, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=100)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert "".join(said).count("creating") == 1


def test_without_pip_and_uv_it_says_what_to_install(checkout: Path, monkeypatch: pytest.MonkeyPatch):
    find = bootstrap.importlib.util.find_spec
    monkeypatch.setattr(
        bootstrap.importlib.util,
        "find_spec",
        lambda name: None if name in {"pip", "ensurepip"} else find(name),
    )
    monkeypatch.setenv("PATH", str(checkout))
    with pytest.raises(bootstrap.BootstrapError, match=r"neither pip nor uv.*apt install python3-venv"):
        bootstrap.ensure_packages([checkout / "requirements.txt"])


def test_a_venv_without_pip_uses_the_pip_of_this_python(checkout: Path):
    command = bootstrap.installer()
    assert command[:5] == [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(checkout / ".venv" / "bin" / "python"),
    ]
    bootstrap.ensure_packages([checkout / "requirements.txt"])
    assert bootstrap.is_installed(checkout / "requirements.txt")


def test_manage_py_in_a_folder_that_cannot_be_written_says_so(tmp_path: Path):
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("root writes everywhere, and there is no setpriv to become somebody else")
    base = Path(sys.base_prefix) / "bin" / "python3"
    if os.geteuid() == 0:
        base = Path("/usr/bin/python3")  # one that another user may run
        if not base.exists():
            pytest.skip("no Python that another user may run")
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:3]:
        if parent.owner() == tmp_path.owner() and parent != Path("/tmp"):
            parent.chmod(0o755)
    (tmp_path / "xnai_site").mkdir()
    shutil.copy(PROJECT / "manage.py", tmp_path)
    shutil.copy(PROJECT / "xnai_site" / "bootstrap.py", tmp_path / "xnai_site")
    (tmp_path / "requirements.txt").write_text("# nothing\n")
    tmp_path.chmod(0o555)
    become = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*become, str(base), "manage.py", "check"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    tmp_path.chmod(0o755)
    assert done.returncode == 1
    assert "make the folder writable" in done.stderr
    assert "Traceback" not in done.stderr
