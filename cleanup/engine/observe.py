"""Looking at names on disk without following anything: what stands there now?

`Directories` opens the parents of paths that come in order, each once. `observe` compares an item with what
stands under its names and with what the trash holds, which is all that `cleanup.engine.states.recover` needs
to know after a crash. Nothing is changed here; `make_durable` writes down what others have renamed.
"""

import errno
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from types import TracebackType

from cleanup.engine.area import AreaHandle
from cleanup.engine.kernel import sync_filesystem
from cleanup.engine.plan import Member, PlanItem
from cleanup.engine.shelf import DATA, batch_of, batch_path, data_names, opened
from cleanup.engine.states import InTrash, Observation, Source


def name_stat(dir_fd: int, name: bytes | str) -> os.stat_result | None:
    """Return what stands under `name` in the open directory, or None."""
    try:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def sentence(error: OSError) -> str:
    """Return the system's word for `error`, without the path, which may not be printable."""
    return error.strerror or str(error)


#: Above this many directories one syncfs is cheaper than an fsync for each.
_MANY_DIRECTORIES = 16

Visit = Callable[[bytes, int], None]


def make_durable(area: AreaHandle, directories: Collection[bytes]) -> None:
    """Fsync directories in which names came or went.

    Raises:
        OSError: as fsync(2).
    """
    if len(directories) > _MANY_DIRECTORIES:
        sync_filesystem(area.fd)
        return
    for directory in directories:
        try:
            with opened(area, directory) as fd:
                os.fsync(fd)
        except OSError as error:
            # Removed or replaced since by its owner, who answers for its durability.
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV):
                raise


def is_still_there(area: AreaHandle, directory: bytes, fd: int) -> bool:
    """Whether the path `directory` still leads to what is open as `fd`, and was not moved away meanwhile."""
    try:
        with opened(area, directory) as found:
            return os.path.samestat(os.fstat(found), os.fstat(fd))
    except OSError:
        return False


class Directories:
    """Opens the parent directories of files that come in the order of their paths, one at a time."""

    def __init__(self, area: AreaHandle) -> None:
        """Start with none open."""
        self._area = area
        self._path: bytes | None = None
        self._fd = -1
        #: Called with path and descriptor of each directory after it was opened, and before it is closed.
        self.on_open: Visit | None = None
        self.on_leave: Visit | None = None

    def __enter__(self) -> "Directories":
        """Return the opener itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the directory that is still open."""
        self.leave()

    def leave(self) -> None:
        """Close the directory that is open, if one is."""
        fd, path, self._fd, self._path = self._fd, self._path, -1, None
        if fd < 0 or path is None:
            return
        try:
            if self.on_leave is not None:
                self.on_leave(path, fd)
        finally:
            os.close(fd)

    def parent(self, path: bytes) -> tuple[int, bytes]:
        """Return the open directory of `path`, valid until the next call, and the last name."""
        directory, _, name = path.rpartition(b"/")
        if directory != self._path:
            self.leave()
            self._fd = self._area.open(directory)
            self._path = directory
            if self.on_open is not None:
                self.on_open(directory, self._fd)
        return self._fd, name

    def stat(self, path: bytes) -> os.stat_result | None:
        """Return what stands under `path`, or None if nothing does."""
        try:
            fd, name = self.parent(path)
            return os.stat(name, dir_fd=fd, follow_symlinks=False)
        except OSError as error:
            # ENOTDIR, ELOOP: a directory on the way was replaced, so the file is not there either.
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return None
            raise


def observe(area: AreaHandle, item: PlanItem, trash_id: str) -> Observation:
    """Return what is on disk of one item, for `cleanup.engine.states.recover`.

    For an item that was being restored under another name, give an item with that path.
    """
    return next(observe_all(area, [(item, trash_id)]))


def observe_all(area: AreaHandle, wanted: Iterable[tuple[PlanItem, str]]) -> Iterator[Observation]:
    """Yield an observation for each item; fast when those of one batch stand together."""
    with Directories(area) as sources, Directories(area) as shelves:
        for item, trash_id in wanted:
            names = data_names(trash_id, len(item.members))
            data = batch_path(batch_of(trash_id), DATA)
            yield Observation(
                source=_source(item.members, [sources.stat(member.path) for member in item.members]),
                trash=_in_trash(item.members, [shelves.stat(data + b"/" + name) for name in names]),
            )


def _source(members: Sequence[Member], found: Sequence[os.stat_result | None]) -> Source:
    """Compare by inode only: whether the file was written to since is for `move` to see."""
    same = [
        seen is not None and seen.st_ino == member.inode for member, seen in zip(members, found, strict=True)
    ]
    if all(same):
        return Source.SAME
    if any(seen is not None and not ours for seen, ours in zip(found, same, strict=True)):
        return Source.OTHER
    return Source.PART if any(same) else Source.GONE


def _in_trash(members: Sequence[Member], found: Sequence[os.stat_result | None]) -> InTrash:
    right = [
        seen is not None and (seen.st_ino, seen.st_size, seen.st_mtime_ns) == (m.inode, m.size, m.mtime_ns)
        for m, seen in zip(members, found, strict=True)
    ]
    if all(right):
        return InTrash.WHOLE
    if any(seen is not None and not ours for seen, ours in zip(found, right, strict=True)):
        return InTrash.OTHER
    return InTrash.PART if any(right) else InTrash.NO
