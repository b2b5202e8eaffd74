"""A plan: exactly which files a run may touch, frozen before anything is touched.

Candidates are judged, held back, verified, and what remains is listed by path with the identity that each
file had (device, inode, size, time). The plan has a digest over all of it: who approves the digest approves
these files, and a stored plan that was changed no longer has it. Execution takes a plan and never a rule.
Brakes are the limits above which a plan waits for a person. Nothing here touches the disk or reads the clock.
"""

import hashlib
import statistics
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

import msgspec

from cleanup.engine.audit import canonical
from cleanup.engine.errors import PlanStale, PlanTampered
from cleanup.engine.names import escape, patterns
from cleanup.engine.policy import Candidate, Policy, Stat, Verdict, judge, policy_to_json, task_id_of
from cleanup.engine.reasons import Reason
from cleanup.engine.verify import Answer, Checked, Subject

#: A plan is for today: files, and people's minds, change.
PLAN_LIFE = timedelta(hours=24)

#: Subjects asked at a time: one round trip of a verifier for many files, and little to repeat when it fails.
VERIFY_BATCH = 1000

#: From this many runs on, the median of a policy's history is taken for its habit.
MIN_HISTORY = 5
MAX_HISTORY = 30

_DOMAIN = b"xnai.plan.v1\0"


