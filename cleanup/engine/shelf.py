"""The trash on disk: where things lie, and the manifests that say what they were.

    <area>/.trash/                   mode 0700, on the area's own file system
        <YYYYMMDD>/<batch>/          one batch of items, moved together; <batch> is a uuid in hex
            manifest.json            there, fsynced, before the first file comes and until the last is gone
            data/<n>                 item n of the batch: its first member
            data/<n>.1               its second member: the metadata beside a result

A *trash id* is ``<YYYYMMDD>/<batch>/<n>`` and finds its item without any index. The manifest holds all that
is needed to bring every file back, so that the trash survives the loss of the database. One manifest serves a
whole batch, because a directory and an fsync for every file would cost many times the move itself.
"""

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from uuid import UUID

import msgspec

from cleanup.engine.area import TRASH, AreaHandle
from cleanup.engine.errors import AreaRefused, ManifestInvalid
from cleanup.engine.faults import crash_point
from cleanup.engine.kernel import open_beneath
from cleanup.engine.names import unescape
from cleanup.engine.plan import Member, PlanItem
from cleanup.engine.reasons import Reason

MANIFEST = b"manifest.json"
DATA = b"data"
BALLAST = b".ballast"

#: On a full disk nothing can be moved into the trash, since new directories and a manifest need room, and so
#: nothing could ever be purged from it. This much is set aside for that moment: the manifest of a thousand
#: files and more.
BALLAST_BYTES = 1024 * 1024

#: Of a directory that has to be made again and whose mode the manifest does not say.
DIRECTORY_MODE = 0o755

_ID = re.compile(r"([0-9]{8})/([0-9a-f]{32})/(0|[1-9][0-9]{0,8})")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US = timedelta(microseconds=1)


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What a batch's manifest says about the whole batch."""

    policy: str
    policy_version: str
    run: str
    trashed_at: datetime
    purge_after: datetime  #: not before this may anything of it be purged


class ManifestMember(msgspec.Struct, frozen=True, kw_only=True):
    """One file, as it was just before it was moved."""

    path: str  #: below the area, escaped
    data: str  #: its name in the data directory
    device: int
    inode: int
    size: int
    mtime_ns: int
    atime_ns: int
    mode: int
    uid: int
    gid: int

    def is_content(self, found: os.stat_result) -> bool:
        """Whether `found` is this file, unchanged; the device does not count: its number changes."""
        return (
            stat.S_ISREG(found.st_mode)
            and found.st_ino == self.inode
            and found.st_size == self.size
            and found.st_mtime_ns == self.mtime_ns
        )

    def is_same(self, found: os.stat_result) -> bool:
        """Whether `found` is this file with the same owner and mode too."""
        return (
            self.is_content(found)
            and stat.S_IMODE(found.st_mode) == self.mode
            and found.st_uid == self.uid
            and found.st_gid == self.gid
        )


class ManifestItem(msgspec.Struct, frozen=True, kw_only=True):
    """One item of a batch."""

    id: str  #: the trash id
    members: tuple[ManifestMember, ...]
    bytes: int
    reason: Reason
    detail: str = ""
    task_id: str | None = None

    def plan_item(self) -> PlanItem:
        """Return the item as it stood in the plan, for `observe`, or for a row that is rebuilt."""
        members = tuple(Member(unescape(m.path), m.device, m.inode, m.size, m.mtime_ns) for m in self.members)
        return PlanItem(members[0].path, members, self.bytes, self.reason, self.detail, self.task_id)


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The manifest of one batch."""

    version: int
    area: str  #: uuid
    batch: str  #: ``<YYYYMMDD>/<batch>``
    policy: str
    policy_version: str
    run: str
    trashed_at_us: int
    purge_after_us: int
    items: tuple[ManifestItem, ...]
    #: The modes of the directories on the way to the items, by escaped path, where not `DIRECTORY_MODE`.
    directories: dict[str, int] = {}

    @property
    def trashed_at(self) -> datetime:
        """When the batch was moved."""
        return _EPOCH + self.trashed_at_us * _US

    @property
    def purge_after(self) -> datetime:
        """Before this moment nothing of it may be purged."""
        return _EPOCH + self.purge_after_us * _US

    def item(self, trash_id: str) -> ManifestItem | None:
        """Return the item `trash_id`, if the batch holds it."""
        return next((item for item in self.items if item.id == trash_id), None)


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Manifest)


def trash_ids(batch: UUID, count: int, *, day: date) -> list[str]:
    """Return the ids for a batch of `count` items; note them in the rows before anything is prepared."""
    name = f"{day:%Y%m%d}/{batch.hex}"
    return [f"{name}/{number}" for number in range(count)]


def batch_of(trash_id: str) -> str:
    """Return the ``<YYYYMMDD>/<batch>`` that `trash_id` belongs to.

    Raises:
        ManifestInvalid: not a trash id.
    """
    match = _ID.fullmatch(trash_id)
    if match is None:
        raise ManifestInvalid(f"{trash_id!r} is not a trash id")
    return f"{match[1]}/{match[2]}"


def data_names(trash_id: str, members: int) -> list[bytes]:
    """Return the names of an item's members in the data directory."""
    number = trash_id.rpartition("/")[2].encode()
    return [number if index == 0 else b"%s.%d" % (number, index) for index in range(members)]


