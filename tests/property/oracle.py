"""What a policy leaves in an area, worked out a second time, from the rules as they are written down.

`World` is a small tree that was planted on disk, with every stamp chosen; `survivors` says which of its files
may be gone after a run. It knows nothing of how the engine judges: patterns are predicates of their own, and
the rules are told in the words of the documentation, over the whole tree at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from cleanup.engine.plan import Hold
from cleanup.engine.policy import Policy

Parts = tuple[bytes, ...]


@dataclass(slots=True, kw_only=True)
class Planted:
    """One thing of a tree: ``file``, ``dir``, ``link``, ``fifo`` or ``socket``."""

    path: bytes
    kind: str
    size: int = 0
    #: Nanoseconds by letter; of a directory those that it had when the tree was done.
    stamps: dict[str, int | None] = field(default_factory=dict)
    links: int = 1
    #: Of a result: ``expired``, ``waiting``, or anything else for a companion that does not say.
    companion: str = ""

    @property
    def parts(self) -> Parts:
        """The names on the way."""
        return tuple(self.path.split(b"/"))


@dataclass(slots=True, kw_only=True)
class World:
    """A planted tree, a policy and a moment."""

    things: dict[bytes, Planted]
    policy: Policy
    now_ns: int
    holds: list[Hold]
    held_now: list[bool]
    #: For the rule orphan: what nobody's row knows.
    orphans: set[bytes]
    #: For the rule watermark.
    needed: int


def _below(name: bytes) -> Callable[[Parts], bool]:
    return lambda parts: name in parts[:-1]


#: Pattern -> what it matches by itself, and what it covers when it protects whole directories.
PATTERNS: dict[str, tuple[Callable[[Parts], bool], Callable[[Parts], bool]]] = {
    "*.log": (
        lambda parts: parts[-1].endswith(b".log"),
        lambda parts: any(part.endswith(b".log") for part in parts),
    ),
    "keep": (lambda parts: parts[-1] == b"keep", lambda parts: b"keep" in parts),
    "keep/": (_below(b"keep"), _below(b"keep")),
    "job-1/**": (lambda p: p[0] == b"job-1" and len(p) > 1, lambda p: p[0] == b"job-1" and len(p) > 1),
    "/job-2": (lambda parts: parts == (b"job-2",), lambda parts: parts[0] == b"job-2"),
    "job-?/a*": (
        lambda p: len(p) == 2 and p[0].startswith(b"job-") and p[1].startswith(b"a"),
        lambda p: len(p) > 1 and p[0].startswith(b"job-") and p[1].startswith(b"a"),
    ),
    "re:[.]log$": (lambda p: p[-1].endswith(b".log"), lambda p: p[-1].endswith(b".log")),
    "re:^job": (lambda p: p[0].startswith(b"job"), lambda p: p[0].startswith(b"job")),
    "**": (lambda parts: True, lambda parts: True),
}

#: Regex with a key -> the key of a path, or None.
KEYS: dict[str, Callable[[bytes], bytes | None]] = {
    r"(?P<key>job-[0-9])": lambda path: next(
        (
            path[at : at + 5]
            for at in range(len(path))
            if path[at : at + 4] == b"job-" and _digit(path, at + 4)
        ),
        None,
    ),
    r"^(?:.*/)?([a-z])[^/]*$": lambda path: (
        path.rpartition(b"/")[2][:1] if path.rpartition(b"/")[2][:1].islower() else None
    ),
}


def _digit(path: bytes, at: int) -> bool:
    return path[at : at + 1].isdigit()


def survivors(world: World) -> set[bytes]:
    """Return the paths of everything that must still be there."""
    return set(world.things) - _Oracle(world).gone()


class _Oracle:
    def __init__(self, world: World) -> None:
        self.world, self.policy = world, world.policy
        self.seen = {path: thing for path, thing in world.things.items() if self.visible(thing)}
        self.files = {path: thing for path, thing in self.seen.items() if thing.kind == "file"}

    def gone(self) -> set[bytes]:
        """Files that go, by the policy's rule."""
        if self.policy.rule == "expires_at":
            return set(self.expired())
        bundles = list(self.bundles())
        rule = {
            "age": self.aged, "orphan": self.orphaned, "keep_newest": self.beyond, "watermark": self.first,
        }[self.policy.rule]  # fmt: skip
        return {path for bundle in rule(bundles) for path in bundle}

    # What there is

    def visible(self, thing: Planted) -> bool:
        """Nothing of the engine's own, and nothing of another area: the walk does not show what is in it."""
        parts = thing.parts
        for depth in range(1, len(parts)):
            if b"/".join((*parts[:depth], b".staging-area")) in self.world.things:
                return False
        return not any(part == b".trash" or part.startswith(b".staging-") for part in parts)

    def bundles(self) -> Iterator[list[bytes]]:
        """Yield what goes or stays as a whole, barred ones left out."""
        members: dict[bytes, list[bytes]] = defaultdict(list)
        barred: set[bytes] = set()
        for path, thing in self.world.things.items():
            key = self.bundle_of(path)
            if key is None:
                continue
            if path in self.files:
                members[key].append(path)
                if self.file_barred(thing):
                    barred.add(key)
            elif self.bars(thing):
                barred.add(key)
        yield from (sorted(paths) for key, paths in members.items() if key not in barred)

    def bundle_of(self, path: bytes) -> bytes | None:
        if self.policy.unit == "file":
            return path
        if self.policy.bundle_pattern is None:
            return path.split(b"/")[0]
        return KEYS[self.policy.bundle_pattern](path)

    def bars(self, thing: Planted) -> bool:
        """Whether something that is no file keeps the bundle in which it stands."""
        parts = thing.parts
        if thing.kind == "dir":
            nested = thing.path + b"/.staging-area" in self.world.things
            return self.hidden_root(parts) or (nested and self.visible(thing))
        return self.visible(thing) or self.hidden_root(parts)

    def hidden_root(self, parts: Parts) -> bool:
        """Whether this is the topmost name of something of the engine's own, inside a directory."""
        inside = len(parts) > 1 and not any(p == b".trash" or p.startswith(b".staging-") for p in parts[:-1])
        own = parts[-1] == b".trash" or parts[-1].startswith(b".staging-")
        areas = [b"/".join((*parts[:depth], b".staging-area")) for depth in range(1, len(parts))]
        return inside and own and not any(area in self.world.things for area in areas)

    def file_barred(self, thing: Planted) -> bool:
        policy, parts = self.policy, thing.parts
        if policy.include and not any(PATTERNS[one][0](parts) for one in policy.include):
            return True
        if any(PATTERNS[one][1](parts) for one in policy.exclude):
            return True
        return thing.links > 1 and not policy.allow_hardlinks

    def held(self, bundle: Iterable[bytes]) -> bool:
        holds = [hold for hold, now in zip(self.world.holds, self.world.held_now, strict=True) if now]
        return any(
            PATTERNS[hold.pattern][1](self.world.things[path].parts) for path in bundle for hold in holds
        )

    # Stamps

    def stamps(self, bundle: list[bytes]) -> list[int | None]:
        found = [
            self.files[path].stamps[letter]
            for path in bundle
            for letter in self.policy.age_by
            if letter.islower()
        ]
        upper = [letter.lower() for letter in self.policy.age_by if letter.isupper()]
        if upper:
            top = bundle[0].split(b"/")[0]
            for thing in self.seen.values():
                if thing.kind == "dir" and thing.parts[0] == top and not self.is_area(thing):
                    found += [thing.stamps[letter] for letter in upper]
        return found

    def is_area(self, thing: Planted) -> bool:
        return thing.path + b"/.staging-area" in self.world.things

    def newest(self, bundle: list[bytes]) -> int | None:
        """The newest selected stamp; None if one is not known, or none was selected."""
        stamps = self.stamps(bundle)
        known = [stamp for stamp in stamps if stamp is not None]
        return max(known) if known and len(known) == len(stamps) else None

    def old_enough(self, bundle: list[bytes]) -> bool:
        newest, age = self.newest(bundle), self.policy.age
        if newest is None or newest > self.world.now_ns:
            return False
        if age is None:
            return True
        return newest < self.world.now_ns - round(age.total_seconds()) * 10**9

    # Rules

    def aged(self, bundles: list[list[bytes]]) -> list[list[bytes]]:
        """Keep if any selected stamp is at or after the cut-off."""
        return [one for one in bundles if self.old_enough(one) and not self.held(one)]

    def orphaned(self, bundles: list[list[bytes]]) -> list[list[bytes]]:
        return [one for one in self.aged(bundles) if one[0] in self.world.orphans]

    def beyond(self, bundles: list[list[bytes]]) -> list[list[bytes]]:
        """Keep N per group key."""
        groups: dict[bytes, list[tuple[int, bytes, list[bytes]]]] = defaultdict(list)
        for one in bundles:
            newest, group = self.newest(one), self.group_of(one)
            if newest is not None and group is not None:
                groups[group].append((newest, one[0], one))
        going = []
        for members in groups.values():
            going += [one for _, _, one in sorted(members, reverse=True)[self.policy.keep :]]
        return self.aged(going)

    def group_of(self, bundle: list[bytes]) -> bytes | None:
        policy, path = self.policy, bundle[0]
        if policy.unit == "bundle" and policy.bundle_pattern is None:
            path = path.split(b"/")[0]
        return path.rpartition(b"/")[0] if policy.group_pattern is None else KEYS[policy.group_pattern](path)

    def first(self, bundles: list[list[bytes]]) -> list[list[bytes]]:
        """By age or size down to the low mark, and no further."""
        left, going = self.world.needed, []
        for one in sorted(self.aged(bundles), key=self.place):
            if left <= 0:
                break
            left -= self.size(one)
            going.append(one)
        return going

    def size(self, bundle: list[bytes]) -> int:
        return sum(self.files[path].size for path in bundle)

    def place(self, bundle: list[bytes]) -> tuple[int, int, bytes]:
        newest = self.newest(bundle) or 0
        return (-self.size(bundle) if self.policy.order_by == "size" else 0, newest, bundle[0])

    def expired(self) -> Iterator[bytes]:
        """Yield a result and its companion, if all that has to hold does."""
        for path, thing in self.files.items():
            stem = path.removesuffix(b".result.json.lz4")
            companion = stem + b".metadata.json"
            if stem == path or self.file_barred(thing) or thing.companion != "expired":
                continue
            beside = self.files.get(companion)
            if beside is None or (beside.links > 1 and not self.policy.allow_hardlinks):
                continue
            if not self.held([path, companion]):
                yield from (path, companion)
