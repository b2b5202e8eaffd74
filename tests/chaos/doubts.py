"""For every kind of verifier: how to make it pass, and every way of leaving it in doubt.

Each `Stage` sets up what its kind asks, so that all files pass; its `faults` then break that, one at a time.
P22 runs the matrix; a kind without a stage, or a stage without one of the faults that its class requires,
fails there.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, Self

from django.db import connection

from cleanup import operations
from cleanup.models import StagedFile, StagingArea
from tests.chaos.liars import (
    Answer,
    Liar,
    any_bytes,
    breaks_off,
    floods,
    http_questions,
    is_late,
    keeps_silent,
    redis_questions,
    says,
    trickles,
)
from tests.retention import ANNA, Staging

GARBAGE = random.Random(7).randbytes(4_096)

#: Ways in which whatever is asked over a network can leave doubt.
NETWORK = {
    "error", "refused", "silent", "trickle", "late", "empty", "half", "wrong schema", "wrong type", "huge",
    "garbage",
}  # fmt: skip

#: Ways in which a file can.
FILES = {"link", "special", "empty", "half", "wrong schema", "wrong type", "huge", "garbage"}


def _unmount(area: StagingArea, folder: Path) -> None:
    """Leave what an unmounted disk leaves: an empty directory."""
    Path(area.path).rename(folder / "away")
    Path(area.path).mkdir()


def _replace(area: StagingArea, folder: Path) -> None:
    Path(area.path).rename(folder / "away")
    Path(area.path).symlink_to(folder / "away")


#: Ways in which an area can be another place than it was.
AREAS: dict[str, Callable[[StagingArea, Path], object]] = {
    "area missing": lambda area, folder: Path(area.path).rename(folder / "away"),
    "area empty": _unmount,
    "area replaced by a link": _replace,
    "other device": lambda area, folder: StagingArea.objects.filter(pk=area.pk).update(device="1"),
    "marker gone": lambda area, folder: (Path(area.path) / ".staging-area").unlink(),
}


class Stage:
    """What a kind of verifier asks, healthy until a fault is chosen."""

    kind: ClassVar[str]
    #: The faults that this class of kinds cannot do without.
    required: ClassVar[set[str]]
    #: What breaks the stage, by name.
    FAULTS: ClassVar[Mapping[str, Callable[[Any], object]]]
    #: How a policy names the verifier.
    specification: str
    #: Whether it can pass at all.
    passes: ClassVar[bool] = True
    #: The patience that a fault needs, where it is not the usual one.
    timeouts: ClassVar[Mapping[str, timedelta]] = {}

    def __init__(self, staging: Staging, folder: Path) -> None:
        self.staging, self.folder = staging, folder
        #: Settings of CLEANUP that point to this stage.
        self.settings: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def add(self, name: str) -> None:
        """Make true for one file what its verifier will ask."""


class _Served(Stage):
    """A stage whose server is a liar."""

    required: ClassVar[set[str]] = NETWORK
    liar: Liar

    def __enter__(self) -> Self:
        self.liar.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.liar.__exit__()


def _lies(answers: Mapping[str, Answer]) -> dict[str, Callable[[Any], object]]:
    """Faults of a server: what it answers instead, or that it is gone."""

    def tell(answer: Answer) -> Callable[[Any], object]:
        return lambda stage: setattr(stage.liar, "answer", answer)

    return {"refused": lambda stage: stage.liar.refuse()} | {n: tell(one) for n, one in answers.items()}


def bulk(*values: bytes) -> bytes:
    """An array of strings in Redis' protocol."""
    return b"*%d\r\n" % len(values) + b"".join(b"$%d\r\n%s\r\n" % (len(one), one) for one in values)


#: What two files are asked about with, and the right answer.
_TWO = bulk(b"Complete", b"Complete")
_NESTED = b"*1\r\n$8\r\nComplete\r\n"


class RedisStage(_Served):
    kind = "redis_task"
    specification = "redis_task"
    FAULTS = _lies(
        {
            "error": says(b"-LOADING not yet\r\n"),
            "silent": keeps_silent,
            "trickle": trickles(b"*2\r\n$900000\r\n"),
            "late": is_late(_TWO, 5),
            "empty": says(b"*0\r\n"),
            "hung up": breaks_off(),
            "half": breaks_off(_TWO[:-6]),
            "fewer": says(bulk(b"Complete")),
            "more": says(bulk(*[b"Complete"] * 9)),
            "wrong schema": says(b"*2\r\n" + _NESTED + _NESTED),
            "wrong type": says(b"*2\r\n:1\r\n:1\r\n"),
            "no array": says(b"$8\r\nComplete\r\n"),
            "nested without end": floods(b"*1\r\n" * 20_000),
            "huge": floods(b"*2\r\n$900000000\r\n"),
            "garbage": says(GARBAGE),
        }
    )

    def __init__(self, staging: Staging, folder: Path) -> None:
        super().__init__(staging, folder)
        self.liar = Liar(redis_questions)
        self.settings = {"REDIS_URL": f"redis://127.0.0.1:{self.liar.port}/0"}
        self.liar.answer = says(_TWO)


