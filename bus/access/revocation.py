"""Tokens that were taken back before their time: one by its `jti`, or all that a user or an agent has.

A token carries its own proof, so nothing has to be asked to read it; what was taken back is a short list in
SQL. Each process keeps a copy, no older than `BUS["RIGHTS_INTERVAL"]`, against which tokens are held when a
client connects and, by `bus.access.rights`, for as long as it is connected. No Redis is needed for it. A user
or an agent whose tokens were revoked may come back with one that was issued later.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.db.models import Count, Max, QuerySet
from django.utils import timezone

from bus.access.proofs import Proof
from bus.conf import conf
from bus.log.threads import in_thread
from bus.models import TokenRevocation
from bus.protocol.errors import BadRequest, Unauthorized

#: `iat` has whole seconds: a token of the second in which its user was revoked is void, too.
_SECOND = timedelta(seconds=1)


@dataclass(slots=True)
class Revocations:
    """What was taken back, as this process last read it."""

    token_ids: frozenset[str] = frozenset()
    #: User or agent to the time up to which their tokens are void.
    users: dict[str, datetime] = field(default_factory=dict)
    agents: dict[str, datetime] = field(default_factory=dict)
    #: By which the list is known to have changed: how many rows, and the newest by number and by time.
    mark: tuple[int, int | None, datetime | None] = (0, None, None)
    #: Steady seconds at which it was read; minus infinity: never.
    read_at: float = float("-inf")

    def cover(self, *, token_id: str, user_id: str, agent_id: str, issued_at: datetime | None) -> bool:
        """Tell whether a token was taken back. One that does not say when it was issued is no exception."""
        if token_id and token_id in self.token_ids:
            return True
        # Nobody is named by an empty text, so none of them is in the tables.
        limits = (self.users.get(user_id), self.agents.get(agent_id))
        return any(
            limit is not None and (issued_at is None or issued_at < limit + _SECOND) for limit in limits
        )

    def covers(self, proof: Proof) -> bool:
        """Tell whether the token behind a proof was taken back."""
        who = proof.identity
        return who.kind == "token" and self.cover(
            token_id=proof.token_id,
            user_id=who.user_id,
            agent_id=who.agent_id,
            issued_at=proof.issued_at,
        )

    @property
    def is_fresh(self) -> bool:
        """Whether this process may still go by it."""
        return time.monotonic() - self.read_at < conf().rights_interval.total_seconds()


_kept = Revocations()


async def refuse_revoked(proof: Proof) -> None:
    """Refuse a token that was taken back.

    Raises:
        Unauthorized: it was.
    """
    if (await arecent()).covers(proof):
        raise Unauthorized("invalid token: it was revoked")


async def arecent() -> Revocations:
    """Return the list, no older than `BUS["RIGHTS_INTERVAL"]`."""
    if not _kept.is_fresh:
        await in_thread(current)
    return _kept


def current() -> Revocations:
    """Return the list as it is now; rows are read only if there are others than before."""
    global _kept
    began = time.monotonic()
    found = TokenRevocation.objects.aggregate(count=Count("pk"), newest=Max("pk"), latest=Max("revoked_at"))
    mark = (found["count"], found["newest"], found["latest"])
    if mark == _kept.mark:
        _kept.read_at = began
    else:
        _kept = _read(mark, began)
    return _kept


def _read(mark: tuple[int, int | None, datetime | None], began: float) -> Revocations:
    token_ids, users, agents = set[str](), dict[str, datetime](), dict[str, datetime]()
    rows = TokenRevocation.objects.order_by("revoked_at")
    for token_id, user_id, agent_id, revoked_at in rows.values_list(
        "token_id", "user_id", "agent_id", "revoked_at"
    ):
        if token_id:
            token_ids.add(token_id)
        elif user_id:
            users[user_id] = revoked_at
        else:
            agents[agent_id] = revoked_at
    return Revocations(token_ids=frozenset(token_ids), users=users, agents=agents, mark=mark, read_at=began)


def revoke(
    *,
    token_id: str = "",
    user_id: str = "",
    agent_id: str = "",
    until: datetime | None = None,
    note: str = "",
    now: datetime | None = None,
) -> TokenRevocation:
    """Take tokens back: one by its `jti`, or all that a user or an agent has been issued so far.

    Args:
        token_id: `jti` of a token; give one of the three.
        user_id: `sub` of tokens.
        agent_id: `agent` of tokens.
        until: when those tokens have expired by themselves, so that it can be forgotten. None: never.
        note: why, for people.
        now: the time.

    Raises:
        BadRequest: not one of the three was given.
    """
    if sum(map(bool, (token_id, user_id, agent_id))) != 1:
        raise BadRequest("revoke what? give one of: the id of a token, a user, an agent")
    moment = now or timezone.now()
    return TokenRevocation.objects.create(
        token_id=token_id,
        user_id=user_id,
        agent_id=agent_id,
        revoked_at=moment,
        expires_at=until,
        note=note,
    )


def take_back(rows: QuerySet[TokenRevocation]) -> int:
    """Let tokens count again; return how many revocations went."""
    return rows.delete()[0]


def purge(now: datetime) -> int:
    """Forget what is over: the tokens have expired by themselves. Returns how many rows went."""
    return TokenRevocation.objects.filter(expires_at__lte=now).delete()[0]
