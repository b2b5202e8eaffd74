"""Fetching a source: what is new comes whole or not at all, in bounded time and space, from where it may."""

from __future__ import annotations

import gzip
import hashlib
import resource
from dataclasses import replace
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path

import pytest

from cleanup.staging.fetching import Fetched, FetchFailed, FetchLimits, TooMuch, TooSlow, fetch
from tests.web import LOOPBACK, Visit

pytestmark = pytest.mark.sqlite_only

BODY = b"what is new\n" * 40_000
LONG = timedelta(minutes=10)
INSIDE = FetchLimits(
    max_bytes=10_000_000, total=LONG, idle=LONG, networks=tuple(ip_network(text) for text in LOOPBACK)
)


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "news.part"


def refused(url: str, part: Path, limits: FetchLimits = INSIDE) -> FetchFailed:
    """Fetch what cannot be had; nothing may be left of it."""
    with pytest.raises(FetchFailed) as failure:
        fetch(url, part=part, limits=limits)
    assert not part.exists()
    return failure.value


# What is new, and what is not


def test_what_is_new_is_written_whole_with_its_hash_and_what_the_server_says_of_it(web, part):
    web.serve("/data/notes.txt", BODY, ETag='"a1"', Last_Modified="Sun, 01 Nov 2026 10:00:00 GMT",
              Content_Type="text/plain")  # fmt: skip
    assert fetch(web.url("/data/notes.txt?day=1"), part=part, limits=INSIDE) == Fetched(
        status="new", etag='"a1"', last_modified="Sun, 01 Nov 2026 10:00:00 GMT", content_type="text/plain",
        name="notes.txt", size=len(BODY), sha256=hashlib.sha256(BODY).hexdigest(),
    )  # fmt: skip
    assert part.read_bytes() == BODY
    assert part.stat().st_mode & 0o777 == 0o600


def test_what_the_server_said_is_given_back_and_a_304_leaves_no_file(web, part):
    web.answers["/notes.txt"] = lambda visit: visit.reply(status=304)
    found = fetch(web.url(), part=part, limits=INSIDE, etag='"a1"', last_modified="yesterday")
    assert found == Fetched(status="unchanged", etag='"a1"', last_modified="yesterday")
    assert not part.exists()
    headers = web.seen[0][1]
    assert (headers["If-None-Match"], headers["If-Modified-Since"]) == ('"a1"', "yesterday")
    assert headers["Accept-Encoding"] == "identity"


def test_a_304_that_nobody_asked_for_is_no_answer(web, part):
    web.answers["/notes.txt"] = lambda visit: visit.reply(status=304)
    assert "304" in str(refused(web.url(), part))


def test_an_answer_in_chunks_comes_whole(web, part):
    def chunked(visit: Visit) -> None:
        visit.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for start in range(0, len(BODY), 50_000):
            piece = BODY[start : start + 50_000]
            visit.raw(b"%x\r\n%b\r\n" % (len(piece), piece))
        visit.raw(b"0\r\n\r\n")

    web.answers["/notes.txt"] = chunked
    assert fetch(web.url(), part=part, limits=INSIDE).size == len(BODY)
    assert part.read_bytes() == BODY


def test_an_empty_file_is_a_file(web, part):
    web.serve("/notes.txt", b"")
    assert fetch(web.url(), part=part, limits=INSIDE).size == 0
    assert part.read_bytes() == b""


def test_whoever_watches_is_told_of_every_wait_and_can_end_it(web, part):
    web.serve("/notes.txt", BODY)
    told: list[tuple[int, int | None]] = []
    fetch(web.url(), part=part, limits=INSIDE, watch=lambda *state: told.append(state))
    assert told[0] == (0, None)
    assert told[-1][1] == len(BODY)
    assert [count for count, _ in told] == sorted(count for count, _ in told)
    part.unlink()

    def stop(received: int, expected: int | None) -> None:
        if received:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(web.url(), part=part, limits=INSIDE, watch=stop)
    assert not part.exists()


# Names


@pytest.mark.parametrize(
    ("path", "name"),
    [("/a/b.csv", "b.csv"), ("/a/two%20words.txt", "two words.txt"), ("/feed/", ""), ("/feed", "feed"),
     ("/x/..%2F..%2Fetc", "../../etc")],
)  # fmt: skip
def test_a_file_is_called_as_its_address_calls_it(web, part, path, name):
    web.serve(path, b"1")
    assert fetch(web.url(path), part=part, limits=INSIDE).name == name


def test_after_a_redirect_the_name_with_an_extension_counts(web, part):
    web.answers["/latest"] = lambda visit: visit.reply(status=302, Location="/files/today.csv")
    web.serve("/files/today.csv", b"1")
    assert fetch(web.url("/latest"), part=part, limits=INSIDE).name == "today.csv"


# Answers that are none


@pytest.mark.parametrize("status", [204, 206, 400, 404, 410, 500, 503])
def test_any_other_status_is_a_failure_that_says_which(web, part, status):
    web.answers["/notes.txt"] = lambda visit: visit.reply(b"", status=status)
    assert str(status) in str(refused(web.url(), part))