def reply(body: bytes, *, status: str = "200 OK", headers: str = "") -> bytes:
    """A whole HTTP answer."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}{headers}\r\n".encode() + body


_OK = b"HTTP/1.1 200 OK\r\n"


def _http_lies(right: bytes, bodies: Mapping[str, bytes]) -> dict[str, Callable[[Any], object]]:
    """Faults of a server that should answer `right`; `bodies` are wrong in one thing each."""
    chunk = b"%x\r\n%s" % (len(right), right)
    return _lies(
        {
            "error": says(reply(right, status="500 Internal Server Error")),
            "denied": says(reply(right, status="403 Forbidden")),
            "silent": keeps_silent,
            "trickle": trickles(_OK + b"X: "),
            "trickling body": trickles(_OK + b"Content-Length: 60000\r\n\r\n{"),
            "late": is_late(reply(right), 5),
            "empty": says(reply(b"")),
            "hung up": breaks_off(),
            "half": breaks_off(reply(right)[:-4]),
            "half of the chunks": breaks_off(_OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunk),
            "no length": breaks_off(_OK + b"\r\n" + right),
            "redirect": says(reply(b"", status="302 Found", headers="Location: /elsewhere\r\n")),
            "no JSON": says(reply(b"<html>done</html>")),
            "huge": floods(_OK + b"Content-Length: 900000000\r\n\r\n"),
            "huge headers": floods(_OK + b"X: "),
            "garbage": says(GARBAGE),
            "garbage body": says(reply(GARBAGE)),
            "deep": says(reply(b"[" * 60_000)),
            **{name: says(reply(body)) for name, body in bodies.items()},
        }
    )


class HttpStage(_Served):
    kind = "http"
    FAULTS = _http_lies(
        b'{"state": "done"}',
        {
            "wrong schema": b'{"status": "done"}',
            "wrong type": b'{"state": ["done"]}',
            "null": b'{"state": null}',
            "twice": b'{"state": "running", "state": "done"}',
        },
    )

    def __init__(self, staging: Staging, folder: Path) -> None:
        super().__init__(staging, folder)
        self.liar = Liar(http_questions)
        self.settings = {"VERIFIER_HOSTS": [f"127.0.0.1:{self.liar.port}"]}
        self.liar.answer = says(reply(b'{"state": "done"}'))
        base = f"http://127.0.0.1:{self.liar.port}"
        self.specification = f"http:url={base}/tasks/{{task_id}},at=state,equals=done"


class TlsStage(_Served):
    """The same kind over https: whoever answers there has no certificate, or speaks no TLS at all."""

    kind = "http"
    required: ClassVar[set[str]] = {"tls garbage", "refused", "silent", "trickle"}
    passes = False
    FAULTS = _lies(
        {
            "tls garbage": says(GARBAGE),
            "no tls": says(reply(b"{}")),
            "silent": keeps_silent,
            "trickle": trickles(b"\x16\x03\x03\x40\x00"),
        }
    )

    def __init__(self, staging: Staging, folder: Path) -> None:
        super().__init__(staging, folder)
        self.liar = Liar(any_bytes)
        self.settings = {"VERIFIER_HOSTS": [f"127.0.0.1:{self.liar.port}"]}
        self.specification = f"http:url=https://127.0.0.1:{self.liar.port}/tasks/{{task_id}}"


def counted(count: Any, status: Any = "ok") -> bytes:
    """Qdrant's answer to how many points there are."""
    return json.dumps({"result": {"count": count}, "status": status, "time": 0.001}).encode()


class QdrantStage(_Served):
    kind = "qdrant_points"
    specification = "qdrant_points:collection=chunks"
    FAULTS = _http_lies(
        counted(1),
        {
            "wrong schema": b'{"result": true, "status": "ok"}',
            "wrong type": counted("3"),
            "truth value": counted(True),
            "negative": counted(-1),
            "status of an error": counted(1, {"error": "no"}),
        },
    ) | _lies({"no collection": says(reply(b'{"status": {"error": "no"}}', status="404 Not Found"))})

    def __init__(self, staging: Staging, folder: Path) -> None:
        super().__init__(staging, folder)
        self.liar = Liar(http_questions)
        self.settings = {"QDRANT_URL": f"http://127.0.0.1:{self.liar.port}"}
        self.liar.answer = says(reply(counted(1)))


