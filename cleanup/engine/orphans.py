"""Files without a row and rows without a file: who has no partner, and since when.

Two sorted streams of escaped paths are merged page by page, so a million of each need the memory of two
pages. An orphan counts only when it was seen twice, far enough apart, as the very same file or row: each scan
carries the first sightings of the one before on. A scan that finds too many orphans is refused, since then
most likely the registry or the mount is wrong. Nothing here touches a disk, a database or a clock.
"""

import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta

import msgspec

from cleanup.engine.errors import EngineError

#: More than this share of the files, or of the rows, are no orphans: the registry was restored from a backup,
#: another disk is mounted, a path was changed.
MAX_PERCENT = 20

#: So few orphans may be a larger share: an area of ten files can have three orphans.
FEW = 5


#: Paths compared at once where two pages differ.
_RUN = 50


class OrderBroken(EngineError):
    """A stream is not sorted: whoever merged it would take partners for orphans."""

    code = "order_broken"


class Sighting(msgspec.Struct, frozen=True, array_like=True):
    """One orphan, and since when it has been one."""

    path: str  #: escaped
    identity: tuple[int, ...]  #: of a file: inode, size, mtime_ns; of a row: its key
    first_seen: datetime

    def confirmed(self, *, now: datetime, gap: timedelta) -> bool:
        """Whether who sees it again at `now` has seen it twice, far enough apart."""
        return now - self.first_seen >= gap


class _Stream:
    """One side of the comparison: pages of sorted paths, each path once."""

    def __init__(self, pages: Iterable[Sequence[str]]) -> None:
        self.pages = iter(pages)
        self.page: Sequence[str] = ()
        self.at = 0
        self.last = ""
        self.count = 0

    def fill(self) -> bool:
        """Have something at hand; False at the end."""
        while self.at >= len(self.page):
            page = next(self.pages, None)
            if page is None:
                return False
            if page:
                self.check(page)
                # Two rows of one path may stand on both sides of the cut.
                self.page, self.at = page, bisect_right(page, self.last) if self.last else 0
        return True

    def check(self, page: Sequence[str]) -> None:
        if page[0] < self.last or sorted(page) != list(page):
            raise OrderBroken(f"paths are not in the order of their bytes, near {page[0]!r}")

    def end(self) -> str:
        return self.page[-1]

    def take(self, up_to: str) -> Sequence[str]:
        """Return what is at hand and not above `up_to`."""
        if not self.fill():
            return ()
        whole = self.page[-1] <= up_to
        cut = len(self.page) if whole else bisect_right(self.page, up_to, self.at)
        taken = self.page if whole and not self.at else self.page[self.at : cut]
        self.at = cut
        if taken:
            self.last = taken[-1]
        self.count += len(taken)
        return taken


class Comparison:
    """The merge of an area's files with the rows of its registry."""

    def __init__(self, files: Iterable[Sequence[str]], rows: Iterable[Sequence[str]]) -> None:
        """Take two streams of pages of escaped paths, each in ascending order of code points.

        That is the order of their bytes in UTF-8 too, which SQLite's `BINARY` and PostgreSQL's `C` follow.
        """
        self._files, self._rows = _Stream(files), _Stream(rows)

    @property
    def files(self) -> int:
        """Files seen so far."""
        return self._files.count

    @property
    def rows(self) -> int:
        """Rows seen so far; two rows of one path may count once."""
        return self._rows.count

    def parts(self) -> Iterator[tuple[list[str], list[str]]]:
        """Yield, in ascending order, files without a row and rows without a file.

        Raises:
            OrderBroken: a stream was not sorted.
        """
        files, rows = self._files, self._rows
        while True:
            ends = [one.end() for one in (files, rows) if one.fill()]
            if not ends:
                return
            there, known = files.take(min(ends)), rows.take(min(ends))
            without_row, without_file = list[str](), list[str]()
            for some, others in _differing(there, known):
                names, paths = set(some), set(others)
                without_row += sorted(names - paths)
                without_file += sorted(paths - names)
            if without_row or without_file:
                yield without_row, without_file


def _differing(there: Sequence[str], known: Sequence[str]) -> Iterator[tuple[Sequence[str], Sequence[str]]]:
    """Cut two sorted lists at the same places, and yield only the pairs of runs that are not equal.

    Comparing lists is three times as fast as making sets of them, and most runs are equal.
    """
    if there == known:
        return
    at = 0
    for start in range(0, len(there), _RUN):
        run = there[start : start + _RUN]
        end = bisect_right(known, run[-1], at)
        if run != known[at:end]:
            yield run, known[at:end]
        at = end
    if at < len(known):
        yield (), known[at:]


def refusal(*, files: int, rows: int, without_row: int, without_file: int) -> str | None:
    """Say why a scan with these figures cannot be trusted; None if it can.

    Args:
        files: in the area.
        rows: living ones in its registry.
        without_row: of the files.
        without_file: of the rows.
    """
    if files and not rows:
        return f"the registry knows none of the {files} files: it is most likely not the area's registry"
    if rows and not files:
        return f"none of the {rows} registered files is there: it is most likely not the right disk"
    for part, whole, what in ((without_row, files, "files"), (without_file, rows, "rows")):
        if part > FEW and 100 * part > MAX_PERCENT * whole:
            return (
                f"{part} of {whole} {what} are orphans, more than {MAX_PERCENT} %: "
                "most likely the registry or the mount is wrong"
            )
    return None


class Memory:
    """What the scan before has seen: an orphan that it saw already has been one since then."""

    def __init__(self, before: Iterable[Sighting]) -> None:
        """Remember `before`, sorted by path and identity."""
        self._before = iter(before)
        self._old = next(self._before, None)

    def dated(self, seen: Iterable[Sighting]) -> Iterator[Sighting]:
        """Yield what is `seen` now, sorted as well and after what was asked about before, with its true date.

        What is another file by now, or was not seen the last time, begins anew.
        """
        for new in seen:
            while self._old is not None and _key(self._old) < _key(new):
                self._old = next(self._before, None)
            yield self._old if self._old is not None and _key(self._old) == _key(new) else new


def _key(sighting: Sighting) -> tuple[str, tuple[int, ...]]:
    return sighting.path, sighting.identity


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Sighting])


def encode_sightings(sightings: Sequence[Sighting]) -> bytes:
    """Pack sightings for storage: MessagePack under zlib."""
    return zlib.compress(_encoder.encode(sightings), 1)


def decode_sightings(data: bytes) -> list[Sighting]:
    """Unpack what `encode_sightings` packed; of anything else nothing is known.

    A batch that cannot be read is a batch of orphans that begin anew: that keeps them longer.
    """
    try:
        return _decoder.decode(zlib.decompress(data))
    except (zlib.error, msgspec.MsgspecError, ValueError, RecursionError):
        return []
