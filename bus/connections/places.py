"""How many connections there are, and whether there is room: in the process, for a person, an address.

A place is taken before the rows of a connection are written and is free again when the connection is
forgotten, so that connections which come at once cannot slip past a limit together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from bus.conf import conf
from bus.connections.leases import Details
from bus.metrics import REFUSED
from bus.protocol.errors import Disconnect, DisconnectCode


class Places:
    """The places of one process.

    Args:
        most: gives how many there are.
    """

    def __init__(self, most: Callable[[], int]) -> None:
        self._most = most
        self._taken = 0
        self._users: Counter[str] = Counter()
        self._addresses: Counter[str] = Counter()

    def take(self, details: Details, *, replaces: bool) -> None:
        """Take a place.

        Args:
            details: for whom.
            replaces: its agent is here already, and that place is free soon.

        Raises:
            Disconnect: there is none.
        """
        if not replaces:
            self._check(details)
        self._taken += 1
        if user := _person(details):
            self._users[user] += 1
        if details.address:
            self._addresses[details.address] += 1

    def free(self, details: Details) -> None:
        """Give a place back."""
        self._taken -= 1
        _less(self._users, _person(details))
        _less(self._addresses, details.address)

    def _check(self, details: Details) -> None:
        options = conf()
        if self._taken >= self._most():
            _refuse("server", f"this server takes {self._most()}")
        per_user, per_address = options.max_connections_per_user, options.max_connections_per_address
        if self._users[_person(details)] >= per_user:
            _refuse("user", f"a user has at most {per_user}")
        if per_address is not None and self._addresses[details.address] >= per_address:
            _refuse("address", f"an address has at most {per_address}")


def _person(details: Details) -> str:
    """Return who is limited as a person; an agent has one connection anyway."""
    return "" if details.agent_id else details.user_id


def _less(counter: Counter[str], name: str) -> None:
    if not name:
        return
    counter[name] -= 1
    if counter[name] <= 0:
        del counter[name]


def _refuse(whose: str, why: str) -> None:
    REFUSED.labels(whose).inc()
    raise Disconnect(DisconnectCode.CONNECTION_LIMIT, f"{DisconnectCode.CONNECTION_LIMIT.reason}: {why}")
