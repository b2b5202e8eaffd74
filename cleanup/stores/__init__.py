"""The engine's contracts kept in the database: the audit chain, plans, items on their way, leases.

Operations decide what is done and in which transaction; the modules here know how it is stored, on SQLite and
on PostgreSQL, in raw statements where thousands of rows change together. `audit` is also published on
`cleanup:audit`. Nothing here touches a staging area.
"""

from cleanup.stores.audit import Actor, DatabaseAuditSink, entries, record

__all__ = ["Actor", "DatabaseAuditSink", "entries", "record"]