def header_us(moment: datetime) -> int:
    """Return `moment` in microseconds since 1970, as manifests hold it."""
    return (moment - _EPOCH) // _US


@contextmanager
def opened(area: AreaHandle, path: bytes) -> Iterator[int]:
    """Open a directory below `area` for the length of a ``with`` statement."""
    fd = area.open(path)
    try:
        yield fd
    finally:
        os.close(fd)


def batch_path(batch: str, *below: bytes) -> bytes:
    """Return the path of a batch, or of something in it, below the area."""
    return b"/".join((TRASH, batch.encode("ascii"), *below))


def make_batch(area: AreaHandle, batch: str) -> None:
    """Make the directories of a batch that does not exist yet.

    Raises:
        FileExistsError: it does.
        AreaRefused: somebody else could reach into the trash.
        OSError: as mkdir(2).
    """
    day, _, name = batch.encode("ascii").partition(b"/")
    crash_point("trash.before_mkdir")
    fresh = _mkdir(area.fd, TRASH)
    with opened(area, TRASH) as trash_fd:
        _refuse_loose(trash_fd, area)
        if fresh:
            set_ballast(trash_fd)
            os.fsync(area.fd)
        if _mkdir(trash_fd, day):
            os.fsync(trash_fd)
        day_fd = open_beneath(trash_fd, day)
        try:
            os.mkdir(name, 0o700, dir_fd=day_fd)
            os.fsync(day_fd)
        finally:
            os.close(day_fd)
        with opened(area, batch_path(batch)) as fd:
            os.mkdir(DATA, 0o700, dir_fd=fd)


def _mkdir(dir_fd: int, name: bytes) -> bool:
    """Make a private directory unless it exists; return whether it was made."""
    try:
        os.mkdir(name, 0o700, dir_fd=dir_fd)
    except FileExistsError:
        return False
    return True


def _refuse_loose(fd: int, area: AreaHandle) -> None:
    """Refuse a trash that others may write to, or that they made."""
    found = os.fstat(fd)
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise AreaRefused("trash_unsafe", f"the trash of {area.path} is not ours alone (owner, or mode 0700)")


