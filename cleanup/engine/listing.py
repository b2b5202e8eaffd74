"""The names of all files below an open area, in the order of their escaped paths, without a look at any file.

A directory sorts as its name with a slash behind it, so a walk that descends at that place gives whole
paths in order: `a.b`, `a/b`, `a0`. Only the names of the directories on the way down are held. Directories
are opened as `cleanup.engine.scan` opens them: below the area, through no link, across no mount. What could
not be looked into, or is no regular file, is `opaque`: nobody can say that a file is missing there.
"""

import os
from collections.abc import Callable, Iterator
from itertools import islice

from cleanup.engine.area import MARKER, AreaHandle
from cleanup.engine.kernel import birth_ns
from cleanup.engine.names import escape, is_internal, unescape
from cleanup.engine.policy import Stat
from cleanup.engine.scan import stat_of

#: Paths that are handed on together.
PAGE = 5_000

#: Entries of a directory looked at together.
_ENTRIES = 1_000

_MARKER = os.fsdecode(MARKER)

Beat = Callable[[int], None]


class Listing:
    """One walk of an area. Iterate over it once."""

    def __init__(self, area: AreaHandle, *, beat: Beat | None = None) -> None:
        """Walk `area`; `beat` is called after each page with the number of files, and may raise."""
        self._area, self._beat = area, beat
        #: Escaped paths of which nothing is known, and nothing of what lies below them.
        self.opaque: set[str] = set()

    def __iter__(self) -> Iterator[list[str]]:
        """Yield pages of escaped paths, ascending.

        Raises:
            OSError: the area itself cannot be read.
        """
        page, count = list[str](), 0
        pending: list[str | list[str]] = [""]
        while pending:
            next_one = pending.pop()
            if isinstance(next_one, str):
                pending.extend(reversed(self._runs(next_one)))
                continue
            page += next_one
            if len(page) >= PAGE:
                count += len(page)
                if self._beat is not None:
                    self._beat(count)
                yield page
                page = []
        yield page

    def hides(self, path: str) -> bool:
        """Whether `path` lies where the walk could not look."""
        at = len(path)
        while at > 0:
            if path[:at] in self.opaque:
                return True
            at = path.rfind("/", 0, at)
        return False

    def _runs(self, directory: str) -> list[str | list[str]]:
        """Return what is in `directory`, in order: runs of files, and directories by their paths."""
        try:
            fd = self._area.open(unescape(directory))
            try:
                names = self._names(fd, directory)
            finally:
                os.close(fd)
        except OSError:
            if not directory:
                raise
            self.opaque.add(directory)
            return []
        return _in_order(names, f"{directory}/" if directory else "")

    def _names(self, fd: int, directory: str) -> list[str]:
        """Return the escaped names in an open directory, those of directories with a slash behind."""
        files, directories, others = list[str](), list[str](), list[str]()
        with os.scandir(fd) as entries:
            # In comprehensions, since nearly everything is a file: a loop takes twice as long.
            while part := [*islice(entries, _ENTRIES)]:
                plain = [entry.name for entry in part if entry.is_file(follow_symlinks=False)]
                files += plain
                if len(plain) < len(part):
                    rest = [entry for entry in part if not entry.is_file(follow_symlinks=False)]
                    directories += [entry.name for entry in rest if entry.is_dir(follow_symlinks=False)]
                    others += [entry.name for entry in rest if not entry.is_dir(follow_symlinks=False)]
        if directory and any(_MARKER in names for names in (files, directories, others)):
            self.opaque.add(directory)  # an area of its own
            return []
        prefix = f"{directory}/" if directory else ""
        self.opaque.update(prefix + name for name in _escaped(others))
        return _escaped(files) + [f"{name}/" for name in _escaped(directories)]


def _escaped(names: list[str]) -> list[str]:
    """Return names as the registry writes them, without the engine's own."""
    together = "".join(names)
    if "." in together:
        names = [name for name in names if name[0] != "." or not is_internal(os.fsencode(name))]
    if together.isascii() and together.isprintable() and "\\" not in together:
        return names
    return [escape(os.fsencode(name)) for name in names]


def _in_order(names: list[str], prefix: str) -> list[str | list[str]]:
    names.sort()
    runs = list[str | list[str]]()
    run = list[str]()
    for name in names:
        if name[-1] != "/":
            run.append(prefix + name)
            continue
        if run:
            runs.append(run)
            run = []
        runs.append(prefix + name[:-1])
    if run:
        runs.append(run)
    return runs


class Looker:
    """Looks at single files of an area, directory by directory."""

    def __init__(self, area: AreaHandle, *, births: bool = False) -> None:
        """Look below `area`, at birth times too if `births`; to be used in a ``with`` statement."""
        self._area, self._births = area, births
        self._directory: bytes | None = None
        self._fd = -1

    def __enter__(self) -> "Looker":
        """Return the looker itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the directory at hand."""
        if self._fd >= 0:
            os.close(self._fd)
        self._directory, self._fd = None, -1

    def stat(self, path: bytes) -> Stat:
        """Return what stands under `path`; paths of one directory are best asked together.

        Raises:
            OSError: nothing, or nothing that can be reached without a link or a mount.
        """
        directory, _, name = path.rpartition(b"/")
        if directory != self._directory:
            self.__exit__()
            self._fd = self._area.open(directory)
            self._directory = directory
        found = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        return stat_of(found, birth_ns(self._fd, name) if self._births else None)

    def is_gone(self, path: bytes) -> bool:
        """Whether nothing at all has the name `path`. In doubt it is there."""
        try:
            self.stat(path)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return False
