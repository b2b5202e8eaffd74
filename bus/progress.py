"""A long job tells its topic `task:<id>` how far it is, and ends it.

`Progress` is a context manager, with or without `async`; `BusTask` does the same for Celery by itself.
Started, progress (at most ten a second), retry, and exactly one end: completed, failed or cancelled, also
when the worker dies (`bus.runs`). A job that is started again under its old id begins the topic anew. A
`Progress` inside of another of the same task goes on with that one, which alone ends it. Telling never harms
the job: what cannot be told is logged.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Self

import stamina
from celery import Task
from celery.exceptions import Ignore, Retry
from celery.signals import task_revoked
from django.db import transaction
from django.utils import timezone

from bus import runs
from bus.log.threads import in_thread
from bus.metrics import RETRIES_FAILED
from bus.protocol.errors import BusError, TopicEnded
from bus.publishing import aend, apublish, end, publish

logger = logging.getLogger(__name__)

#: No more than ten a second: nobody sees more, and every one of them is kept.
INTERVAL = timedelta(milliseconds=100)
#: In a full send queue only the newest event with this tag is kept.
KEY = "progress"


#: Those that are open here, the innermost last.
_open: ContextVar[tuple[Progress, ...]] = ContextVar("open_progress", default=())


class Cancelled(Exception):
    """Raise it inside of a `Progress` to end the task as cancelled; it goes no further."""


class Progress:
    """How far one task is.

    Args:
        task_id: the topic is `task:<task_id>`.
        unit: what is counted, such as `files`.
        interval: no two progress events are closer than this.
        clock: steady seconds.
        sleep: waits for as many.
    """

    def __init__(
        self,
        task_id: str,
        *,
        unit: str = "",
        interval: timedelta = INTERVAL,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.task_id = task_id
        self.topic = f"task:{task_id}"
        self._interval = interval.total_seconds()
        self._clock = clock
        self._sleep = sleep
        self._told_at = float("-inf")
        self._state: dict[str, Any] = {"step": "", "done": 0, "total": None, "unit": unit, "message": ""}
        #: The lease of this run; empty before the start, and where it could not be had.
        self._run = ""
        #: The one of the same task that it stands in.
        self._outer: Progress | None = None

    def start(self) -> None:
        """Say that the task has begun."""
        self._take(lambda: publish(self.topic, "task.started", self._said("running"), run_id=self.task_id))

    def resume(self) -> None:
        """Go on with a task that was begun before, and told to be tried again."""
        self._take(lambda: None)

    def update(
        self,
        done: int | None = None,
        total: int | None = None,
        *,
        step: str | None = None,
        message: str | None = None,
        unit: str | None = None,
    ) -> bool:
        """Say how far it is; return whether it was told, for what comes too soon after the last is not.

        Fields that are not given stay as they were. A new step is always told, if need be after the rest of
        the interval (0.1 s): it may last, and who watches would see the former one all the while.
        """
        if self._outer is not None:
            return self._outer.update(done, total, step=step, message=message, unit=unit)
        is_new_step = self._note(done=done, total=total, step=step, message=message, unit=unit)
        if is_new_step:
            self._sleep(self._wait())
        return self._is_due(is_new_step) and _tell(
            lambda: publish(self.topic, "task.progress", **self._progress())
        )

    def finish(self, status: str = "completed", message: str | None = None) -> None:
        """Publish the final event; the topic takes no more after it. Nothing, if another run has the task."""
        self._note(message=message)
        run, self._run = self._run, ""

        def tell() -> None:
            with transaction.atomic():
                if run and not runs.give_back(run):
                    return _log_lost(self.topic)
                end(self.topic, status, self._said(status), run_id=self.task_id)
            return None

        _tell(tell, final=True)
        runs.keeper.drop(run)

    async def astart(self) -> None:
        """Like `start`, from a coroutine."""
        await _atell(self._atake)

    async def _atake(self) -> None:
        self._run = await in_thread(runs.take, self.topic)
        runs.keeper.keep(self._run)
        await apublish(self.topic, "task.started", self._said("running"), run_id=self.task_id)

    async def aupdate(
        self,
        done: int | None = None,
        total: int | None = None,
        *,
        step: str | None = None,
        message: str | None = None,
        unit: str | None = None,
    ) -> bool:
        """Like `update`, from a coroutine."""
        if self._outer is not None:
            return await self._outer.aupdate(done, total, step=step, message=message, unit=unit)
        is_new_step = self._note(done=done, total=total, step=step, message=message, unit=unit)
        if is_new_step:
            await asyncio.sleep(self._wait())
        return self._is_due(is_new_step) and await _atell(
            lambda: apublish(self.topic, "task.progress", **self._progress())
        )

    async def afinish(self, status: str = "completed", message: str | None = None) -> None:
        """Like `finish`, from a coroutine."""
        self._note(message=message)
        run, self._run = self._run, ""

        async def tell() -> None:
            if run and not await in_thread(runs.is_held, run):
                return _log_lost(self.topic)
            # In this order: a lease that is left over ends nothing that has ended.
            await aend(self.topic, status, self._said(status), run_id=self.task_id)
            await in_thread(runs.give_back, run)
            return None

        await _atell(tell, final=True)
        runs.keeper.drop(run)

    def retry(self, message: str, at: datetime | None = None) -> None:
        """Say that it failed and will be tried again, at the given time."""
        self._note(message=message)
        run, self._run = self._run, ""

        def tell() -> None:
            with transaction.atomic():
                runs.wait_until(run, at or timezone.now())
                publish(self.topic, "task.retry", self._said("retrying"), run_id=self.task_id)

        runs.keeper.drop(run)
        _tell(tell)

    def __enter__(self) -> Self:
        if not self._joins():
            self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not self._parts():
            return False
        self.finish(*_ending(error))
        return isinstance(error, Cancelled)

    async def __aenter__(self) -> Self:
        if not self._joins():
            await self.astart()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not self._parts():
            return False
        await asyncio.shield(self.afinish(*_ending(error)))
        return isinstance(error, Cancelled)

    def _joins(self) -> bool:
        """Enter; return whether it goes on with another one of its task."""
        self._outer = next((other for other in _open.get() if other.topic == self.topic), None)
        _open.set((*_open.get(), self))
        return self._outer is not None

    def _parts(self) -> bool:
        """Leave; return whether the end is this one's to tell."""
        _open.set(tuple(other for other in _open.get() if other is not self))
        outer, self._outer = self._outer, None
        return outer is None

    def _take(self, tell: Callable[[], Any]) -> None:
        """Take the lease and say so, both or neither."""

        def both() -> None:
            with transaction.atomic():
                self._run = runs.take(self.topic)
                tell()

        if _tell(both):
            runs.keeper.keep(self._run)
        else:
            self._run = ""

    def _note(self, **fields: Any) -> bool:
        """Take the fields that were given; return whether they begin a new step."""
        former = self._state["step"]
        self._state.update({name: value for name, value in fields.items() if value is not None})
        return bool(self._state["step"] != former)

    def _wait(self) -> float:
        return max(0.0, self._told_at + self._interval - self._clock())

    def _said(self, status: str) -> dict[str, Any]:
        return {"status": status, **self._state}

    def _progress(self) -> dict[str, Any]:
        return {"data": self._said("running"), "run_id": self.task_id, "tags": {"key": KEY}}

    def _is_due(self, is_new_step: bool) -> bool:
        if self._run and runs.keeper.has_lost(self._run):
            return False
        now = self._clock()
        if now - self._told_at < self._interval and not is_new_step:
            return False
        self._told_at = now
        return True


