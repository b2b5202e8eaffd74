"""The fast part of a walk: files that plainly stay are counted and never become candidates.

In most areas most files are young, and a policy by age without patterns keeps them for one reason that three
numbers of a stat result tell. `Sieve` recognises exactly those and lets everything else through, to be looked
at and judged in full; in doubt it lets through. So a plan is the same with it as without, only sooner.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from stat import S_ISREG

from cleanup.engine.policy import AgeLimit, Policy

#: More links than any file has.
_ANY = 1 << 62


class Sieve:
    """Counts the files that are younger than a policy's age."""

    def __init__(self, policy: Policy, *, now: datetime, show: int = 0) -> None:
        """Take the cut-off of a policy that `sieve_for` found fit."""
        limit = AgeLimit(policy, now=now)
        self._to = limit.now_ns
        #: Without a cut-off nothing is young.
        self._from = self._to + 1 if limit.cutoff_ns is None else limit.cutoff_ns
        self._links = _ANY if policy.allow_hardlinks else 1
        #: How many are let through all the same, as examples of what stays.
        self._show = show
        self.files = self.bytes = 0
        #: Told now and then how many were counted, so that a long walk can say that it lives.
        self.on_count: Callable[[int], None] | None = None

    def rest(self, entries: "Iterable[os.DirEntry[str]]", device: int) -> "Iterator[os.DirEntry[str]]":
        """Count the entries of a directory on `device` that plainly stay, and yield the others.

        Raises:
            OSError: the directory cannot be read to its end.
        """
        begin, end, links = self._from, self._to, self._links
        files = size = 0
        try:
            for entry in entries:
                # A leading dot may be one of the engine's own names.
                if entry.name[0] != "." and not entry.is_dir(follow_symlinks=False):
                    try:
                        found = entry.stat(follow_symlinks=False)
                    except OSError:
                        yield entry
                        continue
                    if (
                        begin <= found.st_mtime_ns <= end
                        and found.st_nlink <= links
                        and S_ISREG(found.st_mode)
                        and found.st_dev == device
                    ):
                        if self._show <= 0:
                            files += 1
                            size += found.st_size
                            continue
                        self._show -= 1
                yield entry
        finally:
            self.files += files
            self.bytes += size
        if self.on_count is not None:
            self.on_count(self.files)


def sieve_for(policy: Policy, *, now: datetime, show: int = 0) -> Sieve | None:
    """Return a sieve if `policy` keeps young files for no other reason than that, else None.

    Args:
        policy: validated.
        now: with a zone; the moment against which candidates are judged.
        show: how many of the files are let through all the same.
    """
    plain = policy.rule == "age" and policy.unit == "file" and policy.age_by == frozenset("m")
    if not plain or policy.age is None or policy.include or policy.exclude:
        return None
    return Sieve(policy, now=now, show=show)