def test_a_server_that_wants_to_be_left_alone_says_for_how_long(web, part):
    web.answers["/notes.txt"] = lambda visit: visit.reply(status=503, Retry_After="120")
    assert refused(web.url(), part).retry_after == timedelta(seconds=120)
    web.answers["/notes.txt"] = lambda visit: visit.reply(
        status=429, Retry_After="Fri, 01 Jan 2100 00:00:00 GMT"
    )
    assert (refused(web.url(), part).retry_after or timedelta(0)) > timedelta(days=365)
    web.answers["/notes.txt"] = lambda visit: visit.reply(status=503, Retry_After="soon")
    assert refused(web.url(), part).retry_after is None


def test_a_body_that_is_cut_off_leaves_nothing(web, part):
    web.serve("/notes.txt", BODY, Content_Length=str(len(BODY) + 1))
    assert "cut off" in str(refused(web.url(), part))


def test_chunks_that_are_cut_off_leave_nothing(web, part):
    web.answers["/notes.txt"] = lambda visit: visit.raw(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n400\r\nabc"
    )
    assert "cut off" in str(refused(web.url(), part))


def test_a_length_that_is_too_small_ends_the_file_there(web, part):
    web.serve("/notes.txt", BODY, Content_Length="10")
    assert fetch(web.url(), part=part, limits=INSIDE).size == 10
    assert part.read_bytes() == BODY[:10]


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3x\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 2\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc",
        b"garbage\r\n\r\n",
        b"",
    ],
)
def test_an_answer_whose_end_is_not_clear_is_no_answer(web, part, head):
    web.answers["/notes.txt"] = lambda visit: visit.raw(head)
    refused(web.url(), part)


def test_a_nameless_mass_of_headers_is_not_listened_to(web, part):
    def endless(visit: Visit) -> None:
        visit.raw(b"HTTP/1.1 100 Continue\r\n\r\n" * 20_000)
        visit.reply(b"abc")

    web.answers["/notes.txt"] = endless
    assert "headers have no end" in str(refused(web.url(), part))


def test_a_gzip_bomb_is_refused_before_it_unfolds(web, part):
    bomb = gzip.compress(bytes(50_000_000))
    web.serve("/notes.txt", bomb, Content_Encoding="gzip")
    assert "encoded" in str(refused(web.url(), part))


# Limits


def test_too_large_by_its_own_word_is_refused_before_a_byte_is_kept(web, part):
    web.serve("/notes.txt", b"abc", Content_Length="10000001")
    assert isinstance(refused(web.url(), part), TooMuch)


def test_too_large_in_chunks_is_cut_where_the_limit_is(web, part):
    def endless(visit: Visit) -> None:
        visit.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while not web.over.is_set():
            visit.raw(b"10000\r\n" + bytes(0x10000) + b"\r\n")

    web.answers["/notes.txt"] = endless
    failure = refused(web.url(), part, replace(INSIDE, max_bytes=1_000_000))
    assert isinstance(failure, TooMuch)
    assert "1,000,000" in str(failure)


def test_a_file_of_exactly_the_limit_is_taken(web, part):
    web.serve("/notes.txt", BODY)
    assert fetch(web.url(), part=part, limits=replace(INSIDE, max_bytes=len(BODY))).size == len(BODY)


def test_a_server_that_falls_silent_is_given_up(web, part):
    def silent(visit: Visit) -> None:
        visit.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc")
        web.over.wait()

    web.answers["/notes.txt"] = silent
    failure = refused(web.url(), part, replace(INSIDE, idle=timedelta(seconds=0.3)))
    assert isinstance(failure, TooSlow)
    assert "no byte came" in str(failure)


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"])
def test_a_slow_drip_ends_with_the_time_for_the_whole(web, part, head):
    def drip(visit: Visit) -> None:
        visit.raw(head or b"HTTP/1.1 200 OK\r\nX-Long: ")
        while not web.over.wait(0.02):
            visit.raw(b"x")

    web.answers["/notes.txt"] = drip
    failure = refused(web.url(), part, replace(INSIDE, total=timedelta(seconds=1)))
    assert isinstance(failure, TooSlow)
    assert "not done within" in str(failure)


def test_what_the_disk_refuses_is_an_error_of_the_system_and_leaves_nothing(web, part):
    web.serve("/notes.txt", BODY)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="too large") as failure:
            fetch(web.url(), part=part, limits=INSIDE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not isinstance(failure.value, FetchFailed)
    assert not part.exists()


def test_a_part_that_is_there_is_not_written_to_and_a_link_is_not_followed(web, part, tmp_path):
    web.serve("/notes.txt", BODY)
    other = tmp_path / "other"
    other.write_text("mine")
    for make in (lambda: part.symlink_to(other), lambda: part.write_text("mine")):
        make()
        with pytest.raises(FileExistsError):
            fetch(web.url(), part=part, limits=INSIDE)
        assert part.exists()
        assert other.read_text() == "mine"
        part.unlink()