class Member(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One file and the identity it had when it was planned."""

    path: bytes  #: relative to the area
    device: int
    inode: int
    size: int
    mtime_ns: int


class PlanItem(msgspec.Struct, frozen=True, array_like=True):
    """One thing to trash: a file, or files that go together."""

    path: bytes  #: of the first member
    members: tuple[Member, ...]  #: in the order of going
    bytes: int  #: of all members
    reason: Reason
    detail: str = ""
    task_id: str | None = None
    evidence: dict[str, str] = {}  #: the verifiers' answers, by name

    @property
    def shown(self) -> str:
        """The path as text."""
        return escape(self.path)


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody's wish that matching files stay."""

    pattern: str
    until: datetime | None = None  #: None: until it is released


class BrakeHit(msgspec.Struct, frozen=True, kw_only=True):
    """A limit that a plan exceeds."""

    brake: str  #: max_files, max_bytes, max_percent, max_median_factor or max_unknown_percent
    limit: int
    value: int


class Plan(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """What a run may do, and what it left alone and why."""

    policy_json: str
    area_uuid: str
    created_at: datetime
    expires_at: datetime
    items: tuple[PlanItem, ...]  #: sorted by path
    kept: dict[str, int] = {}  #: how many candidates stay, by reason
    errors: tuple[tuple[str, str], ...] = ()  #: (escaped path, sentence) of what could not be judged well
    scanned: int = 0  #: candidates looked at

    @property
    def files(self) -> int:
        """How many files the plan moves; a result with its metadata counts two."""
        return sum(len(item.members) for item in self.items)

    @property
    def bytes(self) -> int:
        """How many bytes they hold."""
        return sum(item.bytes for item in self.items)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the header and every item, in canonical JSON lines."""
        return digest(self)

    def check(self, *, now: datetime, digest: str | None = None) -> None:
        """Refuse a plan that is too old, or not the approved one.

        Raises:
            PlanStale: `now` is past `expires_at`.
            PlanTampered: the digest is not `digest`.
        """
        if now > self.expires_at:
            raise PlanStale(f"the plan expired at {self.expires_at.isoformat()}")
        if digest is not None and digest != self.digest:
            raise PlanTampered("the plan is not the one that was approved: its digest differs")


def _header(plan: Plan) -> dict[str, Any]:
    return {
        "policy": plan.policy_json,
        "area": plan.area_uuid,
        "created_at": plan.created_at.astimezone(UTC).isoformat(),
        "expires_at": plan.expires_at.astimezone(UTC).isoformat(),
        "items": len(plan.items),
    }


def _line(item: PlanItem) -> dict[str, Any]:
    members = [[escape(m.path), m.device, m.inode, m.size, m.mtime_ns] for m in item.members]
    return {
        "path": escape(item.path),
        "members": members,
        "bytes": item.bytes,
        "reason": str(item.reason),
        "detail": item.detail,
        "task_id": item.task_id,
        "evidence": item.evidence,
    }


def digest(plan: Plan) -> str:
    """Return the digest of `plan` as hex."""
    running = hashlib.sha256(_DOMAIN)
    running.update(canonical(_header(plan)) + b"\n")
    for item in plan.items:
        running.update(canonical(_line(item)) + b"\n")
    return running.hexdigest()


_item_encoder = msgspec.msgpack.Encoder()
_items_decoder = msgspec.msgpack.Decoder(tuple[PlanItem, ...])


def encode_items(items: Sequence[PlanItem]) -> bytes:
    """Pack a batch of items for storage: MessagePack under zlib."""
    return zlib.compress(_item_encoder.encode(list(items)), 1)


def decode_items(data: bytes) -> tuple[PlanItem, ...]:
    """Unpack what `encode_items` packed.

    Raises:
        PlanTampered: not such a batch.
    """
    try:
        return _items_decoder.decode(zlib.decompress(data))
    except (zlib.error, msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise PlanTampered(f"a stored batch of the plan cannot be read: {error}") from error


Ask = Callable[[Sequence[Subject]], Sequence[Checked]]
OnKept = Callable[[bytes, Reason, str], None]


class _Draft:
    """A plan in the making: what goes on one side, what stays and why on the other."""

    def __init__(self, policy: Policy, now: datetime, holds: Sequence[Hold], on_kept: OnKept | None) -> None:
        self.policy, self.now = policy, now
        self.holds = patterns(
            tuple(hold.pattern for hold in holds if hold.until is None or hold.until > now), subtree=True
        )
        self.on_kept = on_kept
        self.kept: Counter[str] = Counter()
        self.errors: list[tuple[str, str]] = []
        self.scanned = 0

    def keep(self, path: bytes, reason: Reason, detail: str) -> None:
        self.kept[str(reason)] += 1
        if reason is Reason.BAD_COMPANION:
            self.errors.append((escape(path), detail))
        if self.on_kept is not None:
            self.on_kept(path, reason, detail)

    def judged(self, candidates: Iterable[Candidate]) -> Iterator[PlanItem]:
        """Yield an item for each candidate that may go as far as rule and holds are concerned."""
        for candidate in candidates:
            self.scanned += 1
            verdict = judge(self.policy, candidate, now=self.now)
            hold = self._hold(verdict) if verdict.action == "trash" else None
            if verdict.action == "keep":
                self.keep(candidate.path, verdict.reason, verdict.detail)
            elif hold is not None:
                self.keep(candidate.path, Reason.HELD, hold)
            else:
                yield _item(self.policy, candidate, verdict)

    def _hold(self, verdict: Verdict) -> str | None:
        matches = (self.holds.match(escape(path)) for path in verdict.members)
        return next((match for match in matches if match is not None), None)

    def verified(self, items: Iterable[PlanItem], ask: Ask, area_uuid: str) -> Iterator[PlanItem]:
        """Yield the items about which every verifier says PASS, with the evidence."""
        for batch in _batches(items, VERIFY_BATCH):
            subjects = [_subject(item, area_uuid) for item in batch]
            for item, checked in zip(batch, ask(subjects), strict=True):
                if checked.answer is Answer.PASS:
                    yield msgspec.structs.replace(item, evidence=dict(checked.evidence))
                else:
                    self.keep(item.path, _unpassed(checked.answer), _evidence_text(checked))


def _unpassed(answer: Answer) -> Reason:
    return Reason.VERIFIER_FAILED if answer is Answer.FAIL else Reason.UNVERIFIED


def _evidence_text(checked: Checked) -> str:
    return "; ".join(f"{name} {text}" for name, text in checked.evidence.items())


def _subject(item: PlanItem, area_uuid: str) -> Subject:
    return Subject(path=item.shown, task_id=item.task_id, size=item.bytes, area=area_uuid)


def _batches(items: Iterable[PlanItem], size: int) -> Iterator[list[PlanItem]]:
    batch: list[PlanItem] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _item(policy: Policy, candidate: Candidate, verdict: Verdict) -> PlanItem:
    stats = {candidate.path: candidate.stat}
    if candidate.companion is not None:
        stats[candidate.companion.path] = candidate.companion.stat
    members = tuple(_member(path, stats[path]) for path in verdict.members)
    return PlanItem(
        candidate.path,
        members,
        sum(member.size for member in members),
        verdict.reason,
        verdict.detail,
        task_id_of(policy, candidate.path),
    )


def _member(path: bytes, stat: Stat) -> Member:
    return Member(path, stat.device, stat.inode, stat.size, stat.mtime_ns)


def build_plan(
    policy: Policy,
    candidates: Iterable[Candidate],
    *,
    now: datetime,
    area_uuid: str,
    holds: Sequence[Hold] = (),
    ask: Ask | None = None,
    on_kept: OnKept | None = None,
    expires_in: timedelta = PLAN_LIFE,
) -> Plan:
    """Judge every candidate and list what may go, sorted by path.

    Args:
        policy: validated.
        candidates: read once; only what may go is kept in memory.
        now: with a zone; the plan's time, and the time against which everything is judged.
        area_uuid: the area that the candidates are from.
        holds: what must stay although a rule would let it go.
        ask: asks the policy's verifiers about a batch (`cleanup.engine.verify.ask`). Required if it names
            any.
        on_kept: told of each candidate that stays.
        expires_in: how long the plan may be executed.

    Raises:
        PolicyInvalid: the policy cannot be obeyed.
        ValueError: the policy names verifiers and `ask` is missing.
    """
    policy.validate()
    if policy.verifiers and ask is None:
        raise ValueError(f"policy {policy.name!r} names verifiers, and nobody asks them")
    draft = _Draft(policy, now, holds, on_kept)
    items = draft.judged(candidates)
    if ask is not None and policy.verifiers:
        items = draft.verified(items, ask, area_uuid)
    # By path: files of one directory stand together (the mover opens it once), and a name that the walk met
    # twice because somebody renamed directories meanwhile is planned once.
    by_path = {item.path: item for item in items}
    return Plan(
        policy_json=policy_to_json(policy),
        area_uuid=area_uuid,
        created_at=now,
        expires_at=now + expires_in,
        items=tuple(by_path[path] for path in sorted(by_path)),
        kept=dict(sorted(draft.kept.items())),
        errors=tuple(draft.errors),
        scanned=draft.scanned,
    )


def brakes(plan: Plan, policy: Policy, *, total_files: int, history: Sequence[int] = ()) -> list[BrakeHit]:
    """List the limits of `policy` that `plan` exceeds; an empty list means it may run by itself.

    Args:
        plan: to be measured.
        policy: whose limits count; None in a limit switches it off.
        total_files: regular files in the area, of which `max_percent` is a share.
        history: files trashed by earlier runs of this policy, oldest first.
    """
    unknown = plan.kept.get(Reason.UNVERIFIED, 0)
    asked = len(plan.items) + unknown + plan.kept.get(Reason.VERIFIER_FAILED, 0)
    measured = [
        ("max_files", policy.max_files, plan.files),
        ("max_bytes", policy.max_bytes, plan.bytes),
        ("max_percent", policy.max_percent, _percent(plan.files, total_files)),
        ("max_median_factor", policy.max_median_factor, _times_median(plan.files, history)),
        ("max_unknown_percent", policy.max_unknown_percent, _percent(unknown, asked)),
    ]
    return [
        BrakeHit(brake=brake, limit=limit, value=value)
        for brake, limit, value in measured
        if limit is not None and value > limit
    ]


def _percent(part: int, whole: int) -> int:
    """Return the share in percent, rounded up, so that a hair above a limit is above it."""
    return -(-100 * part // whole) if whole > 0 else (100 if part else 0)


def _times_median(files: int, history: Sequence[int]) -> int:
    """Return how many times the median of the last runs `files` is, rounded up; 0 without enough history."""
    recent = history[-MAX_HISTORY:]
    if len(recent) < MIN_HISTORY:
        return 0
    # A policy that usually finds nothing has a median of 0; compare with one file then.
    return -int(-files // max(statistics.median(recent), 1))
