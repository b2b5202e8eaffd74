"""Subscriptions that a token has granted, and when they end.

One `Grants` belongs to one connection. A subscription token opens one topic to one user until it expires; a
client that refreshes it in time reads on, one that does not is let go a short grace later, so that a refresh
under way is not cut off. Whatever ends the subscription ends the timer: an old token never ends a newer
subscription. As a container it holds the topics that a token opens now.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from django.utils import timezone

from bus.access.permissions import Identity, check
from bus.access.revocation import Revocations
from bus.access.tokens import Permit, read_subscription_token
from bus.conf import conf
from bus.protocol.errors import Unauthorized

#: The longest that a timer of the event loop is set to (s); a connection does not live that long.
FAR = 1_000_000.0


class Grants:
    """See the module.

    Args:
        loop: runs the timers.
        end: called with a topic when the time of its token is over.
    """

    __slots__ = ("_end", "_loop", "_permits", "_timers")

    def __init__(self, loop: asyncio.AbstractEventLoop, end: Callable[[str], None]) -> None:
        self._loop = loop
        self._end = end
        self._permits: dict[str, Permit] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def __contains__(self, topic: object) -> bool:
        return topic in self._permits

    def take(self, identity: Identity, topic: str, token: str, *, client: str, revoked: Revocations) -> int:
        """Check the right to read a topic, by the token if there is one.

        Args:
            identity: who wants to read.
            topic: what.
            token: a subscription token, or nothing.
            client: the connection.
            revoked: the tokens that were taken back.

        Returns:
            For how many seconds the token grants it; 0: without end.

        Raises:
            PermissionDenied: there is no token, and the rules do not grant it; or the topic is out of reach.
            Unauthorized: the token is not one of ours, not for this, or was revoked.
            TokenExpired: its time is over.
        """
        if not token:
            check(identity, "subscribe", topic)
            self.forget(topic)
            return 0
        permit = _permit(identity, topic, token, client=client)
        if _covers(revoked, permit, identity):
            raise Unauthorized("invalid token: it was revoked")
        self.forget(topic)
        self._permits[topic] = permit
        if permit.expires_at is None:
            return 0
        left = (permit.expires_at - timezone.now()).total_seconds()
        self._timers[topic] = self._loop.call_later(
            min(left + conf().expiry_grace.total_seconds(), FAR), partial(self._expired, topic)
        )
        return max(1, round(left))

    def revoked(self, revoked: Revocations, identity: Identity) -> list[str]:
        """Return the topics whose tokens were taken back."""
        return [topic for topic, permit in self._permits.items() if _covers(revoked, permit, identity)]

    def _expired(self, topic: str) -> None:
        self.forget(topic)
        self._end(topic)

    def forget(self, topic: str) -> None:
        """Stop the timer of a topic whose subscription has ended, or is granted anew."""
        self._permits.pop(topic, None)
        timer = self._timers.pop(topic, None)
        if timer is not None:
            timer.cancel()

    def clear(self) -> None:
        """Stop all timers: the connection ends."""
        for topic in list(self._permits):
            self.forget(topic)


def _permit(identity: Identity, topic: str, token: str, *, client: str) -> Permit:
    subject = identity.user_id or identity.agent_id
    permit = read_subscription_token(token, topic=topic, subject=subject, client=client)
    check(identity, "subscribe", topic, by_token=(topic,))
    return permit


def _covers(revoked: Revocations, permit: Permit, identity: Identity) -> bool:
    return revoked.cover(
        token_id=permit.token_id,
        user_id=identity.user_id,
        agent_id=identity.agent_id,
        issued_at=permit.issued_at,
    )
