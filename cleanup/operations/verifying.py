"""The verifiers that policies use: which there are, how they were found the last times, and a test by hand.

A test asks the canaries as a run does. Without canaries it asks about something that does not exist, which
must not pass; that shows that somebody answers, not that he answers rightly. It changes nothing but the row
that remembers it, asks for no longer than `PATIENCE`, and never counts as an answer about a file.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import uuid4

from cleanup.conf import conf
from cleanup.engine.area import AreaHandle
from cleanup.engine.errors import AreaRefused, EngineError, PolicyInvalid
from cleanup.engine.names import escape
from cleanup.engine.policy import task_id_of
from cleanup.engine.verify import Answer, Checked, Deadline, Subject, Verifier, ask
from cleanup.models import RetentionPolicy, StagingArea, VerifierCheck, VerifierTotal
from cleanup.operations.areas import opened
from cleanup.operations.outcomes import NotFound, OperationRefused
from cleanup.operations.policies import engine_policy
from cleanup.stores import Actor
from cleanup.verifiers import KINDS, Surroundings, build, canonical, describe, parse, with_registry
from cleanup.verifiers.asking import kind_and_canaries, wrong_canary
from cleanup.verifiers.checks import key_of, note

#: For one test: a person waits for it.
PATIENCE = timedelta(seconds=10)
#: Checks of one verifier that are shown.
SHOWN = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class InUse:
    """A verifier that at least one policy asks."""

    #: In its one spelling; as somebody wrote it if it could not be obeyed.
    name: str
    kind: str = ""
    #: All of them, with those that have their defaults.
    options: dict[str, str] = field(default_factory=dict)
    policies: Sequence[RetentionPolicy]
    #: Why it could not be obeyed.
    complaint: str = ""

    @property
    def canaries(self) -> dict[str, str]:
        """Those that it has: option -> id of the task."""
        return {name: self.options[name] for name in _CANARIES if self.options.get(name)}

    @property
    def may_have_canaries(self) -> bool:
        """Whether its questions are about tasks; those about files beside a file have none."""
        return bool(self.kind) and _CANARIES[0] in KINDS[self.kind].options


@dataclass(frozen=True, slots=True, kw_only=True)
class Tested:
    """What a test by hand came to."""

    check: VerifierCheck
    #: What it said about the file or task that was asked about, if one was.
    answer: str = ""


_CANARIES = ("canary_present", "canary_absent")


def verifiers_in_use() -> list[InUse]:
    """Every distinct verifier that policies name, in the order of their names."""
    users: dict[str, list[RetentionPolicy]] = {}
    for policy in RetentionPolicy.objects.select_related("area").order_by("name"):
        for name in dict.fromkeys(map(describe, policy.verifiers)):
            users.setdefault(name, []).append(policy)
    return [_in_use(name, policies) for name, policies in sorted(users.items())]


def _in_use(name: str, policies: Sequence[RetentionPolicy]) -> InUse:
    try:
        kind, options = parse(name)
    except PolicyInvalid as error:
        return InUse(name=name, policies=policies, complaint=str(error))
    return InUse(name=name, kind=kind, options=options, policies=policies)


def last_checks(name: str, limit: int = SHOWN) -> list[VerifierCheck]:
    """The last checks of a verifier, the newest first."""
    return list(VerifierCheck.objects.filter(verifier=key_of(name))[:limit])


def failed_checks() -> list[VerifierCheck]:
    """The last check of each verifier that a policy uses, where it was not sound."""
    last = (VerifierCheck.objects.filter(verifier=key_of(used.name)).first() for used in verifiers_in_use())
    return [check for check in last if check is not None and not check.sound]


def answers_of(used: InUse) -> dict[str, int]:
    """How often it passed, failed and could not tell, in all runs of its policies.

    Two verifiers of one kind in the same policy are counted together.
    """
    labels = [f"{policy.name}/{used.kind}"[:200] for policy in used.policies]
    counts: dict[str, int] = {}
    for answer, count in VerifierTotal.objects.filter(verifier__in=labels).values_list("answer", "count"):
        counts[answer] = counts.get(answer, 0) + count
    return counts


def check_verifier(name: str, actor: Actor, *, task_id: str = "", path: str = "") -> Tested:
    """Test a verifier that a policy uses, and remember how it was.

    Args:
        name: of `verifiers_in_use`, in any spelling.
        actor: who wants to know.
        task_id: ask about this task too.
        path: ask about this file too, absolute and in an area whose policy asks the verifier.

    Raises:
        NotFound: no policy asks it.
        PolicyInvalid: it could not be obeyed.
        OperationRefused: no area of its policies holds the path, or none has an area and it looks at files.
    """
    used = _find(name)
    _, canaries = kind_and_canaries(used.name)
    began = time.monotonic()
    with ExitStack() as stack:
        asked = _Question(used=used, path=path, task_id=task_id).enter(stack)
        asking = _Asking(used.name, asked.handle)
        wrong = asked.obstacle
        if not wrong and canaries:
            wrong = wrong_canary(used.name, canaries, asking)
        elif not wrong:
            wrong = _wrong_about_nothing(asking, asked.area)
        answer = asking([asked.subject])[0].evidence[used.name] if asked.subject else ""
    says = wrong or _right(used, len(canaries))
    seconds = time.monotonic() - began
    check = note(used.name, sound=not wrong, detail=says, seconds=seconds, asked_by=actor.name)
    return Tested(check=check, answer=answer)


def check_verifiers(actor: Actor) -> list[tuple[str, Tested | EngineError]]:
    """Test every verifier that a policy uses; each by name, with what it came to or why it was not tested."""
    found: list[tuple[str, Tested | EngineError]] = []
    for used in verifiers_in_use():
        try:
            found.append((used.name, check_verifier(used.name, actor)))
        except EngineError as refusal:
            found.append((used.name, refusal))
    return found


def _find(name: str) -> InUse:
    wanted = canonical(name)
    for used in verifiers_in_use():
        if used.name == wanted:
            return used
    raise NotFound(f"no policy asks the verifier {wanted}")


def _right(used: InUse, canaries: int) -> str:
    if canaries:
        return f"{canaries} {'canary' if canaries == 1 else 'canaries'} answered as they must"
    if not used.may_have_canaries:
        return "it can look into its area, and lets nothing pass that is not there"
    return (
        f"{used.kind} answers, and lets nothing pass that does not exist; without canaries more is not known"
    )


class _Asking:
    """Asks one verifier, all in all for no longer than a person waits."""

    def __init__(self, name: str, area: AreaHandle | None) -> None:
        self.name = name
        self.verifiers = build([name], Surroundings(area=area))
        self.deadline = Deadline(min(PATIENCE, conf().verifier_batch_timeout))
        #: What went wrong in the last batch.
        self.error: Exception | None = None

    def __call__(self, subjects: Sequence[Subject]) -> list[Checked]:
        self.error = None
        return ask(self.verifiers, subjects, on_error=self._note, deadline=self.deadline)

    def _note(self, _: Verifier, error: Exception) -> None:
        self.error = error


def _wrong_about_nothing(asking: _Asking, area: StagingArea | None) -> str:
    """Ask about what does not exist, under names as people, databases and counters give them."""
    names = (f"no-such-task-{secrets.token_hex(6)}", str(uuid4()), str(secrets.randbelow(2**31)))
    checked = asking([_nothing(name, area) for name in names])
    if asking.error is not None:
        return f"it cannot be asked: {type(asking.error).__name__}: {asking.error}"
    for name, one in zip(names, checked, strict=True):
        if one.answer is Answer.PASS:
            return f"it passes what does not exist: {name}: {one.evidence[asking.name]}"
    if not any(one.answer is Answer.FAIL for one in checked):
        return f"it cannot tell: {checked[0].evidence[asking.name]}"
    return ""


def _nothing(name: str, area: StagingArea | None) -> Subject:
    return Subject(
        path=f"{name}.nothing",
        task_id=name,
        area=str(area.uuid if area else uuid4()),
        sha256=secrets.token_hex(32),
        mtime_ns=time.time_ns(),
    )


@dataclass(slots=True, kw_only=True)
class _Question:
    """What a person asks about beside the canaries, and the open area that it takes."""

    used: InUse
    path: str
    task_id: str
    area: StagingArea | None = None
    handle: AreaHandle | None = None
    subject: Subject | None = None
    #: Why a verifier that looks at files has none to look at.
    obstacle: str = ""

    def enter(self, stack: ExitStack) -> _Question:
        """Open the area and find the subject."""
        if self.task_id:
            self.subject = Subject(path="", task_id=self.task_id)
        policy = self._policy()
        if policy is not None and policy.area is not None:
            self.area = policy.area
            self._open(stack, policy.area, needed=bool(self.path) or not self.used.may_have_canaries)
        elif not self.used.may_have_canaries:
            raise OperationRefused("none of its policies has an area, so there is no file to look beside")
        if self.path and policy is not None and self.area is not None:
            self.subject = self._file(policy, self.area)
        return self

    def _policy(self) -> RetentionPolicy | None:
        """The policy whose area holds the path, the innermost; without a path any that has one."""
        rooted = [policy for policy in self.used.policies if policy.area is not None]
        if not self.path:
            return next(iter(rooted), None)
        place = os.path.normpath(self.path)
        holding = [policy for policy in rooted if place.startswith(policy.tree().path.rstrip("/") + "/")]
        if not holding:
            raise OperationRefused(f"no area whose policy asks it holds {self.path!r}; paths are absolute")
        return max(holding, key=lambda policy: len(policy.tree().path))

    def _open(self, stack: ExitStack, area: StagingArea, *, needed: bool) -> None:
        try:
            self.handle = stack.enter_context(opened(area))
        except AreaRefused as refusal:
            if needed:
                self.obstacle = f"the area {area.name} cannot be opened: {refusal}"

    def _file(self, policy: RetentionPolicy, area: StagingArea) -> Subject:
        place = os.path.normpath(self.path)
        below = os.fsencode(os.path.relpath(place, area.path))
        try:
            found = os.lstat(place)
        except OSError as error:
            raise OperationRefused(f"{self.path!r}: {error.strerror}") from error
        subject = Subject(
            path=escape(below),
            task_id=self.task_id or task_id_of(engine_policy(policy), below),
            size=found.st_size,
            area=str(area.uuid),
            mtime_ns=found.st_mtime_ns,
        )
        return with_registry([subject], digests="{sha256}" in self.used.name)[0]
