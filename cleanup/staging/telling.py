"""What the pipeline tells others of a task: its status in Valkey, its points in Qdrant.

These are the two that the verifiers `redis_task` and `qdrant_points` ask before a file may go. Telling the
same again changes nothing: keys are set, and a point has an id that its file and its number make. Whatever
cannot be told now is `NotTold`, and is told later.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import closing
from datetime import timedelta
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cleanup.conf import conf
from cleanup.models import PipelineJob, StagedFile
from cleanup.staging.distillation import DIMENSIONS, Chunk, vector
from cleanup.staging.errors import StagingError

#: Words of the status, as the verifier expects them.
RUNNING, COMPLETE, FAILED = "Running", "Complete", "Failed"
#: One try: the job as a whole is tried again.
_TIMEOUT = timedelta(seconds=10)
#: Points written by one request.
_BATCH = 128
_FOLDER = "file://"
#: In which the ids of our points are unique.
_SPACE = uuid.UUID("6b0c2a64-4f0e-4c1f-9d3f-0f6f4c8f5a11")


class NotTold(StagingError):
    """Valkey or Qdrant cannot be reached, or refuses; later it may go."""

    code = "not_told"
    retryable = True


def tell_status(task_id: str, status: str) -> None:
    """Write the status of a task where the verifier `redis_task` looks for it.

    Raises:
        NotTold: it was not written.
    """
    key = conf().pipeline_status_key.replace("{task_id}", task_id)
    seconds = _TIMEOUT.total_seconds()
    try:
        with redis.Redis.from_url(
            conf().redis_url, socket_timeout=seconds, socket_connect_timeout=seconds,
            retry=Retry(NoBackoff(), 0),
        ) as client:  # fmt: skip
            client.set(key, status, ex=conf().pipeline_status_life)
    except (redis.RedisError, OSError) as error:
        raise NotTold(f"the status of {task_id} was not written: {type(error).__name__}") from error


def tell_points(job: PipelineJob, distilled: StagedFile, chunks: Sequence[Chunk]) -> int | None:
    """Write a point for each chunk into the index; None if there is no index.

    Raises:
        NotTold: not all of them were written.
    """
    if not conf().qdrant_url:
        return None
    try:
        with closing(_client()) as client:
            _ensure_collection(client, conf().pipeline_collection)
            for part in _parts(job, distilled, chunks):
                client.upsert(conf().pipeline_collection, points=part, wait=True)
    # The client has errors of its own, of httpx, of pydantic, and plain RuntimeErrors (a folder in use).
    except Exception as error:
        raise NotTold(f"the index was not written: {type(error).__name__}: {error}"[:500]) from error
    return len(chunks)


def _client() -> Any:
    from qdrant_client import QdrantClient

    url = conf().qdrant_url
    if url.startswith(_FOLDER):
        return QdrantClient(path=url.removeprefix(_FOLDER))
    return QdrantClient(
        url=url, api_key=conf().qdrant_api_key or None, timeout=int(_TIMEOUT.total_seconds()),
        check_compatibility=False,
    )  # fmt: skip


def _ensure_collection(client: Any, name: str) -> None:
    from qdrant_client import models

    if client.collection_exists(name):
        return
    shape = models.VectorParams(size=DIMENSIONS, distance=models.Distance.COSINE)
    try:
        client.create_collection(name, vectors_config=shape)
    except Exception:
        if not client.collection_exists(name):  # another worker was first
            raise


def _parts(job: PipelineJob, distilled: StagedFile, chunks: Sequence[Chunk]) -> Any:
    from qdrant_client import models

    for start in range(0, len(chunks), _BATCH):
        yield [
            models.PointStruct(
                id=str(uuid.uuid5(_SPACE, f"{job.raw}/{chunk.chunk}")),
                vector=vector(chunk.text),
                payload={
                    "task_id": job.task_id, "file": distilled.pk, "sha256": distilled.sha256,
                    "name": job.name, "chunk": chunk.chunk, "title": chunk.title, "words": chunk.words,
                    "text": chunk.text,
                },
            )
            for chunk in chunks[start : start + _BATCH]
        ]  # fmt: skip
