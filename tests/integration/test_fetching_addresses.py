"""Where a source may be fetched from: public hosts, whatever names, redirects and spellings say."""

from __future__ import annotations

import datetime
import socket
import ssl
from collections.abc import Iterator
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cleanup.staging.addresses import AddressRefused, NameUnknown, follow, may_be_fetched, parse
from cleanup.staging.fetching import FetchFailed, FetchLimits, fetch
from tests.web import LOOPBACK, Web

pytestmark = pytest.mark.sqlite_only

BODY = b"what is new\n" * 40_000
LONG = timedelta(minutes=10)
INSIDE = FetchLimits(
    max_bytes=10_000_000, total=LONG, idle=LONG, networks=tuple(ip_network(text) for text in LOOPBACK)
)
OUTSIDE = FetchLimits(max_bytes=10_000_000, total=LONG, idle=LONG)


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "news.part"


def refused(url: str, part: Path) -> FetchFailed:
    """Fetch what cannot be had; nothing may be left of it."""
    with pytest.raises(FetchFailed) as failure:
        fetch(url, part=part, limits=INSIDE)
    assert not part.exists()
    return failure.value


# Redirects


def test_five_redirects_are_followed_and_a_sixth_is_not(web, part):
    for number in range(6):
        web.answers[f"/{number}"] = lambda visit, to=number + 1: visit.reply(status=302, Location=f"/{to}")
    web.serve("/6", b"there")
    assert fetch(web.url("/1"), part=part, limits=INSIDE).size == 5
    part.unlink()
    assert "more than 5 times" in str(refused(web.url("/0"), part))


def test_a_loop_of_redirects_ends(web, part):
    web.answers["/a"] = lambda visit: visit.reply(status=301, Location="/a")
    assert "more than 5 times" in str(refused(web.url("/a"), part))
    assert len(web.seen) == 6


@pytest.mark.parametrize(
    "location",
    [
        "http://10.0.0.1/", "http://169.254.169.254/latest/meta-data/", "http://[::1]/", "//10.1.2.3/x",
        "http://[::ffff:10.0.0.1]/", "file:///etc/passwd", "gopher://127.0.0.1/", "ftp://127.0.0.1/x",
        "http://user:pw@127.0.0.1/", "http://192.168.1.1:80/", "http://0.0.0.0/",
        "http://[broken/",
    ],
)  # fmt: skip
def test_a_redirect_to_where_nobody_may_go_is_refused(web, part, location):
    web.answers["/notes.txt"] = lambda visit: visit.reply(status=302, Location=location)
    with pytest.raises(AddressRefused):
        fetch(web.url(), part=part, limits=INSIDE)
    assert len(web.seen) == 1
    assert not part.exists()


def test_a_redirect_does_not_leave_https():
    secure = parse("https://news.example/a")
    assert follow(secure, "/b").url == "https://news.example/b"
    with pytest.raises(AddressRefused, match="https to http"):
        follow(secure, "http://news.example/b")
    with pytest.raises(AddressRefused):
        follow(secure, "file:///etc/passwd")


# Addresses


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "[::1]", "169.254.169.254", "10.0.0.1", "172.16.0.1", "192.168.0.1",
        "100.64.0.1", "0.0.0.0", "255.255.255.255", "224.0.0.1", "192.0.2.1", "198.18.0.1", "240.0.0.1",  # noqa: S104
        "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0", "[::]", "[fe80::1]", "[fc00::1]", "[ff02::1]",
        "[::ffff:127.0.0.1]", "[::127.0.0.1]", "[2002:7f00:1::]", "[64:ff9b::7f00:1]", "[64:ff9b:1::1]",
        "[2001:0:a00:1::1]", "[2001:db8::1]", "[fe80::1%25eth0]",
    ],
)  # fmt: skip
def test_private_addresses_are_refused_however_they_are_written(part, host):
    with pytest.raises(AddressRefused):
        fetch(f"http://{host}/", part=part, limits=OUTSIDE)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True), ("2606:2800:220:1::1", True), ("::ffff:93.184.216.34", True),
        ("64:ff9b::5db8:d822", True), ("2002:5db8:d822::1", True), ("2002:a00:1::1", False),
        ("100.127.255.255", False), ("100.128.0.1", True), ("172.32.0.1", True), ("192.88.99.1", False),
        ("4000::1", False), ("nonsense", False),
    ],
)  # fmt: skip
def test_what_is_public_is_said_address_by_address(address, public):
    assert may_be_fetched(address, ()) is public


def test_allowed_networks_open_what_they_name_and_no_more():
    allowed = (ip_network("10.1.0.0/16"), ip_network("fd00::/8"))
    assert may_be_fetched("10.1.2.3", allowed)
    assert may_be_fetched("::ffff:10.1.2.3", allowed)
    assert may_be_fetched("fd12::1", allowed)
    assert not may_be_fetched("10.2.0.1", allowed)
    assert not may_be_fetched("127.0.0.1", allowed)


