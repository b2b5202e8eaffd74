"""Results that have expired, on their short way: judged, into the trash, and gone for good at once.

    doomed = expired(area, policy, now=…, on_kept=…)       judged by the policy, one look at each file
    prepared = shelve(area, doomed.candidates, header=…)   the manifest is on disk; nothing has moved yet
    discard(area, prepared)                                moved, compared with the manifest, unlinked
    discard_leftovers(area, …)                             the same for what a killed cleanup left behind

What was seen when a file was judged is what its manifest says, so a batch is prepared without another look at
its files. Everything else is as in every trash: what arrives there is looked at, again right before it is
unlinked, and whatever is not as expected is left to the mover, which puts it back.
"""

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from uuid import uuid4

import msgspec

from cleanup.engine.area import AreaHandle
from cleanup.engine.candidates import NOTHING, Candidate, Stat
from cleanup.engine.errors import ManifestInvalid
from cleanup.engine.expiry import RESULT_SUFFIX
from cleanup.engine.faults import crash_point
from cleanup.engine.kernel import rename_new
from cleanup.engine.mover import Moved, Mover, Probe
from cleanup.engine.names import escape, unescape
from cleanup.engine.observe import Directories, make_durable, sentence
from cleanup.engine.policy import Policy, judge_all
from cleanup.engine.purge import purge_batch
from cleanup.engine.reasons import Reason
from cleanup.engine.scan import OnSkip, walk
from cleanup.engine.shelf import (
    DATA,
    DIRECTORY_MODE,
    Header,
    Manifest,
    ManifestItem,
    ManifestMember,
    batch_of,
    batch_path,
    batches,
    drop_ballast,
    files_in,
    header_us,
    make_batch,
    opened,
    read_manifest,
    tidy,
    trash_ids,
    write_manifest,
)
from cleanup.engine.trash import PreparedBatch

_SUFFIX = RESULT_SUFFIX.decode()
_PROBE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Doomed(msgspec.Struct, frozen=True, kw_only=True):
    """What may go, and how much was looked at."""

    candidates: list[Candidate]  #: each with its companion
    checked: int  #: results, those that stay included

    @property
    def bytes(self) -> int:
        """How much results and metadata hold."""
        pairs = [(one.stat, one.companion.stat if one.companion else NOTHING) for one in self.candidates]
        return sum(result.size + metadata.size for result, metadata in pairs)


class _Results:
    """Lets a walk see results and directories alone; metadata is asked for by its result."""

    def rest(self, entries: "Iterable[os.DirEntry[str]]", device: int) -> "Iterator[os.DirEntry[str]]":
        for entry in entries:
            if entry.name.endswith(_SUFFIX) or entry.is_dir(follow_symlinks=False):
                yield entry


def expired(area: AreaHandle, policy: Policy, *, now: datetime, on_kept: OnSkip) -> Doomed:
    """Judge the results of an area by a policy of the rule ``expires_at``.

    Args:
        area: open; nothing is changed in it.
        policy: validated.
        now: with a zone.
        on_kept: told of each result that stays, and of what could not be looked at.
    """
    judged = judge_all(policy, now=now)
    # By path: a name that the walk met twice, since directories were renamed meanwhile, counts once.
    found: dict[bytes, Candidate] = {}
    checked = 0
    for candidate in walk(area, policy=policy, on_skip=on_kept, sieve=_Results()):
        verdict = judged(candidate)
        checked += verdict.reason is not Reason.NOT_INCLUDED
        if verdict.action == "trash":
            found[candidate.path] = candidate
        else:
            on_kept(candidate.path, verdict.reason, verdict.detail)
    return Doomed(candidates=list(found.values()), checked=checked)


def shelve(area: AreaHandle, candidates: Sequence[Candidate], *, header: Header) -> PreparedBatch:
    """Make a batch for what was judged and write its manifest, fsynced; nothing is moved yet.

    Args:
        area: open, its lock held.
        candidates: from `expired`, at least one; 1,000 to 5,000 for speed.
        header: for the manifest.

    Raises:
        AreaRefused: the trash is not ours alone.
        OSError: no room (even with the ballast gone), read-only; nothing was changed.
    """
    ids = tuple(trash_ids(uuid4(), len(candidates), day=header.trashed_at.date()))
    batch = batch_of(ids[0])
    items = {one: _item(one, candidate) for one, candidate in zip(ids, candidates, strict=True)}
    prepared = PreparedBatch(batch=batch, ids=ids, items=items, refused={})
    manifest = Manifest(
        version=1,
        area=area.uuid,
        batch=batch,
        policy=header.policy,
        policy_version=header.policy_version,
        run=header.run,
        trashed_at_us=header_us(header.trashed_at),
        purge_after_us=header_us(header.purge_after),
        items=tuple(items.values()),
        directories=_directory_modes(area, candidates),
    )
    try:
        _write(area, manifest)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not drop_ballast(area):
            raise
        _write(area, manifest)
    return prepared


