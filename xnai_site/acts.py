"""What operators do to the bus goes into the audit of cleanup, the one record of who did what.

`bus.acts` tells within the transaction of each change; the entry is written in the same. An audit that cannot
be continued therefore refuses the change, in the bus's words.
"""

from __future__ import annotations

from typing import Any

from bus.acts import Act, acted
from bus.protocol.errors import NotAvailable
from cleanup.engine.errors import AuditInvalid
from cleanup.stores import Actor, DatabaseAuditSink, record
from cleanup.stores.sql import database_now


def write_down(act: Act, **_: Any) -> None:
    """Append an act to the audit. The target is where a file's path would be.

    Raises:
        NotAvailable: the audit is not to be continued.
    """
    entry = record(
        Actor(name=act.operator.name, kind=act.operator.kind),
        act.action,
        now=database_now(),
        path=act.target,
        reason=act.reason,
        evidence={name: value for name, value in act.facts.items() if value is not None},
    )
    try:
        DatabaseAuditSink().write([entry])
    except AuditInvalid as error:
        raise NotAvailable(f"not done, for it could not be recorded: {error}") from error


acted.connect(write_down, dispatch_uid="xnai_site.acts")