def set_ballast(trash_fd: int) -> None:
    """Set room aside in the trash, if there is none yet and the disk has it."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(BALLAST, flags, 0o600, dir_fd=trash_fd)
    except FileExistsError:
        return
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return  # full: this is the moment the ballast is for, not the moment to make it
    try:
        os.posix_fallocate(fd, 0, BALLAST_BYTES)
    except OSError as error:
        os.unlink(BALLAST, dir_fd=trash_fd)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EOPNOTSUPP, errno.EINVAL):
            raise
    finally:
        os.close(fd)


def drop_ballast(area: AreaHandle) -> bool:
    """Give the set-aside room free; return whether there was any."""
    try:
        with opened(area, TRASH) as trash_fd:
            os.unlink(BALLAST, dir_fd=trash_fd)
    except FileNotFoundError:
        return False
    return True


def write_manifest(area: AreaHandle, manifest: Manifest) -> None:
    """Write the manifest of a batch that was just made, and fsync it with its directory."""
    with opened(area, batch_path(manifest.batch)) as batch_fd:
        crash_point("trash.before_manifest")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(MANIFEST, flags, 0o600, dir_fd=batch_fd)
        try:
            view = memoryview(_encoder.encode(manifest))
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        os.fsync(batch_fd)
        crash_point("trash.after_manifest")


def read_manifest(area: AreaHandle, batch: str) -> Manifest:
    """Read the manifest of a batch.

    Raises:
        ManifestInvalid: missing, torn, of another area or of another batch.
    """
    path = batch_path(batch, MANIFEST)
    try:
        fd = area.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise ManifestInvalid(f"the manifest of {batch} cannot be opened: {error.strerror}") from error
    with os.fdopen(fd, "rb") as file:
        return _parse_manifest(file.read(), area.uuid, batch)


@lru_cache(maxsize=4)  # by content: whoever restores a batch item by item reads the same manifest every time
def _parse_manifest(data: bytes, area_uuid: str, batch: str) -> Manifest:
    try:
        manifest = _decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ManifestInvalid(f"the manifest of {batch} cannot be read: {error}") from error
    _check_manifest(manifest, area_uuid, batch)
    return manifest


def _check_manifest(manifest: Manifest, area_uuid: str, batch: str) -> None:
    """Refuse a manifest whose words would lead the engine elsewhere."""
    if manifest.version != 1 or manifest.area != area_uuid or manifest.batch != batch:
        raise ManifestInvalid(f"the manifest of {batch} is of another version, area or batch")
    for item in manifest.items:
        names = [name.decode() for name in data_names(item.id, len(item.members))]
        if batch_of(item.id) != batch or not names or names != [member.data for member in item.members]:
            raise ManifestInvalid(f"the manifest of {batch} names what is not its own: {item.id!r}")


def locate(area: AreaHandle, trash_id: str) -> ManifestItem | None:
    """Return what the trash knows about `trash_id`; None if it was never there or is gone.

    Raises:
        ManifestInvalid: not a trash id, or its manifest cannot be read.
    """
    manifest = read_if_there(area, batch_of(trash_id))
    return None if manifest is None else manifest.item(trash_id)


def read_if_there(area: AreaHandle, batch: str) -> Manifest | None:
    """Read the manifest of a batch; None if there is none.

    Raises:
        ManifestInvalid: there is one that cannot be read.
    """
    return read_manifest(area, batch) if _is_there(area, batch_path(batch, MANIFEST)) else None


def _is_there(area: AreaHandle, path: bytes) -> bool:
    directory, _, name = path.rpartition(b"/")
    try:
        with opened(area, directory) as fd:
            os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def batches(area: AreaHandle) -> Iterator[str]:
    """Yield every batch in the trash, oldest day first."""
    for day in _list(area, TRASH):
        if re.fullmatch(r"[0-9]{8}", day):
            for name in _list(area, TRASH + b"/" + day.encode()):
                if re.fullmatch(r"[0-9a-f]{32}", name):
                    yield f"{day}/{name}"


def _list(area: AreaHandle, path: bytes) -> list[str]:
    try:
        with opened(area, path) as fd:
            return sorted(os.listdir(fd))
    except FileNotFoundError:
        return []


def scan_trash(area: AreaHandle, *, on_bad: Callable[[str, str], None]) -> Iterator[Manifest]:
    """Yield the manifest of every batch, for rows that must be rebuilt or checked.

    An item of a manifest may have left the trash since: `cleanup.engine.trash.observe` tells.

    Args:
        area: open.
        on_bad: told of each batch whose manifest cannot be read, and why. Its files stay where they are.
    """
    for batch in batches(area):
        try:
            manifest = read_manifest(area, batch)
        except ManifestInvalid as error:
            on_bad(batch, str(error))
        else:
            yield manifest


def tidy(area: AreaHandle, batch: str) -> bool:
    """Remove what is left of a batch that holds no file any more; return whether it is gone.

    Order: the empty data directory, the manifest, the batch, the day. A crash in between leaves what the next
    call removes. The caller holds the area's lock.
    """
    try:
        with opened(area, batch_path(batch)) as fd:
            if not _rmdir(fd, DATA):
                return False
            crash_point("purge.before_manifest")
            with suppress(FileNotFoundError):
                os.unlink(MANIFEST, dir_fd=fd)
            crash_point("purge.after_manifest")
    except FileNotFoundError:
        return True
    day, _, name = batch.encode("ascii").partition(b"/")
    with opened(area, TRASH) as trash_fd:
        with opened(area, TRASH + b"/" + day) as day_fd:
            gone = _rmdir(day_fd, name)
        _rmdir(trash_fd, day)
        set_ballast(trash_fd)
    return gone


def files_in(area: AreaHandle, batch: str) -> frozenset[str]:
    """Return the names of what lies in a batch; none if there is no such batch."""
    return frozenset(_list(area, batch_path(batch, DATA)))


def is_empty(area: AreaHandle) -> bool:
    """Whether no file lies in any batch of the trash."""
    return not any(files_in(area, batch) for batch in batches(area))


def clear_trash(area: AreaHandle) -> bool:
    """Remove an empty trash, its ballast included; return whether it is gone. The caller holds the lock."""
    for batch in list(batches(area)):
        if not tidy(area, batch):
            return False
    drop_ballast(area)
    return _rmdir(area.fd, TRASH)


def _rmdir(dir_fd: int, name: bytes) -> bool:
    """Remove a directory if it is empty and may be removed; return whether it is gone."""
    try:
        os.rmdir(name, dir_fd=dir_fd)
    except FileNotFoundError:
        return True
    except OSError as error:
        # Read-only or forbidden by now: it is empty or not, and a later call will see to it.
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EROFS, errno.EPERM, errno.EACCES):
            raise
        return False
    return True
