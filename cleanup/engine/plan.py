"""A plan: exactly which files a run may touch, frozen before anything is touched.

Candidates are judged, held back, verified, and what remains is listed with the identity that each file had
(device, inode, size, time): by path, or handed over batch by batch to whoever stores it. The plan has a
digest over all of it: who approves the digest approves these files, and a stored plan that was changed no
longer has it. Execution takes a plan and never a rule.
Brakes are the limits above which a plan waits for a person. Nothing here touches the disk or reads the clock.
"""

import hashlib
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property

import msgspec

from cleanup.engine.audit import canonical
from cleanup.engine.bundles import OnKept
from cleanup.engine.errors import PlanStale, PlanTampered
from cleanup.engine.groups import Goal, select
from cleanup.engine.holds import Hold
from cleanup.engine.items import Member, PlanItem
from cleanup.engine.names import escape
from cleanup.engine.packing import Counting, Tally, decode_items, encode_items
from cleanup.engine.policy import Candidate, Policy, policy_to_json
from cleanup.engine.reasons import Reason
from cleanup.engine.sieve import Sieve
from cleanup.engine.verify import Answer, Checked, Subject

#: A plan is for today: files, and people's minds, change.
PLAN_LIFE = timedelta(hours=24)

#: Subjects asked at a time: one round trip of a verifier for many files, and little to repeat when it fails.
VERIFY_BATCH = 1000

#: From this many runs on, the median of a policy's history is taken for its habit.
MIN_HISTORY = 5
MAX_HISTORY = 30

_DOMAIN = b"xnai.plan.v2\0"

#: Items counted at a time.
_COUNTED = 1000

__all__ = [
    "PLAN_LIFE",
    "Ask",
    "BrakeHit",
    "Hold",
    "Member",
    "OnKept",
    "Plan",
    "PlanItem",
    "Store",
    "Tally",
    "brakes",
    "build_plan",
    "decode_items",
    "digest",
    "encode_items",
]


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
    items: tuple[PlanItem, ...]  #: sorted by path; empty if they were handed over to be stored
    kept: dict[str, int] = {}  #: how many candidates stay, by reason
    kept_bytes: dict[str, int] = {}  #: and how many bytes they hold
    errors: tuple[tuple[str, str], ...] = ()  #: (escaped path, sentence) of what could not be judged well
    scanned: int = 0  #: candidates looked at
    stored: Tally | None = None  #: of items that were handed over

    @cached_property
    def tally(self) -> Tally:
        """What the items come to, those that were handed over included."""
        return self.stored or _count(self.items)

    @property
    def files(self) -> int:
        """How many files the plan moves; a result with its metadata counts two."""
        return self.tally.files

    @property
    def bytes(self) -> int:
        """How many bytes they hold."""
        return self.tally.bytes

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the header and every item."""
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


def _count(items: Sequence[PlanItem]) -> Tally:
    counting = Counting()
    for start in range(0, len(items), _COUNTED):
        counting.add(items[start : start + _COUNTED])
    return counting.tally()


def digest(plan: Plan) -> str:
    """Return the digest of `plan` as hex: over its header in canonical JSON, the items' own digest in it."""
    header = {
        "policy": plan.policy_json,
        "area": plan.area_uuid,
        "created_at": plan.created_at.astimezone(UTC).isoformat(),
        "expires_at": plan.expires_at.astimezone(UTC).isoformat(),
        **msgspec.structs.asdict(plan.tally),
    }
    return hashlib.sha256(_DOMAIN + canonical(header)).hexdigest()


Ask = Callable[[Sequence[Subject]], Sequence[Checked]]
#: Stores items while they are found, and says what they come to.
Store = Callable[[Iterable[PlanItem]], Tally]


class _Draft:
    """A plan in the making: what goes on one side, what stays and why on the other."""

    def __init__(self, policy: Policy, on_kept: OnKept | None) -> None:
        self.policy = policy
        self.on_kept = on_kept
        self.kept: Counter[str] = Counter()
        self.kept_bytes: Counter[str] = Counter()
        self.errors: list[tuple[str, str]] = []
        self.scanned = 0

    def keep(self, path: bytes, reason: Reason, detail: str, size: int) -> None:
        self.kept[str(reason)] += 1
        self.kept_bytes[str(reason)] += size
        if reason is Reason.BAD_COMPANION:
            self.errors.append((escape(path), detail))
        if self.on_kept is not None:
            self.on_kept(path, reason, detail, size)

    def count(self, sieve: Sieve) -> None:
        """Add what the walk has counted without showing it."""
        if sieve.files:
            self.scanned += sieve.files
            self.kept[str(Reason.YOUNGER_THAN_AGE)] += sieve.files
            self.kept_bytes[str(Reason.YOUNGER_THAN_AGE)] += sieve.bytes

    def counted(self, candidates: Iterable[Candidate]) -> Iterator[Candidate]:
        """Count the regular files; a walk for bundles also shows what else it met."""
        for candidate in candidates:
            if candidate.stat.kind == "file":
                self.scanned += 1
            yield candidate

    def verified(self, items: Iterable[PlanItem], ask: Ask, goal: Goal, area: str) -> Iterator[PlanItem]:
        """Yield the items about which every verifier says PASS, with the evidence, as far as `goal`."""
        for batch in _batches(items, VERIFY_BATCH):
            wanted = [] if goal.reached else batch
            for item, checked in zip(wanted, ask_about(ask, wanted, area), strict=True):
                if checked.answer is not Answer.PASS:
                    self.keep_item(item, _unpassed(checked.answer), _evidence_text(checked))
                elif goal.reached:
                    self.keep_item(item, Reason.NOT_NEEDED, "")
                else:
                    goal.take(item.bytes)
                    yield msgspec.structs.replace(item, evidence=dict(checked.evidence))
            for item in batch[len(wanted) :]:
                self.keep_item(item, Reason.NOT_NEEDED, "")

    def keep_item(self, item: PlanItem, reason: Reason, detail: str) -> None:
        self.keep(item.path, reason, detail, item.bytes)


