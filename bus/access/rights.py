"""Whether live connections may still do what they do: keys, tokens, sessions and users, looked up anew.

`verdicts` takes the proofs of all connections of a process and asks SQL a fixed number of questions, however
many connections there are; the manager calls it every `BUS["RIGHTS_INTERVAL"]`. So what was revoked, edited
or logged out ends within five seconds on every server, with no word from Redis. A proof that has changed
comes back as it is now; the connection leaves the topics that it may not read any more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TypeAlias, runtime_checkable

from django.utils import timezone

from bus.access.keys import current_keys
from bus.access.logins import current_logins
from bus.access.proofs import Proof
from bus.access.revocation import Revocations, current
from bus.conf import conf
from bus.log.threads import in_thread
from bus.protocol.errors import Disconnect, DisconnectCode


@runtime_checkable
class Proven(Protocol):
    """A connection whose rights can change while it lives."""

    #: Who it is; None until that is known.
    proof: Proof | None

    @property
    def can_refresh(self) -> bool:
        """Whether it can bring a new token in time; if so, it watches the end of the old one itself."""

    def rights_changed(self, proof: Proof) -> None:
        """Go on with other rights: leave what they do not allow."""

    def tokens_revoked(self, revoked: Revocations) -> None:
        """Leave the topics whose subscription tokens were taken back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A proof that a live connection goes by."""

    proof: Proof
    can_refresh: bool


#: Close it, or go on with these rights.
Verdict: TypeAlias = Disconnect | Proof


def verdicts(held: Mapping[str, Held], *, now: datetime) -> tuple[dict[str, Verdict], Revocations]:
    """Look up what live connections go by.

    Args:
        held: client id to what it has proved.
        now: the time.

    Returns:
        Client id to the verdict, for those of which anything has changed; and the tokens taken back.
    """
    proofs = [each.proof for each in held.values()]
    keys = current_keys({proof.key_prefix for proof in proofs} - {""}, now=now)
    logins = current_logins({proof.session_key for proof in proofs} - {""}, now=now)
    revoked = current()
    found: dict[str, Verdict] = {}
    for client_id, each in held.items():
        verdict = _verdict(each, keys, logins, revoked, now)
        if verdict != each.proof:
            found[client_id] = verdict
    return found, revoked


def _verdict(
    held: Held, keys: Mapping[str, Proof], logins: Mapping[str, Proof], revoked: Revocations, now: datetime
) -> Verdict:
    proof = held.proof
    if proof.key_prefix:
        return keys.get(proof.key_prefix) or _over("the API key was revoked or has expired")
    if proof.session_key:
        return logins.get(proof.session_key) or _over("the session is over")
    if revoked.covers(proof):
        return _over("it was revoked")
    if not held.can_refresh and proof.expires_at is not None and proof.expires_at <= now:
        return Disconnect(DisconnectCode.EXPIRED)
    return proof


def _over(why: str) -> Disconnect:
    return Disconnect(DisconnectCode.INVALID_TOKEN, f"{DisconnectCode.INVALID_TOKEN.reason}: {why}")


class Watch:
    """Looks after the rights of the live connections of one process."""

    def __init__(self) -> None:
        #: Steady seconds at which it looked last.
        self._looked = float("-inf")

    async def look(
        self, connections: Mapping[str, object], close: Callable[[str, Disconnect], object]
    ) -> None:
        """Look up what connections go by, unless that was done a moment ago, and tell them.

        Args:
            connections: client id to the connection, as it is now.
            close: called with client id and reason of those whose proof does not hold any more.
        """
        began = time.monotonic()
        if began - self._looked < conf().rights_interval.total_seconds():
            return
        self._looked = began
        proven = {client: each for client, each in connections.items() if isinstance(each, Proven)}
        held = {
            client: Held(proof=each.proof, can_refresh=each.can_refresh)
            for client, each in proven.items()
            if each.proof is not None
        }
        if not held:
            return
        found, revoked = await in_thread(verdicts, held, now=timezone.now())
        for client, verdict in found.items():
            if proven[client].proof is not held[client].proof:
                continue  # it has proved itself anew in the meantime
            if isinstance(verdict, Disconnect):
                close(client, verdict)
            else:
                proven[client].rights_changed(verdict)
        for client in held:
            proven[client].tokens_revoked(revoked)
