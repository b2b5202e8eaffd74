"""What goes or stays as a whole: single files, directories, files of one key.

`things` turns the candidates of a walk into things, each with its members, its newest stamp and, if there is
one, the bar that keeps all of it. A bundle is only as free as its least free member: one that is excluded,
hard-linked, unreadable or no regular file keeps the others, and is named. A directory is handed on as soon as
the walk has left it; files of one key are known to be complete only at the end.
"""

from collections.abc import Callable, Iterable, Iterator

from cleanup.engine.candidates import Candidate
from cleanup.engine.errors import TreeChanged
from cleanup.engine.items import Member
from cleanup.engine.names import escape, key_in, keyed
from cleanup.engine.policy import Policy, barrier, stamp_of
from cleanup.engine.reasons import Reason

#: Told of whatever stays: its path, the reason, a detail, and its size in bytes.
OnKept = Callable[[bytes, Reason, str, int], None]


class Thing:
    """A file by itself, or a bundle."""

    __slots__ = ("bar", "linked", "members", "name", "newest", "newest_path", "unsure")

    def __init__(self, name: bytes | None = None) -> None:
        """Start with no members; `name` is that of a bundle."""
        self.name = name
        self.members: list[Member] = []
        self.linked = False  #: a member has another name
        self.newest: int | None = None  #: of all selected stamps that are known
        self.newest_path = b""
        self.unsure: bytes | None = None  #: a member with a selected stamp that is not known
        #: What keeps all of it; of several the first by path.
        self.bar: tuple[bytes, Reason, str] | None = None

    @property
    def path(self) -> bytes:
        """The path of the first member."""
        return self.members[0].path

    @property
    def size(self) -> int:
        """The bytes of all members."""
        return sum(member.size for member in self.members)

    def see(self, path: bytes, stamp: int | None, *, sure: bool) -> None:
        """Take the stamps of one member, or of a directory, into account."""
        if stamp is not None and (self.newest is None or (stamp, path) > (self.newest, self.newest_path)):
            self.newest, self.newest_path = stamp, path
        if not sure and (self.unsure is None or path < self.unsure):
            self.unsure = path

    def stop(self, path: bytes, reason: Reason, detail: str) -> None:
        """Keep all of it because of what stands at `path`."""
        if self.bar is None or path < self.bar[0]:
            self.bar = path, reason, detail

    def about(self, path: bytes, detail: str = "") -> str:
        """Name the member that decided; of a file by itself nothing needs to be named."""
        if self.name is None:
            return detail
        return f"{escape(path)}: {detail}" if detail else escape(path)

    def same_as(self, other: "Thing") -> bool:
        """Whether both are the same file, met twice because directories were renamed during the walk."""
        one, two = self.members[0], other.members[0]
        same_inode = (one.device, one.inode) == (two.device, two.inode)
        return one.path == two.path or (same_inode and not self.linked)


def keep_all(thing: Thing, reason: Reason, detail: str, on_kept: OnKept) -> None:
    """Tell of every member that it stays."""
    for member in thing.members:
        on_kept(member.path, reason, detail, member.size)


def things(policy: Policy, candidates: Iterable[Candidate], on_kept: OnKept) -> Iterator[Thing]:
    """Yield every thing that nothing bars, its members by path; `on_kept` is told of the others.

    Args:
        policy: validated.
        candidates: in the order of the walk: what is below one directory stands together.
        on_kept: told of each file, link or other thing that stays.

    Raises:
        TreeChanged: the walk came back to a directory that it had left.
    """
    finder = _Finder(policy, on_kept)
    if policy.unit == "file":
        return finder.single(candidates)
    return finder.unbarred(
        finder.directories(candidates) if policy.bundle_pattern is None else finder.of_one_key(candidates)
    )


class _Finder:
    """Puts candidates together."""

    def __init__(self, policy: Policy, on_kept: OnKept) -> None:
        self.policy, self.on_kept = policy, on_kept
        self.barred = barrier(policy)

    def single(self, candidates: Iterable[Candidate]) -> Iterator[Thing]:
        """Yield each file by itself."""
        for candidate in candidates:
            verdict = self.barred(candidate)
            if verdict is not None:
                self.on_kept(candidate.path, verdict.reason, verdict.detail, candidate.stat.size)
                continue
            thing = Thing()
            self._enter(thing, candidate)
            yield thing

    def directories(self, candidates: Iterable[Candidate]) -> Iterator[Thing]:
        """Yield each directory right below the area, and each file there."""
        thing, left = None, set[bytes]()
        for candidate in candidates:
            name, below, _ = candidate.path.partition(b"/")
            if thing is None or thing.name != name:
                if thing is not None:
                    yield thing
                if name in left:
                    raise TreeChanged(f"the walk came back to {escape(name)}: the tree changes too fast")
                thing = Thing(name)
            if below:
                left.add(name)
            self._add(thing, candidate)
        if thing is not None:
            yield thing

    def of_one_key(self, candidates: Iterable[Candidate]) -> Iterator[Thing]:
        """Yield the files of each key, when all have been seen."""
        pattern = keyed(self.policy.bundle_pattern or "", "bundle_pattern")
        bundles: dict[str, Thing] = {}
        for candidate in candidates:
            key = key_in(pattern, escape(candidate.path))
            if key:
                self._add(bundles.setdefault(key, Thing(key.encode())), candidate)
            else:
                verdict = self.barred(candidate)
                reason, detail = (verdict.reason, verdict.detail) if verdict else (Reason.NO_KEY, "")
                self.on_kept(candidate.path, reason, detail, candidate.stat.size)
        while bundles:
            yield bundles.pop(next(iter(bundles)))

    def unbarred(self, bundles: Iterable[Thing]) -> Iterator[Thing]:
        """Yield the bundles that may go as a whole."""
        for thing in bundles:
            thing.members.sort(key=lambda member: member.path)
            if thing.bar is not None:
                path, reason, detail = thing.bar
                keep_all(thing, reason, thing.about(path, detail), self.on_kept)
            elif thing.members:
                yield thing

    def _add(self, thing: Thing, candidate: Candidate) -> None:
        if candidate.stat.kind == "dir" and candidate.barred is None:
            self._see(thing, candidate)
            return
        verdict = self.barred(candidate)
        if verdict is not None:
            thing.stop(candidate.path, verdict.reason, verdict.detail)
        if candidate.stat.kind == "file":
            self._enter(thing, candidate)
        elif verdict is not None:
            self.on_kept(candidate.path, verdict.reason, verdict.detail, 0)

    def _enter(self, thing: Thing, candidate: Candidate) -> None:
        path, stat = candidate.path, candidate.stat
        thing.linked = thing.linked or stat.nlink > 1
        thing.members.append(Member(path, stat.device, stat.inode, stat.size, stat.mtime_ns))
        self._see(thing, candidate)

    def _see(self, thing: Thing, candidate: Candidate) -> None:
        stamp, sure = stamp_of(self.policy.age_by, candidate.stat)
        thing.see(candidate.path, stamp, sure=sure)
