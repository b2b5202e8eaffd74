"""Which addresses on the internet may be fetched: http and https to public hosts, and nothing inside.

Whoever adds a source must not gain a way to make the server call what only the server can reach. So a host is
resolved once, every address of it is looked at, and the connection goes to one of those that were looked at:
a name that points elsewhere a moment later changes nothing. An address within an address (IPv4 in IPv6, 6to4,
Teredo, NAT64) counts as the one that is reached in the end. Networks of one's own are listed in
CLEANUP["SOURCE_NETWORKS"].
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from cleanup.engine.errors import EngineError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

#: As long as the column that holds one.
MAX_URL = 2_000

_PORTS = {"http": 80, "https": 443}

#: Of a name or an IPv4 address, in whichever way it is written.
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_.])?")

#: IANA's special-purpose addresses: written out, for what Python takes for global differs by its version.
_CLOSED = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
        "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15",
        "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
        "2001::/23", "2001:db8::/32", "3fff::/20",
    )
)  # fmt: skip
#: The only IPv6 addresses that are given out to hosts.
_GLOBAL = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")


class AddressRefused(EngineError):
    """The address may not be fetched, now or ever."""

    code = "address_refused"


class NameUnknown(EngineError):
    """The name of the host leads nowhere; later it may."""

    code = "name_unknown"
    retryable = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A checked URL, in parts."""

    scheme: str
    host: str
    port: int
    #: Path and query, quoted.
    target: str

    @property
    def authority(self) -> str:
        """What the header `Host` says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The whole, as it is asked for."""
        return f"{self.scheme}://{self.authority}{self.target}"

    @property
    def name(self) -> str:
        """The last part of the path, as a file might be called; empty if it ends with a slash."""
        return unquote(self.target.partition("?")[0].rpartition("/")[2])


def parse(url: str) -> Place:
    """Take a URL apart.

    Raises:
        AddressRefused: not http or https, with a user or a password, or not a URL that every program would
            read alike.
    """
    if not url or len(url) > MAX_URL or re.search(r"[\x00-\x20\x7f\\]", url):
        raise AddressRefused(
            "an address is a URL without blanks and backslashes, of at most 2,000 characters"
        )
    try:
        split = urlsplit(url)
        port = split.port
    except ValueError as error:
        raise AddressRefused(f"this is not a URL: {error}") from error
    if split.scheme not in _PORTS:
        raise AddressRefused(f"an address begins with http:// or https://, not {split.scheme[:20]!r}")
    if "@" in split.netloc:
        raise AddressRefused(
            "an address holds no user and no password: everybody who may look would see them"
        )
    if port == 0:
        raise AddressRefused("there is no port 0")
    return Place(
        scheme=split.scheme, host=_host(split), port=port or _PORTS[split.scheme], target=_target(split)
    )


def _host(split: SplitResult) -> str:
    host = split.hostname or ""
    if ":" in host:
        return _ipv6(host)
    try:
        plain = host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError as error:
        raise AddressRefused(f"{host!r} is not the name of a host") from error
    if not _HOST.fullmatch(plain):
        raise AddressRefused(f"{host!r} is not the name of a host")
    return plain


def _ipv6(host: str) -> str:
    try:
        return str(IPv6Address(host)) if "%" not in host else _no_scope(host)
    except ValueError as error:
        raise AddressRefused(f"{host!r} is not an address") from error


def _no_scope(host: str) -> str:
    raise AddressRefused(f"{host!r} names an interface of this machine")


def _target(split: SplitResult) -> str:
    path = quote(split.path or "/", safe="/%:@!$&'()*+,;=~-._")
    query = quote(split.query, safe="/%:@!$&'()*+,;=~-._?")
    return f"{path}?{query}" if query else path


def follow(place: Place, location: str) -> Place:
    """Where a redirect from `place` leads.

    Raises:
        AddressRefused: nowhere that may be fetched; or out of https, where nobody could read along.
    """
    try:
        url = urljoin(place.url, location.strip())
    except ValueError as error:
        raise AddressRefused(f"it leads to no address: {error}") from error
    found = parse(url)
    if place.scheme == "https" and found.scheme != "https":
        raise AddressRefused("it leads from https to http")
    return found


def networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Read networks such as `10.1.0.0/16`. Raises `ValueError`."""
    return tuple(ip_network(text) for text in texts)


def resolve(place: Place, allowed: Sequence[Network]) -> list[tuple[int, tuple[str, int]]]:
    """Look the host up once; return family and socket address of each of its addresses.

    Raises:
        AddressRefused: one of them is private. One is enough: a host that is half inside is inside.
        NameUnknown: the name has no address now.
    """
    try:
        answers = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise NameUnknown(f"{place.host} has no address: {error}") from error
    found = dict.fromkeys((int(family), str(address[0])) for family, _, _, _, address in answers)
    for _, address in found:
        if not may_be_fetched(address, allowed):
            raise AddressRefused(f"{place.host} is at {address}, which is not a public address")
    if not found:
        raise NameUnknown(f"{place.host} has no address")
    return [(family, (address, place.port)) for family, address in found]


def check_literal(place: Place, allowed: Sequence[Network]) -> None:
    """Refuse a host that is written as a private address already. Names are looked up when they are asked.

    Raises:
        AddressRefused: it is one.
    """
    try:
        ip_address(place.host)
    except ValueError:
        return
    if not may_be_fetched(place.host, allowed):
        raise AddressRefused(f"{place.host} is not a public address")


def may_be_fetched(text: str, allowed: Sequence[Network]) -> bool:
    """Whether an address is public, or in one of the allowed networks."""
    try:
        address = ip_address(text)
    except ValueError:
        return False
    if getattr(address, "scope_id", None):
        return False
    return all(_is_public(one) or _is_in(one, allowed) for one in _meant(address))


def _meant(address: Address) -> Iterator[Address]:
    """The addresses that are reached by way of `address`."""
    if isinstance(address, IPv4Address):
        yield address
        return
    inner = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64:
        inner.append(IPv4Address(int(address) & 0xFFFFFFFF))
    if address.ipv4_mapped is None and address not in _NAT64:
        yield address
    yield from (one for one in inner if one is not None)


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv6Address) and address not in _GLOBAL:
        return False
    return not _is_in(address, _CLOSED)


def _is_in(address: Address, found: Sequence[Network]) -> bool:
    return any(address.version == network.version and address in network for network in found)
