"""Those whom a policy asks before a file may go: the concrete verifiers, and how a policy names them.

A policy lists specifications: a kind, and options where the defaults do not do. As text that is `redis_task`
or `redis_task:key=job:{task_id},value=done`; as JSON `{"kind": "redis_task", "value": "done"}`. `canonical`
makes the one spelling that a policy version keeps, and refuses what could not be obeyed, so that a mistake
shows when a policy is saved and not when its files are due. Every verifier answers PASS, FAIL or UNKNOWN
(`cleanup.engine.verify`), and any doubt is UNKNOWN: a server that is down is never read as a task that is
done.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cleanup.conf import conf
from cleanup.engine.errors import PolicyInvalid
from cleanup.engine.verify import Answer, Checked, Finding, Subject, Verifier, ask
from cleanup.models import StagedFile

logger = logging.getLogger(__name__)

#: Where a path names its task unless the policy says otherwise: `task-<id>`, as a name or the start of one.
#: A name that follows no convention gives no id, and so no PASS.
TASK_ID_PATTERN = r"(?:^|/)task-(?P<task_id>[A-Za-z0-9_-]+)"

#: Keys asked for in one command: large enough that round trips do not count, small enough to hold up nobody.
_MGET = 500

_EVIDENCE = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of verifier: its options with their defaults, what they must satisfy, and how it is made."""

    options: Mapping[str, str]
    check: Callable[[Mapping[str, str]], str | None]
    make: Callable[[str, Mapping[str, str]], Verifier]


class RedisTask:
    """Asks Redis or Valkey whether the task that made a file is complete.

    The key is a template with `{task_id}`; its value, or the field `field` of the hash under it, must equal
    `value`. An absent key is FAIL: nobody says that the task is complete. A key of another type, an error, a
    late or a short answer is UNKNOWN; after one of these the rest of the batch is not asked for any more.
    """

    def __init__(self, name: str, options: Mapping[str, str]) -> None:
        self.name = name
        self.key, self.value, self.field = options["key"], options["value"], options["field"]

    def verify(self, items: Sequence[Subject]) -> list[Finding]:
        """Answer about each of `items`."""
        findings = [Finding(Answer.UNKNOWN, "no task id")] * len(items)
        asked = [(index, self._key(item.task_id)) for index, item in enumerate(items) if item.task_id]
        client = _client()
        try:
            for start in range(0, len(asked), _MGET):
                part = asked[start : start + _MGET]
                try:
                    answers = self._fetch(client, [key for _, key in part])
                except (redis.RedisError, OSError) as error:
                    return _unknown_from(findings, asked[start:], error)
                for (index, key), answer in zip(part, answers, strict=True):
                    findings[index] = self._judge(key, answer)
        finally:
            client.close()
        return findings

    def _key(self, task_id: str | None) -> str:
        return self.key.replace("{task_id}", task_id or "")

    def _fetch(self, client: redis.Redis, keys: list[str]) -> list[Any]:
        if not self.field:
            answers = client.mget(keys)
        else:
            pipeline = client.pipeline(transaction=False)
            for key in keys:
                pipeline.hget(key, self.field)
            answers = pipeline.execute(raise_on_error=False)
        if not isinstance(answers, list) or len(answers) != len(keys):
            raise redis.ResponseError("another number of answers than questions")
        return answers

    def _judge(self, key: str, answer: object) -> Finding:
        if answer is None:
            return Finding(Answer.FAIL, f"{key} is absent")
        if not isinstance(answer, bytes):
            return Finding(Answer.UNKNOWN, f"{key}: {answer}"[:_EVIDENCE])
        text = answer.decode("utf-8", "backslashreplace")
        shown = f"{key} = {ascii(text)[1:-1]}"[:_EVIDENCE]
        return Finding(Answer.PASS if text == self.value else Answer.FAIL, shown)


def _client() -> redis.Redis:
    """A connection for one batch: it waits as long as the settings say, and tries once."""
    timeout = conf().verifier_timeout.total_seconds()
    return redis.Redis.from_url(
        conf().redis_url,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        retry=Retry(NoBackoff(), 0),
        single_connection_client=False,
    )


def _unknown_from(
    findings: list[Finding], unanswered: Sequence[tuple[int, str]], error: Exception
) -> list[Finding]:
    evidence = f"{type(error).__name__}: {error}"[:_EVIDENCE]
    logger.warning("redis_task could not ask about %s files: %s", len(unanswered), evidence)
    for index, _ in unanswered:
        findings[index] = Finding(Answer.UNKNOWN, evidence)
    return findings