def _item(trash_id: str, candidate: Candidate) -> ManifestItem:
    number = trash_id.rpartition("/")[2]
    members = [_member(candidate.path, candidate.stat, number)]
    if candidate.companion is not None:
        members.append(_member(candidate.companion.path, candidate.companion.stat, f"{number}.1"))
    size = sum([member.size for member in members])
    return ManifestItem(id=trash_id, members=tuple(members), bytes=size, reason=Reason.EXPIRED)


def _member(path: bytes, seen: Stat, data: str) -> ManifestMember:
    return ManifestMember(
        path=escape(path),
        data=data,
        device=seen.device,
        inode=seen.inode,
        size=seen.size,
        mtime_ns=seen.mtime_ns,
        atime_ns=seen.atime_ns,
        mode=seen.mode,
        uid=seen.uid,
        gid=seen.gid,
    )


def _directory_modes(area: AreaHandle, candidates: Iterable[Candidate]) -> dict[str, int]:
    """Return the modes of the directories on the way to the candidates, as a manifest holds them."""
    modes: dict[str, int] = {}
    known: set[bytes] = {b""}
    for path in {candidate.path.rpartition(b"/")[0] for candidate in candidates}:
        while path not in known:
            known.add(path)
            try:
                with opened(area, path) as fd:
                    mode = stat.S_IMODE(os.fstat(fd).st_mode)
            except OSError:
                break  # moved away meanwhile; its files are found to have vanished
            if mode != DIRECTORY_MODE:
                modes[escape(path)] = mode
            path = path.rpartition(b"/")[0]
    return modes


def _write(area: AreaHandle, manifest: Manifest) -> None:
    try:
        make_batch(area, manifest.batch)
        write_manifest(area, manifest)
    except OSError:
        tidy(area, manifest.batch)
        raise


class Discarded(msgspec.Struct, kw_only=True):
    """What became of batches."""

    removed: int = 0  #: results
    bytes: int = 0  #: freed, by results and metadata
    problems: list[str] = []  #: what stays although it should not, a sentence each


def discard(area: AreaHandle, prepared: PreparedBatch) -> Discarded:
    """Move a batch into the trash and unlink what arrived there; durable when this returns.

    A file that is not the judged one any more stays or goes back to its place, and so does one on which
    somebody holds an flock: a result and its metadata go both or not at all.

    Args:
        area: open, its lock held.
        prepared: from `shelve`.

    Raises:
        OSError: what was done could not be made durable.
    """
    done = Discarded()
    with opened(area, batch_path(prepared.batch, DATA)) as data_fd:
        arrived = _move(area, prepared, data_fd, done)
        crash_point("trash.before_fsync")
        os.fsync(data_fd)
        make_durable(area, arrived.touched)
        crash_point("trash.after_fsync")
        for item in arrived.items:
            _unlink(data_fd, item, done)
        crash_point("purge.before_fsync")
        os.fsync(data_fd)
        crash_point("purge.after_fsync")
    tidy(area, prepared.batch)
    return done


class _Arrived(msgspec.Struct, frozen=True):
    """What is whole in the trash, and the directories in which names came or went."""

    items: list[ManifestItem]
    touched: set[bytes]


def _move(area: AreaHandle, prepared: PreparedBatch, data_fd: int, done: Discarded) -> _Arrived:
    with Directories(area) as directories:
        # Resumed, since what the quick way leaves to it may have arrived in part.
        mover = Mover(area, directories, data_fd, probe=Probe(locks=True, use=False), resumed=True)
        quick = None if prepared.resumed else _Quick(mover, directories, data_fd)
        moved = {}
        for trash_id, item in prepared.items.items():
            if quick is not None and quick.move(item):
                moved[trash_id] = Moved(trash_id, "trashed")
            else:
                moved[trash_id] = mover.move(item)
        directories.leave()
        settled = [(item, mover.checked(item, moved[one])) for one, item in prepared.items.items()]
    done.problems += [one.detail for _, one in settled if one.outcome == "error"]
    return _Arrived([item for item, one in settled if one.outcome == "trashed"], mover.touched)


