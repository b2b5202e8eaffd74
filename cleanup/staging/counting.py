"""What each process counts of the uploads that it took, for its own page of metrics."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from prometheus_client import Counter

from cleanup.staging.errors import StagingError

P = ParamSpec("P")
T = TypeVar("T")

BYTES = Counter("staging_upload_bytes", "Bytes of uploads that were stored and acknowledged.")
REFUSALS = Counter("staging_upload_refusals", "Uploads and parts that were refused, by error code.", ["code"])


def counted(verb: Callable[P, T]) -> Callable[P, T]:
    """Count what `verb` refuses."""

    @wraps(verb)
    def counting(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return verb(*args, **kwargs)
        except StagingError as error:
            REFUSALS.labels(error.code).inc()
            raise

    return counting