def _unpassed(answer: Answer) -> Reason:
    return Reason.VERIFIER_FAILED if answer is Answer.FAIL else Reason.UNVERIFIED


def _evidence_text(checked: Checked) -> str:
    return "; ".join(f"{name} {text}" for name, text in checked.evidence.items())


def ask_about(ask: Ask, items: Sequence[PlanItem], area_uuid: str) -> list[Checked]:
    """Ask about items and return one answer for each: of a bundle every member must pass.

    A result is asked about together with its metadata, as one.
    """
    return ask_together(ask, [_subjects(item, area_uuid) for item in items])


def ask_together(ask: Ask, bundles: Sequence[Sequence[Subject]]) -> list[Checked]:
    """Ask about all of `bundles` at once and return for each the answer about its worst member."""
    subjects = [subject for bundle in bundles for subject in bundle]
    answers = iter(ask(subjects) if subjects else ())
    return [_worst([next(answers) for _ in bundle]) for bundle in bundles]


def _subjects(item: PlanItem, area: str) -> list[Subject]:
    if item.reason is Reason.EXPIRED or len(item.members) == 1:
        newest = max(member.mtime_ns for member in item.members)
        return [Subject(path=item.shown, task_id=item.task_id, size=item.bytes, area=area, mtime_ns=newest)]
    return [
        Subject(path=escape(one.path), task_id=item.task_id, size=one.size, area=area, mtime_ns=one.mtime_ns)
        for one in item.members
    ]


def _worst(checked: Sequence[Checked]) -> Checked:
    """Return the answer that decides: FAIL before UNKNOWN before PASS, of several the first."""
    for answer in (Answer.FAIL, Answer.UNKNOWN):
        found = next((one for one in checked if one.answer is answer), None)
        if found is not None:
            return found
    return checked[0]


def _batches(items: Iterable[PlanItem], size: int) -> Iterator[list[PlanItem]]:
    batch: list[PlanItem] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


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
    store: Store | None = None,
    needed: int = 0,
    sieve: Sieve | None = None,
) -> Plan:
    """Judge every candidate and list what may go.

    Args:
        policy: validated.
        candidates: read once; what may go is kept in memory, unless there is a `store`.
        now: with a zone; the plan's time, and the time against which everything is judged.
        area_uuid: the area that the candidates are from.
        holds: what must stay although a rule would let it go.
        ask: asks the policy's verifiers about a batch (`cleanup.engine.verify.ask`). Required if it names
            any.
        on_kept: told of each candidate that stays: path, reason, detail, bytes.
        expires_in: how long the plan may be executed.
        store: is handed what may go, in the order of the candidates and while they are read. That is
            directory by directory, as the mover wants them; a name that the walk met twice comes twice, and
            by its second turn the mover finds it gone. Without it the plan holds the items, sorted by path.
        needed: bytes that the rule ``watermark`` has to free.
        sieve: what the walk counted with, for the files that are no candidates for that.

    Raises:
        PolicyInvalid: the policy cannot be obeyed.
        ValueError: the policy names verifiers and `ask` is missing.
    """
    policy.validate()
    if policy.verifiers and ask is None:
        raise ValueError(f"policy {policy.name!r} names verifiers, and nobody asks them")
    draft = _Draft(policy, on_kept)
    items = select(policy, draft.counted(candidates), now=now, holds=holds, on_kept=draft.keep, needed=needed)
    if ask is not None and policy.verifiers:
        items = draft.verified(items, ask, Goal(policy, needed), area_uuid)
    listed = _sorted(items) if store is None else ()
    stored = None if store is None else store(items)
    if sieve is not None:
        draft.count(sieve)
    return Plan(
        policy_json=policy_to_json(policy),
        area_uuid=area_uuid,
        created_at=now,
        expires_at=now + expires_in,
        items=listed,
        kept=dict(sorted(draft.kept.items())),
        kept_bytes=dict(sorted(draft.kept_bytes.items())),
        errors=tuple(draft.errors),
        scanned=draft.scanned,
        stored=stored,
    )


def _sorted(items: Iterable[PlanItem]) -> tuple[PlanItem, ...]:
    """Sort by path; a name that the walk met twice, since directories were renamed meanwhile, counts once."""
    by_path = {item.path: item for item in items}
    return tuple(by_path[path] for path in sorted(by_path))


def brakes(plan: Plan, policy: Policy, *, total_files: int, history: Sequence[int] = ()) -> list[BrakeHit]:
    """List the limits of `policy` that `plan` exceeds; an empty list means it may run by itself.

    Args:
        plan: to be measured.
        policy: whose limits count; None in a limit switches it off.
        total_files: regular files in the area, of which `max_percent` is a share.
        history: files trashed by earlier runs of this policy, oldest first.
    """
    unknown = plan.kept.get(Reason.UNVERIFIED, 0)
    asked = plan.tally.items + unknown + plan.kept.get(Reason.VERIFIER_FAILED, 0)
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
