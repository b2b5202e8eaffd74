"""An area: a directory tree that the engine is allowed to clean, and nothing else.

Registering writes a marker file with the area's uuid into the directory; opening checks it, and the device,
every time. An unmounted disk, a path that now leads elsewhere or a restored parent directory thus never looks
like "all files are gone" or "all these may go". An open area is one directory descriptor; whatever the engine
does later is relative to it, so a path that is exchanged afterwards has no effect.
"""

import fcntl
import json
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from uuid import UUID

import msgspec

from cleanup.engine.errors import AreaBusy, AreaRefused
from cleanup.engine.faults import crash_point
from cleanup.engine.kernel import DIRECTORY, open_beneath, rename_new
from cleanup.engine.places import check_place

MARKER = b".staging-area"
TRASH = b".trash"

#: A marker is one line of JSON; anything larger is something else.
_MAX_MARKER = 4096

AnyPath = str | bytes | os.PathLike[str]


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """What is worth keeping about a registered area."""

    path: str  #: as given, absolute
    uuid: str
    device: int


def register_area(
    path: AnyPath,
    area_uuid: UUID | str,
    *,
    forbidden: Iterable[AnyPath] = (),
    permitted: Iterable[AnyPath] = (),
) -> Registration:
    """Make the existing directory `path` an area, durably; the same uuid again changes nothing.

    Args:
        path: absolute.
        area_uuid: to be written into the marker.
        forbidden: trees that hold no area and lie in none, such as the project's own source.
        permitted: trees inside forbidden ones where areas may be after all, such as the project's data
            folder.

    Raises:
        AreaRefused: a dangerous place, or one that is another area already; `reason` says which.
    """
    uuid = str(UUID(str(area_uuid)))
    fd = _open_place(path, forbidden=forbidden, permitted=permitted, new=True)
    try:
        found = _read_marker(fd)
        if found is None:
            _write_marker(fd, uuid)
            found = _read_marker(fd)
        if found != uuid:
            raise AreaRefused("other_area", f"{os.fsdecode(path)} is already the area {found}")
        return Registration(path=os.fsdecode(path), uuid=uuid, device=os.fstat(fd).st_dev)
    finally:
        os.close(fd)


def _open_place(
    path: AnyPath, *, forbidden: Iterable[AnyPath], permitted: Iterable[AnyPath], new: bool
) -> int:
    """Check the place and open it; the returned descriptor is the directory that was checked."""
    place = Path(os.fsdecode(path))
    check_place(
        place,
        forbidden=[Path(os.fsdecode(tree)) for tree in forbidden],
        permitted=[Path(os.fsdecode(tree)) for tree in permitted],
        mounts=new,
    )
    try:
        return os.open(place, DIRECTORY)
    except OSError as error:
        raise AreaRefused("unreadable", f"{place} cannot be opened: {error.strerror}") from error


def _write_marker(fd: int, uuid: str) -> None:
    """Write the marker whole or not at all: under a name of its own first, then renamed to the free name."""
    draft = MARKER + b"." + uuid.encode() + b".new"
    marker = os.open(
        draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=fd
    )
    try:
        os.write(marker, json.dumps({"area": uuid, "version": 1}).encode() + b"\n")
        os.fsync(marker)
    finally:
        os.close(marker)
    crash_point("area.before_marker")
    try:
        rename_new(fd, draft, fd, MARKER)
    except FileExistsError:
        # Another process registered the directory meanwhile; its marker is read next, and counts.
        os.unlink(draft, dir_fd=fd)
    crash_point("area.after_marker")
    os.fsync(fd)


def _read_marker(fd: int) -> str | None:
    """Return the uuid in the marker, or None if there is none.

    Raises:
        AreaRefused: there is one that is not ours to understand.
    """
    try:
        marker = os.open(MARKER, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=fd)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise AreaRefused("marker_invalid", f"the marker cannot be read: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(marker).st_mode):
            raise AreaRefused("marker_invalid", "the marker is not a regular file")
        return _parse_marker(os.read(marker, _MAX_MARKER))
    finally:
        os.close(marker)


def marker_uuid(path: AnyPath) -> str | None:
    """Return the uuid in the marker of the directory `path`; None without a directory or a marker.

    Raises:
        AreaRefused: a link, or a marker that holds no uuid.
    """
    try:
        fd = os.open(path, DIRECTORY)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise AreaRefused("unreadable", f"{os.fsdecode(path)} cannot be opened: {error.strerror}") from error
    try:
        return _read_marker(fd)
    finally:
        os.close(fd)


def _parse_marker(data: bytes) -> str:
    try:
        return str(UUID(json.loads(data)["area"]))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise AreaRefused("marker_invalid", "the marker holds no area uuid") from error


class AreaHandle:
    """An open area. Close it, or use it in a ``with`` statement."""

    def __init__(self, *, fd: int, path: str, uuid: str) -> None:
        """Take over `fd`; use `open_area`, which checks first."""
        self.fd = fd
        self.path = path
        self.uuid = uuid
        self.device = os.fstat(fd).st_dev

    def __enter__(self) -> "AreaHandle":
        """Return the handle itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the area."""
        self.close()

    def close(self) -> None:
        """Release the descriptor, and with it a lock that is still held."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def open(self, path: bytes, flags: int = DIRECTORY) -> int:
        """Open `path` below the area, never through a link or a mount point; b"" is the area itself.

        Raises:
            OSError: as `cleanup.engine.kernel.open_beneath`.
        """
        return open_beneath(self.fd, path, flags)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the area for this process while files are moved.

        It is an flock on the directory, so systemd-tmpfiles keeps away from it as well. A process that was
        paused and whose lease has passed to another cannot get it back.

        Raises:
            AreaBusy: somebody else holds it.
        """
        fd = os.open(b".", DIRECTORY, dir_fd=self.fd)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise AreaBusy(f"another process is working in {self.path}") from error
            yield
        finally:
            os.close(fd)


def open_area(
    path: AnyPath,
    *,
    uuid: UUID | str,
    device: int | None = None,
    forbidden: Sequence[AnyPath] = (),
    permitted: Sequence[AnyPath] = (),
) -> AreaHandle:
    """Open a registered area and make sure that it is the one.

    Args:
        path: absolute.
        uuid: which the marker must hold.
        device: which the directory must be on, if known from `register_area`.
        forbidden: as for `register_area`.
        permitted: as for `register_area`.

    Raises:
        AreaRefused: `reason` is ``missing``, ``symlink``, ``marker_missing``, ``other_area``,
        ``other_device`` …
    """
    expected = str(UUID(str(uuid)))
    fd = _open_place(path, forbidden=forbidden, permitted=permitted, new=False)
    try:
        _check_identity(fd, os.fsdecode(path), expected, device)
        return AreaHandle(fd=fd, path=os.fsdecode(path), uuid=expected)
    except BaseException:
        os.close(fd)
        raise


def unregister_area(area: AreaHandle) -> None:
    """Take the marker away, durably: the directory is then like any other. Its trash must be gone before."""
    os.unlink(MARKER, dir_fd=area.fd)
    os.fsync(area.fd)


def _check_identity(fd: int, path: str, uuid: str, device: int | None) -> None:
    found = _read_marker(fd)
    if found is None:
        raise AreaRefused("marker_missing", f"{path} has no {MARKER.decode()} file: is its disk mounted?")
    if found != uuid:
        raise AreaRefused("other_area", f"{path} is the area {found}, not {uuid}")
    if device is not None and os.fstat(fd).st_dev != device:
        raise AreaRefused("other_device", f"{path} is on another device than when it was registered")