class BusTask(Task):  # type: ignore[misc]
    """Base class of Celery tasks whose progress is on the topic `task:<id of the task>`.

    `@app.task(bind=True, base=BusTask)`; in the task, `self.progress(done, total)`.
    """

    abstract = True
    _open: dict[str, Progress]

    def progress(self, done: int | None = None, total: int | None = None, **fields: Any) -> bool:
        """Say how far this run is: see `Progress.update`."""
        return self._progress_of(self.request.id).update(done, total, **fields)

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """Say that it has begun, the first time. A `Progress` of the same task inside goes on with this."""
        progress = self._progress_of(task_id)
        progress._joins()
        if self.request.retries:
            progress.resume()
        else:
            progress.start()

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        """Say that it is done."""
        self._close(task_id, "completed")

    def on_failure(self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Say that it failed, and how."""
        self._close(task_id, *_ending(exc))

    def on_retry(self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Say that it will be tried again."""
        progress = self._progress_of(task_id)
        progress._parts()
        del self._open[task_id]
        progress.retry(_words(exc), _moment_of(einfo))

    def _progress_of(self, task_id: str) -> Progress:
        runs: dict[str, Progress] = self.__dict__.setdefault("_open", {})
        return runs.setdefault(task_id, Progress(task_id))

    def _close(self, task_id: str, status: str, message: str | None = None) -> None:
        progress = self._progress_of(task_id)
        progress._parts()
        del self._open[task_id]
        progress.finish(status, message)


@task_revoked.connect
def _on_revoked(sender: Any = None, request: Any = None, expired: bool = False, **_: Any) -> None:
    """A task that was taken back, or came too late, ends as cancelled; its worker is dead or never had it."""
    if isinstance(sender, BusTask) and request is not None:
        progress = Progress(request.id)
        _tell(lambda: runs.forget(progress.topic), final=True)
        progress.finish("cancelled", "expired" if expired else "revoked")


def _moment_of(einfo: Any) -> datetime | None:
    """Return when Celery will try again, from the Retry that it raised."""
    raised = getattr(einfo, "exception", None)
    when = getattr(getattr(raised, "exc", raised), "when", None)
    if isinstance(when, datetime):
        return when if timezone.is_aware(when) else timezone.make_aware(when)
    return None if when is None else timezone.now() + timedelta(seconds=float(when))


def _ending(error: BaseException | None) -> tuple[str, str | None]:
    if error is None:
        return "completed", None
    if isinstance(error, (Cancelled, asyncio.CancelledError, KeyboardInterrupt, Ignore, Retry)):
        return "cancelled", _words(error)
    return "failed", _words(error)


def _words(error: BaseException) -> str:
    """Return what a person is told of an error: its kind and words, no paths of a traceback."""
    return f"{type(error).__name__}: {error}"[:500]


def _tell(publication: Callable[[], Any], *, final: bool = False) -> bool:
    """Publish; of the end a few tries, for a card that never ends is worse than a late one."""
    try:
        for attempt in stamina.retry_context(on=_is_worth_retrying, attempts=5 if final else 1, timeout=10.0):
            with attempt:
                publication()
    except BusError as error:
        return _not_told(error, final=final)
    return True


async def _atell(publication: Callable[[], Awaitable[Any]], *, final: bool = False) -> bool:
    """Like `_tell`; a coroutine can afford more tries."""
    try:
        async for attempt in stamina.retry_context(on=_is_worth_retrying, attempts=5, timeout=10.0):
            with attempt:
                await publication()
    except BusError as error:
        return _not_told(error, final=final)
    return True


def _not_told(error: BusError, *, final: bool) -> bool:
    if isinstance(error, TopicEnded):
        logger.info("the task had ended already")
        return False
    RETRIES_FAILED.inc(final and error.retryable)
    logger.warning("the progress of a task was not told: %s", error)
    return False


def _log_lost(topic: str) -> None:
    logger.warning("%s is another run's by now, or was given up; its end is not told again", topic)


def _is_worth_retrying(error: Exception) -> bool:
    return isinstance(error, BusError) and error.retryable
