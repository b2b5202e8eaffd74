"""Asks Redis or Valkey whether the task that made a file is complete.

The key is a template; its value, or the field `field` of the hash under it, must equal `value`, or with
`exists=yes` merely be there. An absent key is FAIL: nobody says that the task is complete. A key of another
type, an error, a late or a short answer is UNKNOWN; after one of these the rest of the batch is not asked
for any more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cleanup.conf import conf
from cleanup.engine.verify import Deadline, Finding, Subject
from cleanup.verifiers.bounded import BoundedSocket, patience
from cleanup.verifiers.kinds import CANARIES, Kind, Option, Options, Surroundings
from cleanup.verifiers.questions import answer_all, says, unknown
from cleanup.verifiers.templates import Template, placeholders_of

#: Keys asked for in one command: large enough that round trips do not count, small enough to hold up nobody.
_PART = 500

#: Received about one batch: a thousand states with room to spare.
_MAX_RECEIVED = 4 * 2**20

_YES_NO = ("no", "yes")


class RedisTask:
    """A `Verifier` over keys of Redis or Valkey."""

    def __init__(self, name: str, options: Options, _: Surroundings) -> None:
        """Keep the options; a connection is made for each batch."""
        self.name = name
        self.key = Template(options["key"])
        self.value, self.field = options["value"], options["field"]
        self.exists = options["exists"] == "yes"

    def verify(self, items: Sequence[Subject], deadline: Deadline) -> list[Finding]:
        """Answer about each of `items`."""
        return answer_all(items, self._key, lambda keys: self._ask(keys, deadline))

    def _key(self, subject: Subject) -> str | Finding:
        return self.key.fill(subject) or unknown(self.key.lacking(subject))

    def _ask(self, keys: Sequence[str], deadline: Deadline) -> Iterator[Finding]:
        if not keys:
            return
        client = _client(deadline)
        try:
            for start in range(0, len(keys), _PART):
                part = keys[start : start + _PART]
                yield from map(self._judge, part, self._fetch(client, part))
        finally:
            client.close()
            client.connection_pool.disconnect()

    def _fetch(self, client: redis.Redis, keys: Sequence[str]) -> list[Any]:
        if not self.field and not self.exists:
            answers = client.mget(list(keys))
        else:
            pipeline = client.pipeline(transaction=False)
            for key in keys:
                self._queue(pipeline, key)
            answers = pipeline.execute(raise_on_error=False)
        if not isinstance(answers, list) or len(answers) != len(keys):
            raise redis.ResponseError("another number of answers than questions")
        return answers

    def _queue(self, pipeline: Any, key: str) -> None:
        if self.exists and self.field:
            pipeline.hexists(key, self.field)
        elif self.exists:
            pipeline.exists(key)
        else:
            pipeline.hget(key, self.field)

    def _judge(self, key: str, answer: object) -> Finding:
        if self.exists:
            return self._judge_existence(key, answer)
        if answer is None:
            return says(False, f"{key} is absent")
        if not isinstance(answer, bytes):
            return unknown(f"{key}: {answer}")
        text = answer.decode("utf-8", "backslashreplace")
        return says(text == self.value, f"{key} = {text}")

    def _judge_existence(self, key: str, answer: object) -> Finding:
        if not isinstance(answer, int) or answer not in (0, 1):
            return unknown(f"{key}: {answer}")
        return says(bool(answer), f"{key} exists" if answer else f"{key} is absent")


def _client(deadline: Deadline) -> redis.Redis:
    """A connection for one batch: it tries once, waits no longer than the batch, and takes so much."""
    pool = redis.ConnectionPool.from_url(
        conf().redis_url,
        socket_timeout=patience(deadline),
        socket_connect_timeout=patience(deadline),
        retry=Retry(NoBackoff(), 0),
        protocol=2,  # which every server speaks, without a greeting
    )
    plain = pool.connection_class

    def connect(connection: Any) -> Any:
        return BoundedSocket(plain._connect(connection), deadline, _MAX_RECEIVED)

    # The way of redis-py to have other sockets: TCP, TLS and unix differ in this one method.
    pool.connection_class = type("BoundedConnection", (plain,), {"_connect": connect})
    return redis.Redis(connection_pool=pool)


def _check(options: Options) -> str | None:
    if "{task_id}" not in options["key"]:
        return "the key has no {task_id}, so every file would be judged by the same one"
    if options["exists"] not in _YES_NO:
        return "exists is yes or no"
    if not options["value"]:
        return "the value is empty"
    return None


KIND = Kind(
    summary="the state of the task in Redis or Valkey is the expected one",
    options={
        "key": Option(default="task:{task_id}:status", meaning="template of the key"),
        "value": Option(default="Complete", meaning="what the key must hold"),
        "field": Option(meaning="field of the hash under the key; empty = the key holds the value itself"),
        "exists": Option(default="no", meaning="yes = key or field need only be there, whatever the value"),
        **CANARIES,
    },
    check=_check,
    make=RedisTask,
    placeholders=placeholders_of("key"),
)
