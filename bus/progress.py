"""A long job tells its topic `task:<id>` how far it is, and ends it.

`Progress` is a context manager, with or without `async`; `BusTask` does the same for Celery by itself.
Started, progress (at most ten a second), retry, and exactly one end: completed, failed or cancelled. A job
that is started again under its old id begins the topic anew. Telling never harms the job: what cannot be told
is logged.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

import stamina
from celery import Task
from celery.exceptions import Ignore, Retry
from celery.signals import task_revoked

from bus.protocol.errors import BusError, TopicEnded
from bus.publishing import aend, apublish, end, publish

logger = logging.getLogger(__name__)

#: No more than ten a second: nobody sees more, and every one of them is kept.
INTERVAL = timedelta(milliseconds=100)
#: In a full send queue only the newest event with this tag is kept.
KEY = "progress"


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

    def start(self) -> None:
        """Say that the task has begun."""
        _tell(lambda: publish(self.topic, "task.started", self._said("running"), run_id=self.task_id))

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
        is_new_step = self._note(done=done, total=total, step=step, message=message, unit=unit)
        if is_new_step:
            self._sleep(self._wait())
        return self._is_due(is_new_step) and _tell(
            lambda: publish(self.topic, "task.progress", **self._progress())
        )

    def finish(self, status: str = "completed", message: str | None = None) -> None:
        """Publish the final event; the topic takes no more after it."""
        self._note(message=message)
        _tell(lambda: end(self.topic, status, self._said(status), run_id=self.task_id), final=True)

    async def astart(self) -> None:
        """Like `start`, from a coroutine."""
        await _atell(lambda: apublish(self.topic, "task.started", self._said("running"), run_id=self.task_id))

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
        is_new_step = self._note(done=done, total=total, step=step, message=message, unit=unit)
        if is_new_step:
            await asyncio.sleep(self._wait())
        return self._is_due(is_new_step) and await _atell(
            lambda: apublish(self.topic, "task.progress", **self._progress())
        )

    async def afinish(self, status: str = "completed", message: str | None = None) -> None:
        """Like `finish`, from a coroutine."""
        self._note(message=message)
        await _atell(lambda: aend(self.topic, status, self._said(status), run_id=self.task_id))

    def retry(self, message: str) -> None:
        """Say that it failed and will be tried again."""
        self._note(message=message)
        _tell(lambda: publish(self.topic, "task.retry", self._said("retrying"), run_id=self.task_id))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.finish(*_ending(error))
        return isinstance(error, Cancelled)

    async def __aenter__(self) -> Self:
        await self.astart()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        await asyncio.shield(self.afinish(*_ending(error)))
        return isinstance(error, Cancelled)

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
        """Say that it has begun, the first time."""
        progress = self._progress_of(task_id)
        if not self.request.retries:
            progress.start()

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        """Say that it is done."""
        self._close(task_id, "completed")

    def on_failure(self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Say that it failed, and how."""
        self._close(task_id, *_ending(exc))

    def on_retry(self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Say that it will be tried again."""
        self._progress_of(task_id).retry(_words(exc))

    def _progress_of(self, task_id: str) -> Progress:
        runs: dict[str, Progress] = self.__dict__.setdefault("_open", {})
        return runs.setdefault(task_id, Progress(task_id))

    def _close(self, task_id: str, status: str, message: str | None = None) -> None:
        progress = self._progress_of(task_id)
        del self._open[task_id]
        progress.finish(status, message)


@task_revoked.connect
def _on_revoked(sender: Any = None, request: Any = None, **_: Any) -> None:
    """A task that was taken back ends as cancelled."""
    if isinstance(sender, BusTask) and request is not None:
        Progress(request.id).finish("cancelled", "revoked")


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
    except TopicEnded:
        logger.info("the task had ended already")
        return False
    except BusError as error:
        logger.warning("the progress of a task was not told: %s", error)
        return False
    return True


async def _atell(publication: Callable[[], Any]) -> bool:
    try:
        async for attempt in stamina.retry_context(on=_is_worth_retrying, attempts=5, timeout=10.0):
            with attempt:
                await publication()
    except TopicEnded:
        logger.info("the task had ended already")
        return False
    except BusError as error:
        logger.warning("the progress of a task was not told: %s", error)
        return False
    return True


def _is_worth_retrying(error: Exception) -> bool:
    return isinstance(error, BusError) and error.retryable
