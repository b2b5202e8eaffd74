"""The verb `files get`: the bytes of a staged file, as Download of the console gives them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import BinaryIO

from cleanup.management.output import Answer, size
from cleanup.management.verbs import Options
from cleanup.models import StagedFile
from cleanup.operations import NotFound, OperationRefused
from cleanup.staging.content import open_staged


def files_get(options: Options) -> Answer:
    """Copy a staged file out of its area; nothing is overwritten."""
    row = StagedFile.all_objects.select_related("area").filter(pk=options["key"]).first()
    if row is None:
        raise NotFound(f"there is no staged file {options['key']}")
    target: Path = options["to"]
    with _opened(row) as source:
        copied = _copy(source, target)
    data = {"key": row.pk, "name": row.name, "sha256": row.sha256, "bytes": copied, "file": str(target)}
    return Answer(data=data, lines=[f"{target}: 1 file, {size(copied)}."])


def _opened(row: StagedFile) -> BinaryIO:
    try:
        return open_staged(row)
    except FileNotFoundError as error:
        raise OperationRefused(f"{row.path} is not there any more: look for it in the trash") from error


def _copy(source: BinaryIO, target: Path) -> int:
    try:
        with target.open("xb") as copy:
            try:
                shutil.copyfileobj(source, copy)
            except OSError:
                target.unlink(missing_ok=True)
                raise
            return copy.tell()
    except FileExistsError as error:
        raise OperationRefused(f"{target} is there already, and nothing is overwritten") from error
    except OSError as error:
        raise OperationRefused(f"{target} cannot be written: {error.strerror}") from error