class RecordStage(Stage):
    kind = "record"
    required: ClassVar[set[str]] = {"error", "late", "huge"}
    #: Looked up by a column without an index, so that there is something to interrupt.
    specification = "record:model=cleanup.StagedFile,field=uploader,check=size,equals=1"
    FAULTS: ClassVar = {
        "error": lambda stage: stage.rename_column(),
        "late": lambda stage: stage.slow_down(),
        "huge": lambda stage: stage.multiply(),
    }
    timeouts: ClassVar = {"late": timedelta(microseconds=1)}

    def add(self, name: str) -> None:
        self.insert(task_id_of(name), 1)

    def insert(self, uploader: str, count: int) -> None:
        rows = [
            StagedFile(area=self.staging.area, path=f"rows/{uploader}/{n}", uploader=uploader, size=1)
            for n in range(count)
        ]
        StagedFile.objects.bulk_create(rows, batch_size=1_000)

    def rename_column(self) -> None:
        _execute(f"ALTER TABLE {StagedFile._meta.db_table} RENAME COLUMN uploader TO somebody")

    def slow_down(self) -> None:
        """Make the answer take longer than a verifier may wait: many rows, or a view that sleeps."""
        if connection.vendor == "sqlite":
            self.insert("somebody", 8_000)
            return
        table = StagedFile._meta.db_table
        _execute(f"ALTER TABLE {table} RENAME TO {table}_away")
        _execute(f"CREATE VIEW {table} AS SELECT * FROM {table}_away WHERE pg_sleep(0.2)::text = ''")  # noqa: S608

    def multiply(self) -> None:
        for name in (*OLD, *NEW):
            self.insert(task_id_of(name), 201)


def _execute(statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


def _link(path: Path, folder: Path) -> None:
    path.rename(folder / path.name)
    path.symlink_to(folder / path.name)


def _each(change: Callable[[Path, Path], object]) -> Callable[[Any], object]:
    """Change every file that is asked."""
    return lambda stage: [change(path, stage.folder) for path in stage.files()]


#: Something else in the place of a file.
_INSTEAD = {
    "link": _each(_link),
    "special": _each(lambda path, _: (path.unlink(), os.mkfifo(path))),
    "directory": _each(lambda path, _: (path.unlink(), path.mkdir())),
}


def _contains(data: bytes) -> Callable[[Any], object]:
    return _each(lambda path, _: path.write_bytes(data))


class SidecarStage(Stage):
    kind = "sidecar"
    required: ClassVar[set[str]] = FILES
    specification = "sidecar:name={stem}.done,at=state,equals=done"
    FAULTS: ClassVar = {
        **_INSTEAD,
        "empty": _contains(b""),
        "half": _contains(b'{"state": "do'),
        "wrong schema": _contains(b'{"status": "done"}'),
        "wrong type": _contains(b'{"state": ["done"]}'),
        "twice": _contains(b'{"state": "running", "state": "done"}'),
        "huge": _contains(b'{"state": "done"}' + b" " * 100_000),
        "garbage": _contains(GARBAGE),
        "deep": _contains(b"[" * 60_000),
    }

    def files(self) -> list[Path]:
        return sorted(self.staging.root.glob("*.done"))

    def add(self, name: str) -> None:
        (self.staging.root / f"{Path(name).stem}.done").write_text('{"state": "done"}')


class SiblingStage(Stage):
    kind = "sibling"
    required: ClassVar[set[str]] = {"link", "special", *AREAS}
    specification = "sibling:area=distilled,suffix=.json"
    FAULTS: ClassVar = {
        **_INSTEAD,
        **{
            name: lambda stage, change=change: change(stage.area, stage.folder)
            for name, change in AREAS.items()
        },
    }

    def __enter__(self) -> Self:
        root = self.folder / "distilled"
        root.mkdir()
        self.area = operations.add_area("distilled", root, ANNA)
        return self

    def files(self) -> list[Path]:
        return sorted(Path(self.area.path).glob("*.json"))

    def add(self, name: str) -> None:
        (Path(self.area.path) / f"{Path(name).stem}.json").write_text("{}")


#: The files that are trashed while all is well, and those that come when it is not any more.
OLD = ("task-old-0.bin", "task-old-1.bin")
NEW = ("task-new-0.bin", "task-new-1.bin")


def task_id_of(name: str) -> str:
    """The task of a file `task-ID.bin`."""
    return Path(name).stem.removeprefix("task-")


STAGES: dict[str, type[Stage]] = {
    "redis_task": RedisStage,
    "http": HttpStage,
    "https": TlsStage,
    "qdrant_points": QdrantStage,
    "record": RecordStage,
    "sidecar": SidecarStage,
    "sibling": SiblingStage,
}
