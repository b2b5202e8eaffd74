"""The verbs on what comes in: `uploads list`, `terminate`, `expire`, and `stage` for a file of this host."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from django.db.models import Q

from cleanup import operations
from cleanup.conf import conf
from cleanup.management.output import Answer, size, table
from cleanup.management.verbs import Options, actor
from cleanup.models import Upload
from cleanup.operations import OperationRefused
from cleanup.staging import limits, uploads
from cleanup.staging.content import Incoming, stage_stream
from cleanup.staging.finishing import OPEN_STATES
from cleanup.stores.sql import database_now


def uploads_list(options: Options) -> Answer:
    chosen = Q(state=options["state"]) if options["state"] else Q()
    rows = Upload.objects.filter(chosen).select_related("area").order_by("-created_at", "id")
    found = [_data(row) for row in rows[: options["limit"]]]
    lines = table(
        [
            [one["id"], one["area"], one["name"], one["state"], f"{one['offset']} of {one['size']}",
             one["uploader"], one["detail"]]
            for one in found
        ],
        header=["ID", "AREA", "NAME", "STATE", "BYTES", "UPLOADER", "DETAIL"],
    )  # fmt: skip
    return Answer(data={"uploads": found}, lines=lines)


def uploads_terminate(options: Options) -> Answer:
    if options["dry_run"]:
        row = uploads.any_of(options["id"])
        return Answer(data={**_data(row), "dry_run": True}, lines=["Dry run.", _told(row)])
    row = uploads.give_up(options["id"], actor())
    return Answer(data=_data(row), lines=[_told(row)])


def _told(row: Upload) -> str:
    return f"Upload {row.pk} is {row.get_state_display()}: {row.offset} of {row.size} bytes had come."


def uploads_expire(options: Options) -> Answer:
    now = database_now()
    if options["dry_run"]:
        count = Upload.objects.filter(state__in=OPEN_STATES, expires_at__lte=now).count()
        return Answer(
            data={"expired": count, "dry_run": True}, lines=["Dry run.", f"{count} uploads are due."]
        )
    expired, recovered = uploads.expire(now), uploads.recover(now)
    done = {"expired": expired, "recovered": recovered}
    return Answer(data=done, lines=[f"{expired} uploads expired, {recovered} were finished or cleared away."])


def stage(options: Options) -> Answer:
    """Make a copy of a file a staged file of an area."""
    area, path = operations.find_area(options["area"]), Path(options["file"])
    incoming = Incoming(name=options["name"] or path.name, uploader=f"command:{actor().name}",
                        task_id=options["task_id"])  # fmt: skip
    with _reading(path) as file:
        if options["dry_run"]:
            return _would_stage(area.name, incoming, file.read(limits.HEAD), path.stat().st_size)
        row = stage_stream(area, file, incoming, actor())
    data = {"row": row.pk, "area": area.name, "path": row.path, "sha256": row.sha256, "bytes": row.size}
    return Answer(data=data, lines=[f"{row.name} is {row.path} in {area.name}, {size(row.size)}."])


def _reading(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise OperationRefused(f"{path} cannot be read: {error.strerror}") from error


def _would_stage(area: str, incoming: Incoming, head: bytes, count: int) -> Answer:
    limits.check_size(count, conf().upload_max_size)
    name = limits.safe_name(incoming.name)
    kind = limits.check_type(name, head, size=count, allowed=conf().upload_types)
    data = {"area": area, "name": name, "type": kind.content_type, "bytes": count, "dry_run": True}
    return Answer(data=data, lines=["Dry run.", f"{name} would be staged in {area}, {size(count)}."])


def _data(row: Upload) -> dict[str, object]:
    return {
        "id": str(row.pk), "area": row.area.name, "name": row.name, "state": row.state, "offset": row.offset,
        "size": row.size, "uploader": row.uploader, "detail": row.detail, "file": row.staged_file,
        "created_at": row.created_at.isoformat(), "expires_at": row.expires_at.isoformat(),
    }  # fmt: skip
