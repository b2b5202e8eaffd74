"""Keep a crew of child processes: start, wait until ready, show their lines, restart, stop in reverse order.

Used by `manage.py up`. One event loop, no threads of its own. Each child leads a process group, so that
Ctrl-C reaches the supervisor alone, which then stops the children one by one, the last started first; what a
child leaves behind in its group is killed. On Linux the kernel kills the children if the supervisor is
killed.

A child that ends before it was first ready is a failure of the start. Later on it is started again, after a
pause that doubles from half a second to 30 s and is forgotten once a child has lived for 30 s.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
#: A child that has lived for this long has not failed to start.
STEADY_AFTER = 30.0
#: How long a child may take until it is ready, s. A cold disk and one busy core included.
READY_WITHIN = 60.0

_PR_SET_PDEATHSIG = 1


class StartError(Exception):
    """A child could not be started or did not become ready; the message says which and how it ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """What to run, and how to tell that it is ready."""

    name: str
    command: list[str]
    environment: Mapping[str, str]
    folder: str
    #: Returns once the child serves; `None`: it writes a byte to the pipe whose number is in `XNAI_READY_FD`.
    ready: Callable[[], Awaitable[None]] | None = None
    #: Descriptors that it inherits.
    descriptors: tuple[int, ...] = ()
    #: How long it may take to stop before it is killed, s.
    patience: float = 10.0
    #: Called with its process id when it has ended.
    ended: Callable[[int], None] | None = None


@dataclass(slots=True, kw_only=True)
class Post:
    """A child and what became of it so far."""

    child: Child
    is_ready: asyncio.Event = field(default_factory=asyncio.Event)
    process: asyncio.subprocess.Process | None = None
    keeper: asyncio.Task[None] | None = None
    #: Set when it is meant to end.
    stopping: asyncio.Event = field(default_factory=asyncio.Event)