@pytest.mark.parametrize(
    "url",
    [
        "", "ftp://a.example/", "file:///etc/passwd", "javascript:alert(1)", "http://", "http:///x",
        "//a.example/",
        "http://user@a.example/", "http://user:pw@a.example/", "http://@a.example/", "http://a b.example/",
        "http://a.example/\r\nHost: x", "http://a.example\\@b.example/", "http://a.example:99999/", "http://a.example:0/",
        "http://a.example:x/", "http://[::1", "http://-a.example/", "http://a/" + "x" * 2_000, "http://a\x00b/",
    ],
)  # fmt: skip
def test_what_is_no_plain_address_is_refused(url):
    with pytest.raises(AddressRefused):
        parse(url)


def test_an_address_is_quoted_and_its_fragment_stays_here():
    place = parse("HTTPS://Köln.Example:8443/ä/b c".replace(" ", "%20") + "?q=ü&x=1#top")
    assert place.url == "https://xn--kln-sna.example:8443/%C3%A4/b%20c?q=%C3%BC&x=1"
    assert parse("http://a.example").url == "http://a.example/"
    assert parse("https://a.example:443/").authority == "a.example"


def resolving(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Have names resolve to these addresses, one answer a look-up; return who was looked up."""
    asked: list[str] = []
    left = iter(answers)

    def look_up(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        return [
            (
                socket.AF_INET6 if ":" in address else socket.AF_INET,
                socket.SOCK_STREAM,
                6,
                "",
                (address, port),
            )
            for address in next(left)
        ]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asked


@pytest.mark.parametrize(
    "addresses", [["10.0.0.1"], ["93.184.216.34", "10.0.0.1"], ["::ffff:169.254.169.254"], ["fd00::1"]]
)
def test_a_name_is_refused_if_one_of_its_addresses_is_private(monkeypatch, part, addresses):
    resolving(monkeypatch, addresses)
    with pytest.raises(AddressRefused, match=r"news\.example"):
        fetch("http://news.example/", part=part, limits=OUTSIDE)


def test_a_name_is_looked_up_once_and_what_was_checked_is_what_is_asked(monkeypatch, web, part):
    asked = resolving(monkeypatch, ["127.0.0.1"], ["10.0.0.1"])
    web.serve("/notes.txt", BODY)
    assert fetch(web.url(host="news.example"), part=part, limits=INSIDE).size == len(BODY)
    assert asked == ["news.example"]
    assert web.seen[0][1]["Host"] == f"news.example:{web.port}"


def test_a_name_that_leads_nowhere_may_lead_somewhere_later(monkeypatch, part):
    resolving(monkeypatch, [])
    with pytest.raises(NameUnknown) as unknown:
        fetch("http://news.example/", part=part, limits=OUTSIDE)
    assert unknown.value.retryable


def test_proxies_of_the_environment_are_not_asked(monkeypatch, web, part):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1/")
    web.serve("/notes.txt", BODY)
    assert fetch(web.url(), part=part, limits=INSIDE).size == len(BODY)


def test_a_server_that_is_not_there_is_a_failure(part):
    with socket.socket() as bound:  # bound, and nobody listens
        bound.bind(("127.0.0.1", 0))
        assert "127.0.0.1" in str(refused(f"http://127.0.0.1:{bound.getsockname()[1]}/", part))


# TLS


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for news.example, with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "news.example")])
    now = datetime.datetime.now(datetime.UTC)
    public = key.public_key()
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("news.example")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True, key_cert_sign=True, crl_sign=False, content_commitment=False,
                key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    file = tmp_path / "news.pem"
    file.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return file


@pytest.fixture
def secure(certificate: Path) -> Iterator[Web]:
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trust.load_cert_chain(certificate)
    with Web(trust) as started:
        yield started


def test_over_tls_the_name_is_proved_though_the_address_is_pinned(monkeypatch, secure, certificate, part):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    secure.serve("/notes.txt", BODY)
    resolving(monkeypatch, ["127.0.0.1"], ["127.0.0.1"])
    url = secure.url(host="news.example", scheme="https")
    assert fetch(url, part=part, limits=INSIDE).size == len(BODY)
    part.unlink()
    assert "certificate" in str(refused(url.replace("news.", "other."), part)).lower()


def test_a_certificate_that_nobody_vouches_for_is_refused(monkeypatch, secure, part):
    secure.serve("/notes.txt", BODY)
    resolving(monkeypatch, ["127.0.0.1"])
    url = secure.url(host="news.example", scheme="https")
    assert "certificate" in str(refused(url, part)).lower()
    assert not secure.seen
