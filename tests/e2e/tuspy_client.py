"""Drives the stock `tuspy` by JSON lines: one command a line on stdin, answers and events on stdout.

The same commands and events as node/tus.mjs, so that one test speaks to both SDKs. Each upload runs in a
thread of its own.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from typing import Any

from tusclient.client import TusClient
from tusclient.exceptions import TusCommunicationError, TusUploadFailed


def say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def nothing(**_: Any) -> dict[str, Any]:
    return {}


def upload(
    *,
    endpoint: str,
    path: str,
    part: int,
    headers: dict[str, str],
    metadata: dict[str, str],
    url: str | None = None,
    retries: list[int] | None = None,
    summed: bool = False,
    stop: int | None = None,
) -> dict[str, Any]:
    """Upload a file, to its end or to `stop`: a new upload at `endpoint`, or the one at `url`."""
    waits = retries or []
    uploader = TusClient(endpoint, headers=headers).uploader(
        path,
        url=url,
        chunk_size=part,
        metadata=metadata,
        retries=len(waits),
        retry_delay=waits[0] / 1_000 if waits else 0,
        upload_checksum=summed,
    )
    if not url:
        uploader.set_url(uploader.create_url())
    say({"event": "created", "url": uploader.url})
    uploader.stop_at = stop or uploader.get_file_size()
    while uploader.offset < uploader.stop_at:
        uploader.upload_chunk()
        say({"event": "part", "accepted": uploader.offset})
    return {"url": uploader.url}


def answer(number: int, command: Callable[..., dict[str, Any]], words: dict[str, Any]) -> None:
    try:
        say({"id": number, "result": command(**words)})
    except (TusCommunicationError, TusUploadFailed) as error:
        say({"id": number, "error": {"code": error.status_code or 0, "message": str(error)}})


COMMANDS = {"nothing": nothing, "upload": upload}

for line in sys.stdin:
    told = json.loads(line)
    number, name = told.pop("id"), told.pop("do")
    threading.Thread(target=answer, args=(number, COMMANDS[name], told), daemon=True).start()