class Crew:
    """The children of one supervisor. An asynchronous context manager: leaving it stops them all."""

    def __init__(self, *, show: Callable[[str, str], None]) -> None:
        """Args: show: called with a child's name and one line of what it says."""
        self._show = show
        self._posts: list[Post] = []
        self._in_a_hurry = False

    async def __aenter__(self) -> Crew:
        return self

    async def __aexit__(self, *_: object) -> None:
        stopping = asyncio.create_task(self._stop_all())
        while not stopping.done():
            try:
                await asyncio.shield(stopping)
            except asyncio.CancelledError:
                self.hurry()

    async def start(self, children: Iterable[Child]) -> None:
        """Start all of these, then wait until each is ready, in order.

        Raises:
            StartError: one ended or did not become ready in time.
        """
        posts = [Post(child=child) for child in children]
        for post in posts:
            self._posts.append(post)
            post.keeper = asyncio.create_task(self._keep(post), name=f"keep {post.child.name}")
        for post in posts:
            await self._until_ready(post)

    def hurry(self) -> None:
        """Kill what still runs instead of waiting for it to stop."""
        self._in_a_hurry = True
        for post in self._posts:
            if post.process is not None and post.process.returncode is None:
                _kill_group(post.process.pid)

    def processes(self) -> dict[str, int]:
        """Names and process ids of the children that run."""
        return {
            post.child.name: post.process.pid
            for post in self._posts
            if post.process is not None and post.process.returncode is None
        }

    async def _until_ready(self, post: Post) -> None:
        assert post.keeper is not None  # noqa: S101  (set by `start`)
        waiting = asyncio.create_task(post.is_ready.wait())
        try:
            done, _ = await asyncio.wait(
                {waiting, post.keeper}, timeout=READY_WITHIN, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            waiting.cancel()
        if waiting in done:
            return
        if post.keeper in done:
            post.keeper.result()
        raise StartError(f"{post.child.name} was not ready within {READY_WITHIN:.0f} s; see its lines above")

    async def _keep(self, post: Post) -> None:
        """Run the child, again and again, until it is meant to stop."""
        failures = 0
        while not post.stopping.is_set():
            started = time.monotonic()
            end = await self._run_once(post)
            if post.stopping.is_set():
                return
            if not post.is_ready.is_set():
                raise StartError(f"{post.child.name} {end} before it was ready; see its lines above")
            failures = 0 if time.monotonic() - started >= STEADY_AFTER else failures + 1
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** max(0, failures - 1))
            self._show("up", f"{post.child.name} {end}; it starts again in {pause:.1f} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(post.stopping.wait(), timeout=pause)

    async def _run_once(self, post: Post) -> str:
        """Run the child to its end, and return in words what the end was."""
        child = post.child
        heard, said = os.pipe()
        try:
            post.process = process = await asyncio.create_subprocess_exec(
                *child.command,
                cwd=child.folder,
                env={**child.environment, "XNAI_READY_FD": str(said)},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                pass_fds=(*child.descriptors, said),
                start_new_session=True,
                preexec_fn=_die_with_parent(os.getpid()),
            )
        except OSError as error:
            os.close(heard)
            return f"cannot be started ({error})"
        finally:
            os.close(said)
        if post.stopping.is_set():  # told so while the process was being made
            _kill_group(process.pid)
        return ending(await self._attend(post, process, heard))

    async def _attend(self, post: Post, process: asyncio.subprocess.Process, heard: int) -> int:
        """Show its lines and notice that it is ready, until it has ended and nothing is left of it."""
        readiness = asyncio.create_task(self._notice_readiness(post, heard))
        lines = asyncio.create_task(self._show_lines(post.child.name, process.stdout))
        try:
            return await process.wait()
        finally:
            _kill_group(process.pid)
            readiness.cancel()
            await asyncio.wait({lines, readiness}, timeout=2)
            lines.cancel()
            os.close(heard)
            if post.child.ended is not None:
                post.child.ended(process.pid)

    async def _notice_readiness(self, post: Post, heard: int) -> None:
        if post.child.ready is not None:
            await post.child.ready()
        else:
            await _one_byte(heard)
        post.is_ready.set()

    async def _show_lines(self, name: str, stream: asyncio.StreamReader | None) -> None:
        assert stream is not None  # noqa: S101  (stdout is a pipe)
        rest = b""
        while data := await stream.read(65_536):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._show(name, line.decode(errors="replace"))
            if len(rest) > 65_536:  # a line without end must not fill the memory
                self._show(name, rest.decode(errors="replace"))
                rest = b""
        if rest:
            self._show(name, rest.decode(errors="replace"))

    async def _stop_all(self) -> None:
        for post in reversed(self._posts):
            await self._stop(post)
        self._posts.clear()

    async def _stop(self, post: Post) -> None:
        post.stopping.set()
        process = post.process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            patience = 0.0 if self._in_a_hurry else post.child.patience
            if not await _ends_within(process, patience):
                if not self._in_a_hurry:
                    self._show("up", f"{post.child.name} does not stop; it is killed")
                _kill_group(process.pid)
        if post.keeper is not None:
            await _let_go(post.keeper)


async def _let_go(keeper: asyncio.Task[None]) -> None:
    """Wait for a keeper, which returns by itself once its process has ended."""
    done, _ = await asyncio.wait({keeper}, timeout=5)
    if not done:
        keeper.cancel()
        await asyncio.wait({keeper})
    if not keeper.cancelled():
        keeper.exception()  # a failed start has been reported by `start`


async def _ends_within(process: asyncio.subprocess.Process, seconds: float) -> bool:
    try:
        await asyncio.wait_for(process.wait(), timeout=seconds)
    except TimeoutError:
        return False
    return True


async def _one_byte(descriptor: int) -> None:
    """Wait for a byte on a pipe; for ever if it is closed without one, for then the process has ended."""
    loop = asyncio.get_running_loop()
    said = loop.create_future()

    def readable() -> None:
        loop.remove_reader(descriptor)
        if os.read(descriptor, 1):
            said.set_result(None)

    loop.add_reader(descriptor, readable)
    try:
        await said
    finally:
        loop.remove_reader(descriptor)


def _die_with_parent(parent: int) -> Callable[[], None] | None:
    """What a new child does first on Linux: ask the kernel to be killed when its parent is.

    It runs between fork and exec, where locks of other threads may be held for ever: it calls libc, no more.
    """
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)

    def ask() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)

    return ask


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def ending(code: int) -> str:
    """How a process ended, in words."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
