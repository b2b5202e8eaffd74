"""What `manage.py` does before Django exists: packages, and the ground that `up` stands on.

Standard library only. `prepare` makes `.venv`, installs the pinned requirements once for every content of the
file (a stamp remembers it), and re-executes `manage.py` inside. For `up` it also takes the lock of the state
folder and makes sure of its secret key and of the address of its own Valkey, because the settings read both
when they load.

Promises: a failed installation leaves no stamp, so the next start tries again; two processes that prepare at
once wait for each other; whatever goes wrong is a `BootstrapError` that says what to do.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
REQUIREMENTS = ROOT / "requirements.txt"
TEST_REQUIREMENTS = ROOT / "tests" / "requirements.txt"

#: The lock of the state folder; kept open, so that it is held for as long as this process lives.
_state_lock: IO[str] | None = None


class BootstrapError(Exception):
    """The project cannot be prepared; the message says why and what to do."""


def prepare(arguments: list[str]) -> None:
    """Make sure that what this command needs is there. Does not return if it re-executes inside `.venv`."""
    command = arguments[0] if arguments else ""
    files = [REQUIREMENTS, TEST_REQUIREMENTS] if command == "test" else [REQUIREMENTS]
    if not has_own_packages():
        ensure_packages(files)
        if not inside_venv():
            reexecute()
    if command == "up" and not {"-h", "--help"} & set(arguments):
        hold_state(Path(os.environ.get("XNAI_VAR") or ROOT / "var").resolve())


# Packages ---------------------------------------------------------------------------------------------------


def has_own_packages() -> bool:
    """Whether somebody else sees to the packages: a container, or an active environment that has Django."""
    if os.environ.get("XNAI_NO_VENV") == "1":
        return True
    active = sys.prefix != sys.base_prefix and not inside_venv()
    return active and importlib.util.find_spec("django") is not None


def inside_venv() -> bool:
    return Path(sys.prefix).resolve() == VENV.resolve()


def reexecute() -> None:
    """Run the same command again with the interpreter of `.venv`, its own options (`-W` …) included."""
    os.environ.pop("__PYVENV_LAUNCHER__", None)  # macOS: would make the new interpreter take the old prefix
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(PYTHON, [str(PYTHON), *sys.orig_argv[1:]])  # noqa: S606  (no shell is wanted)


def ensure_packages(files: list[Path]) -> None:
    """Install what is not installed yet. One process at a time; the others wait and then find it done."""
    if all(is_installed(path) for path in files):
        return
    with project_lock():
        missing = [path for path in files if not is_installed(path)]
        try:
            for path in missing:
                install(path)
        except OSError as error:
            raise BootstrapError(
                f"cannot write {error.filename or VENV}: {error.strerror}. The packages go to {VENV}: "
                "make the folder writable, or activate an environment that has them."
            ) from error


@contextmanager
def project_lock() -> Iterator[None]:
    """Hold the lock of the checkout. It is the folder itself: no file is left behind, none can be deleted."""
    import fcntl

    folder = os.open(ROOT, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another manage.py is installing packages; waiting for it")
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise BootstrapError(
            f"cannot lock {ROOT}: {error.strerror}. Put the checkout on a local disk."
        ) from error
    finally:
        os.close(folder)


def stamp_of(requirements: Path) -> Path:
    """The file that remembers for which content the requirements were installed."""
    return VENV / f"{requirements.parent.name if requirements.parent != ROOT else 'site'}.stamp"


def fingerprint(requirements: Path) -> str:
    """Changes with the content of the file and with the interpreter of `.venv`."""
    config = VENV / "pyvenv.cfg"
    interpreter = [line for line in config.read_text().splitlines() if line.startswith("version")]
    return hashlib.sha256("\n".join([requirements.read_text(), *interpreter]).encode()).hexdigest()


def is_installed(requirements: Path) -> bool:
    stamp = stamp_of(requirements)
    if not (os.access(PYTHON, os.X_OK) and stamp.is_file() and (VENV / "pyvenv.cfg").is_file()):
        return False
    return stamp.read_text() == fingerprint(requirements)


def install(requirements: Path) -> None:
    """Install one requirements file, byte-compile, then stamp.

    Raises:
        BootstrapError: no installer, or the installer failed.
        OSError: the folder cannot be written.
    """
    if not runs(PYTHON, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"):
        make_venv()
    command = installer()
    say(f"installing {requirements.relative_to(ROOT)} (the first time takes half a minute)")
    started = time.monotonic()
    if (code := subprocess.call([*command, "-r", str(requirements)])) != 0:
        raise BootstrapError(
            f"the packages of {requirements.relative_to(ROOT)} were not installed: `{' '.join(command)}` "
            f"ended with exit code {code}; its message stands above. Is the network there? Then run it again."
        )
    compile_all()
    stamp_of(requirements).write_text(fingerprint(requirements))
    say(f"installed in {time.monotonic() - started:.0f} s")


def make_venv() -> None:
    """Make `.venv` anew, with pip where this Python brings one.

    `.venv` is removed first if it is there: it has no interpreter that runs, so nothing in it is of use.
    """
    say(f"creating {VENV}")
    if not os.access(ROOT, os.W_OK):
        raise PermissionError(13, "Permission denied", str(ROOT))
    if VENV.exists():
        shutil.rmtree(VENV)
    if importlib.util.find_spec("venv") is None:
        make_venv_with_uv()
        return
    pip = [] if importlib.util.find_spec("ensurepip") else ["--without-pip"]
    if not runs(sys.executable, "-m", "venv", *pip, str(VENV)):
        raise BootstrapError(f"`{sys.executable} -m venv {VENV}` failed. {HOW_TO_GET_PIP}")


HOW_TO_GET_PIP = (
    "Install what it lacks (Debian and Ubuntu: apt install python3-venv; Fedora: dnf install python3-pip), "
    "or uv (https://docs.astral.sh/uv/), then run the command again."
)


def make_venv_with_uv() -> None:
    uv = shutil.which("uv")
    if uv is None:
        raise BootstrapError(f"this Python has no venv module, and there is no uv. {HOW_TO_GET_PIP}")
    if not runs(uv, "venv", "--quiet", "--python", sys.executable, str(VENV)):
        raise BootstrapError(f"`uv venv {VENV}` failed. {HOW_TO_GET_PIP}")


def installer() -> list[str]:
    """The command that installs into `.venv`: its own pip, else the pip of this Python, else uv.

    Nothing is compiled by the installer: `compile_all` does that on all cores, in half the time.
    """
    quiet = ["install", "--quiet", "--disable-pip-version-check", "--no-input", "--no-compile"]
    if runs(PYTHON, "-c", "import pip"):
        return [str(PYTHON), "-m", "pip", *quiet]
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip", "--python", str(PYTHON), *quiet]
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", "--quiet", "--python", str(PYTHON)]
    raise BootstrapError(f"there is neither pip nor uv to install packages with. {HOW_TO_GET_PIP}")


def compile_all() -> None:
    """Byte-compile the packages and the project.

    The exit code tells of files that are no Python for this version (templates of packages) and is not asked.
    """
    folders = [VENV / "lib", ROOT / "xnai_site", ROOT / "bus", ROOT / "cleanup"]
    subprocess.call([str(PYTHON), "-m", "compileall", "-qq", "-j", "0", *map(str, folders)])


def runs(*command: str | Path) -> bool:
    """Whether this command ends with exit code 0. A failed one's output is shown, but not a `-c` probe's."""
    try:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    except (FileNotFoundError, PermissionError):
        return False
    if done.returncode != 0 and "-c" not in command:
        sys.stderr.write(done.stdout + done.stderr)
    return done.returncode == 0


def say(text: str) -> None:
    print(f"manage.py: {text}", file=sys.stderr, flush=True)


# The ground of `up` -----------------------------------------------------------------------------------------


def hold_state(var: Path) -> None:
    """Make the state folder, take its lock for the life of this process, and make sure of key and address.

    Raises:
        BootstrapError: the folder cannot be written, or another `up` holds it.
    """
    os.umask(0o077)  # database, keys and logs are for this user alone
    try:
        var.mkdir(mode=0o700, parents=True, exist_ok=True)
        take_state_lock(var)
        if not os.environ.get("SECRET_KEY"):
            keep(var / "secret_key", secrets.token_urlsafe(50))
        if not os.environ.get("REDIS_URL"):
            choose_valkey_address(var / "valkey")
    except OSError as error:
        raise BootstrapError(
            f"cannot write the state folder {var}: {error.strerror}. Make it writable, or name another "
            "in XNAI_VAR."
        ) from error


def take_state_lock(var: Path) -> None:
    import fcntl

    global _state_lock
    lock = (var / "up.lock").open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip() or "unknown"
        raise BootstrapError(
            f"`up` already runs on {var} (process {holder}). Stop it first, or name another folder "
            "in XNAI_VAR."
        ) from None
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    _state_lock = lock


def keep(path: Path, text: str) -> None:
    """Write a secret once: only this user can read it, and what is there stays."""
    if path.is_file() and path.read_text().strip():
        return
    replace_secret(path, text)


def replace_secret(path: Path, text: str) -> None:
    """Write a secret whole or not at all."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def choose_valkey_address(folder: Path) -> None:
    """Make sure that `folder/url` names a port that is free now; the port is kept for as long as it can be.

    Every process of the site reads the file, so that commands find the server of a running `up`. The password
    keeps other users of the machine out: the port of a loopback server is open to all of them.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    file = folder / "url"
    if file.is_file() and (url := file.read_text().strip()):
        password, _, port = url.removeprefix("redis://:").removesuffix("/0").partition("@127.0.0.1:")
        if port.isdigit() and (is_free(int(port)) or end_orphan(int(port), password)):
            return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    replace_secret(file, f"redis://:{secrets.token_urlsafe(24)}@127.0.0.1:{port}/0")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def end_orphan(port: int, password: str) -> bool:
    """End a Valkey of ours that outlived a killed `up`: two servers must never write the same files.

    Linux ends it together with its parent; elsewhere it is told to. True if the port is free afterwards.
    """
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as orphan:
            orphan.sendall(f"AUTH {password}\r\nSHUTDOWN\r\n".encode())
            while orphan.recv(1024):
                pass
    except OSError:
        return is_free(port)
    deadline = time.monotonic() + 5
    while not is_free(port):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