class _Quick:
    """Moves items of which everything is as it was judged, and leaves all others to the mover."""

    def __init__(self, mover: Mover, directories: Directories, data_fd: int) -> None:
        self._mover, self._directories, self._data_fd = mover, directories, data_fd

    def move(self, item: ManifestItem) -> bool:
        """Return whether all members arrived; if not, some may have."""
        try:
            names = []
            for member in item.members:
                dir_fd, name = self._directories.parent(unescape(member.path))
                if not _is_free(dir_fd, name, member):
                    return False
                names.append(name)
            self._mover.touched.add(unescape(item.members[0].path).rpartition(b"/")[0])
            # Result and metadata stand in one directory, which is open still.
            for member, name in zip(item.members, names, strict=True):
                if not self._arrives(member, dir_fd, name):
                    return False
        except OSError:
            return False  # the mover finds the same, undoes what was done and says why
        return True

    def _arrives(self, member: ManifestMember, dir_fd: int, name: bytes) -> bool:
        crash_point("trash.before_rename")
        data = member.data.encode()
        rename_new(dir_fd, name, self._data_fd, data)
        self._mover.here.append(member)
        crash_point("trash.after_rename")
        # Only now can nobody exchange it any more.
        return member.is_same(os.stat(data, dir_fd=self._data_fd, follow_symlinks=False))


def _is_free(dir_fd: int, name: bytes, member: ManifestMember) -> bool:
    """Whether `name` is the file that was judged, and nobody holds an flock on it."""
    fd = os.open(name, _PROBE, dir_fd=dir_fd)
    try:
        found = os.fstat(fd)
        if not member.is_same(found) or found.st_dev != member.device:
            return False
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(fd)
    return True


def _unlink(data_fd: int, item: ManifestItem, done: Discarded) -> None:
    """Unlink the result, then its metadata, if both are still what arrived."""
    freed = 0
    try:
        for member in item.members:
            found = os.stat(member.data, dir_fd=data_fd, follow_symlinks=False)
            if not member.is_content(found):
                done.problems.append(f"{member.path} was written to in the trash, and stays there")
                return
            freed += found.st_size if found.st_nlink == 1 else 0
        for member in item.members:
            crash_point("purge.before_unlink")
            os.unlink(member.data, dir_fd=data_fd)
            crash_point("purge.after_unlink")
    except OSError as error:
        done.problems.append(f"{item.members[0].path} stays in the trash: {sentence(error)}")
        return
    done.removed += 1
    done.bytes += freed


def discard_leftovers(
    area: AreaHandle, policy: str, *, now: datetime, on_bad: Callable[[str, str], None]
) -> Iterator[Discarded]:
    """Finish the batches of `policy` that a killed process left; a file that changed since goes back.

    Args:
        area: open, its lock held.
        policy: the name in the header of its batches.
        now: batches that may not be purged yet are left alone.
        on_bad: told of a batch that holds files and whose manifest cannot be read, and why.

    Raises:
        OSError: what was done could not be made durable.
    """
    for batch in list(batches(area)):
        names = files_in(area, batch)
        try:
            manifest = read_manifest(area, batch)
        except ManifestInvalid as error:
            # Killed before the manifest was whole, or after it was removed: then there are no files.
            if names or not tidy(area, batch):
                on_bad(batch, str(error))
            continue
        if manifest.policy != policy or manifest.purge_after > now:
            continue
        if names:
            yield _finish(area, manifest, names)
        else:
            tidy(area, batch)  # nothing had moved yet, or everything is gone


def _finish(area: AreaHandle, manifest: Manifest, names: frozenset[str]) -> Discarded:
    # Of what is not there nothing had moved yet, or everything is gone.
    items = [item for item in manifest.items if any(member.data in names for member in item.members)]
    with Directories(area) as directories:
        begun = {item.id for item in items if _is_purge_begun(directories, item, names)}
    purged = purge_batch(area, sorted(begun))
    rest = {item.id: item for item in items if item.id not in begun}
    prepared = PreparedBatch(batch=manifest.batch, ids=tuple(rest), items=rest, refused={}, resumed=True)
    done = discard(area, prepared) if rest else Discarded()
    done.removed += sum(one.outcome == "purged" for one in purged)
    done.bytes += sum(one.bytes for one in purged)
    done.problems += [one.detail for one in purged if one.outcome == "error"]
    return done


def _is_purge_begun(directories: Directories, item: ManifestItem, names: frozenset[str]) -> bool:
    """Whether the result was unlinked and its metadata not yet.

    The result comes first, goes first and is put back last. So metadata alone in the trash is what a purge
    left; unless a disk that failed forgot the first of the two renames, and the result stands in its place.
    """
    first, *others = item.members
    if first.data in names or not any(member.data in names for member in others):
        return False
    found = directories.stat(unescape(first.path))
    return found is None or not first.is_content(found)
