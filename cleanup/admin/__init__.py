"""The pages of cleanup in the console: what is governed, what would go, what went, and the proof.

Each change is one verb of `cleanup.operations` with the person as the actor, asked for on a page of its own
(`bus.console`). A page states bytes and files together, and calls things by their names: files are trashed,
then purged.
"""

from __future__ import annotations

from cleanup.admin import (
    areas,
    audit,
    explain,
    files,
    holds,
    orders,
    orphans,
    policies,
    previews,
    runs,
    sources,
    trash,
    uploads,
    verifiers,
    versions,
)

__all__ = [
    "areas",
    "audit",
    "explain",
    "files",
    "holds",
    "orders",
    "orphans",
    "policies",
    "previews",
    "runs",
    "sources",
    "trash",
    "uploads",
    "verifiers",
    "versions",
]