def _check_redis_task(options: Mapping[str, str]) -> str | None:
    if "{task_id}" not in options["key"]:
        return "the key has no {task_id}, so every file would be judged by the same one"
    if not options["value"]:
        return "the value is empty"
    return None


#: Every kind that a policy may name.
KINDS: dict[str, Kind] = {
    "redis_task": Kind(
        options={"key": "task:{task_id}:status", "value": "Complete", "field": ""},
        check=_check_redis_task,
        make=RedisTask,
    ),
}

Specification = str | Mapping[str, Any]


def parse(specification: Specification) -> tuple[str, dict[str, str]]:
    """Read a specification as its kind and all of its options.

    Raises:
        PolicyInvalid: an unknown kind or option, or one that could not be obeyed.
    """
    kind, given = _parts(specification)
    known = KINDS.get(kind)
    if known is None:
        raise PolicyInvalid(f"unknown verifier {kind!r}; there are: {', '.join(KINDS)}")
    for name, value in given.items():
        if name not in known.options:
            raise PolicyInvalid(f"verifier {kind} has no option {name!r}; it has: {', '.join(known.options)}")
        if not isinstance(value, str) or "," in value or not value.isprintable():
            raise PolicyInvalid(f"verifier {kind}: {name} must be printable text without a comma")
    options = {**known.options, **given}
    if complaint := known.check(options):
        raise PolicyInvalid(f"verifier {kind}: {complaint}")
    return kind, options


def _parts(specification: Specification) -> tuple[str, dict[str, Any]]:
    if isinstance(specification, Mapping):
        given = dict(specification)
        return str(given.pop("kind", "")), given
    if not isinstance(specification, str):
        raise PolicyInvalid(f"a verifier is named by text or by an object, not by {specification!r}")
    kind, _, rest = specification.partition(":")
    given = {}
    for option in filter(None, rest.split(",")):
        name, equals, value = option.partition("=")
        if not equals:
            raise PolicyInvalid(f"verifier {kind}: {option!r} is not NAME=VALUE")
        given[name.strip()] = value
    return kind.strip(), given


def canonical(specification: Specification) -> str:
    """The one spelling of a specification: the kind, and those options that differ from the defaults.

    Raises:
        PolicyInvalid: see `parse`.
    """
    kind, options = parse(specification)
    differing = [f"{name}={value}" for name, value in options.items() if value != KINDS[kind].options[name]]
    return f"{kind}:{','.join(differing)}" if differing else kind


def build(specifications: Iterable[Specification]) -> list[Verifier]:
    """Make the verifiers that a policy names.

    Raises:
        PolicyInvalid: see `parse`.
    """
    made: dict[str, Verifier] = {}
    for specification in specifications:
        kind, options = parse(specification)
        name = canonical(specification)
        made[name] = KINDS[kind].make(name, options)
    return list(made.values())


class Asker(Protocol):
    """What the engine asks with: all verifiers of a policy about one batch."""

    def __call__(self, subjects: Sequence[Subject]) -> list[Checked]: ...


def asker(specifications: Iterable[Specification]) -> Asker:
    """Return what asks all of a policy's verifiers; a task that the path does not name is looked up.

    Raises:
        PolicyInvalid: see `parse`.
    """
    verifiers = build(specifications)

    def ask_all(subjects: Sequence[Subject]) -> list[Checked]:
        return ask(verifiers, with_task_ids(subjects), on_error=_log)

    return ask_all


def _log(verifier: Verifier, error: Exception) -> None:
    logger.error("verifier %s failed: %s: %s", verifier.name, type(error).__name__, error)


def with_task_ids(subjects: Sequence[Subject]) -> list[Subject]:
    """Fill in the task ids that the registry of staged files knows."""
    wanted = {subject.path: subject.area for subject in subjects if subject.task_id is None}
    if not wanted:
        return list(subjects)
    known: dict[tuple[str | None, str], str] = {}
    paths = list(wanted)
    for start in range(0, len(paths), _MGET):
        rows = StagedFile.objects.filter(path__in=paths[start : start + _MGET]).exclude(task_id="")
        for area, path, task_id in rows.values_list("area__uuid", "path", "task_id"):
            known[str(area), path] = task_id
    return [
        subject
        if subject.task_id is not None
        else msgspec.structs.replace(subject, task_id=known.get((subject.area, subject.path)))
        for subject in subjects
    ]
