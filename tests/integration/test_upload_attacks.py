"""Attacks on uploads, each refused with a clear error: nothing of them is stored, and nothing is told."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.harness import ROOT, Site
from tests.integration.test_transport import serving
from tests.servers import wait_until
from tests.uploading import (
    PART,
    Tus,
    Wire,
    checksum,
    head_of,
    is_whole,
    key,
    metadata,
    new_area,
    part_head,
    port_of,
    root,
    sha256,
    text,
    tus,
    visible,
)

__all__ = ["key", "root", "tus"]

pytestmark = pytest.mark.timeout(400)

TRAVERSALS = (
    "../../etc/passwd.txt", "..", ".", "/etc/passwd.txt", "a/b.txt", "a\\b.txt", "..\\b.txt", "x\0.txt",
    "x\n.txt", ".trash", ".staging-uploads", ".STAGING-x.txt", "%2e%2e%2f", "x" * 300 + ".txt", "",
    "gpj.\u202etxt", " .txt",
)  # fmt: skip
#: Where somebody who can write to an area may have put a link.
LINKS = ("the folder of parts", "a part", "the folder of a hash", "a file")
#: Words that would tell how the server is built, or where.
TELLTALE = ("Traceback", 'File "', str(ROOT), tempfile.gettempdir(), ".py", "site-packages")


def refused(answer: httpx.Response, *statuses: int) -> str:
    """Check that it was refused, in our words and without telling too much; return the code."""
    assert answer.status_code in statuses, (answer.status_code, answer.text)
    assert not [word for word in TELLTALE if word in answer.text], answer.text
    error = answer.json()["error"]
    assert set(error) == {"code", "message"}
    assert error["message"]
    return str(error["code"])


@pytest.fixture(autouse=True)
def untouched(site: Site, root: Path) -> Iterator[None]:
    """Whatever was tried: outside of the area nothing came to be, in it is nothing that is not whole."""
    around = {entry.name for entry in root.parent.iterdir()}
    yield
    own = tuple(where.replace(" ", "-") for where in LINKS)
    assert all(entry.name in around or entry.name.startswith(own) for entry in root.parent.iterdir())
    assert is_whole(root)


@pytest.mark.parametrize("name", TRAVERSALS, ids=ascii)
def test_a_file_name_is_never_a_path(tus: Tus, name: str) -> None:
    said = metadata(area="inbox", filename=name).strip()
    answer = tus.ask("POST", Upload_Length="3", Upload_Metadata=said)
    assert refused(answer, 400, 415) in ("bad_name", "bad_value", "wrong_type")


@pytest.mark.parametrize(
    "name", ["../inbox", "/var", "..", "", "inbox/..", "no-such-area", "in\0box"], ids=ascii
)
def test_an_area_is_never_a_path(tus: Tus, name: str) -> None:
    assert refused(tus.create(3, area=name, filename="x.txt"), 400, 404) in ("not_found", "bad_value")


@pytest.mark.parametrize("task", ["../x", "a/b", "a\\b", "..", "x\n", "x" * 300, "\0"], ids=ascii)
def test_a_task_is_never_a_path(tus: Tus, task: str) -> None:
    assert refused(tus.create(3, area="inbox", filename="x.txt", task_id=task), 400) == "bad_value"


@pytest.mark.parametrize(
    "path",
    [
        "..%2f..%2fetc%2fpasswd",
        "%2e%2e",
        "x",
        "0" * 32,
        f"{'0' * 8}-0000-0000-0000-{'0' * 12}",
        "%00",
        "a%0d%0aX: y",
    ],
)
def test_an_upload_is_never_a_path(tus: Tus, path: str) -> None:
    for method in ("HEAD", "DELETE"):
        assert tus.ask(method, f"/files/{path}").status_code == 404
    assert tus.patch(f"/files/{path}", 0, b"abc").status_code == 404


@pytest.mark.parametrize("sum_", ["x", "../x", "A" * 65, "g" * 64, "0" * 63], ids=ascii)
def test_a_hash_is_a_hash(tus: Tus, sum_: str) -> None:
    assert refused(tus.create(3, area="inbox", filename="x.txt", sha256=sum_), 400) == "bad_value"


@pytest.mark.parametrize("name", ["picture.png", "paper.pdf", "pack.zip", "data.json", "table.parquet"])
def test_a_wrong_type_under_a_right_name_never_appears(tus: Tus, root: Path, name: str) -> None:
    data = b"\x7fELF" + b"\0" * 60 + os.urandom(64)
    path = tus.begin(len(data), area="inbox", filename=name)
    assert refused(tus.patch(path, 0, data), 415) == "wrong_type"
    assert data not in visible(root).values()
    assert tus.ask("HEAD", path).status_code == 410


def test_a_type_that_is_not_taken_is_refused_before_a_byte_is_sent(tus: Tus) -> None:
    for name in ("tool.exe", "page.php", "noextension", "x.txt.sh"):
        assert refused(tus.create(3, area="inbox", filename=name), 415) == "wrong_type"


def test_a_file_above_the_limit_is_refused_before_a_byte_is_sent(tus: Tus) -> None:
    for size in ((1 << 30) + 1, 10**15, 10**17, 10**30):
        answer = tus.create(size, area="inbox", filename="x.txt")
        assert refused(answer, 413) == "too_large"


@pytest.mark.parametrize("server", ["daphne", "uvicorn"])
def test_a_part_above_the_limit_is_refused_before_it_is_read(
    site: Site, root: Path, key: str, server: str
) -> None:
    """The answer comes while most of the body has not been sent; nobody could have read it."""
    with serving(site, server) as (_, port), Tus(f"http://127.0.0.1:{port}", key) as client:
        path = client.begin(100 << 20, area="inbox", filename="big.txt")
        with Wire(port) as wire:
            wire.send(part_head(path, key, 0, 90 << 20) + b"x" * 1_000)
            assert wire.socket.recv(12) == b"HTTP/1.1 413"
        assert client.offset(path) == 0


def test_a_body_in_chunks_without_end_is_refused_at_the_limit(
    site: Site, root: Path, tus: Tus, key: str
) -> None:
    path = tus.begin(100 << 20, area="inbox", filename="endless.txt")
    head = {"X-API-Key": key, "Tus-Resumable": "1.0.0", "Content-Type": PART, "Upload-Offset": "0"}
    with Wire(port_of(site.web[0])) as wire:
        wire.send(head_of("PATCH", path, {**head, "Transfer-Encoding": "chunked"}))
        chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
        for _ in range(9):
            wire.send(chunk)
        assert wire.socket.recv(12) == b"HTTP/1.1 413"
    assert tus.offset(path) == 0


def test_a_content_length_that_promises_more_keeps_what_came(site: Site, tus: Tus, key: str) -> None:
    path, data = tus.begin(1_000, area="inbox", filename="more.txt"), text(400)
    with Wire(port_of(site.web[0])) as wire:
        wire.send(part_head(path, key, 0, 900) + data)
        wire.socket.shutdown(1)
        wire.answer()
    wait_until(lambda: tus.offset(path) == 400, what="what came")
    rest = text(600)
    assert tus.patch(path, 400, rest).status_code == 204


def test_a_content_length_that_promises_less_takes_no_more(site: Site, tus: Tus, key: str) -> None:
    path, data = tus.begin(1_000, area="inbox", filename="less.txt"), text(900)
    with Wire(port_of(site.web[0])) as wire:
        wire.send(part_head(path, key, 0, 400) + data)
        status, said = wire.answer()
    assert status == 204
    assert b"upload-offset: 400" in said.lower()
    assert tus.offset(path) == 400


@pytest.mark.parametrize("length", ["-1", "1e3", "0x10", "+5", " ", "5, 5", "\u0663"], ids=ascii)
def test_a_content_length_that_is_no_number_is_refused(site: Site, tus: Tus, key: str, length: str) -> None:
    path = tus.begin(1_000, area="inbox", filename="nan.txt")
    head = {"X-API-Key": key, "Tus-Resumable": "1.0.0", "Content-Type": PART, "Upload-Offset": "0"}
    with Wire(port_of(site.web[0])) as wire:
        wire.send(
            head_of("PATCH", path, {**head, "Content-Length": length.encode().decode("latin-1")}) + b"abc"
        )
        status, _ = wire.answer()
    assert status == 400
    assert tus.offset(path) == 0


def test_two_ways_to_say_how_long_a_body_is_are_refused(site: Site, tus: Tus, key: str) -> None:
    path = tus.begin(1_000, area="inbox", filename="two.txt")
    head = {"X-API-Key": key, "Tus-Resumable": "1.0.0", "Content-Type": PART, "Upload-Offset": "0"}
    for more in ({"Content-Length": ["3", "4"]}, {"Content-Length": "3", "Transfer-Encoding": "chunked"}):
        with Wire(port_of(site.web[0])) as wire:
            wire.send(head_of("PATCH", path, {**head, **more}) + b"3\r\nabc\r\n0\r\n\r\n")
            assert wire.answer()[0] == 400
    assert tus.offset(path) == 0


@pytest.mark.parametrize("server", ["daphne", "uvicorn"])
def test_a_slow_body_is_given_up_and_what_came_of_it_is_kept(
    site: Site, root: Path, key: str, server: str
) -> None:
    own = "tests.integration.hasty_settings"
    with (
        serving(site, server, DJANGO_SETTINGS_MODULE=own) as (_, port),
        Tus(f"http://127.0.0.1:{port}", key) as client,
    ):
        path = client.begin(50_000, filename="slow.txt")
        with Wire(port) as wire:
            wire.send(part_head(path, key, 0, 50_000) + text(100))
            said = wire.socket.recv(65_536)
            assert said.startswith(b"HTTP/1.1 408"), said
        assert client.offset(path) == 100


def test_a_body_that_trickles_for_ever_does_not_hold_the_site(site: Site, root: Path, key: str) -> None:
    own = "tests.integration.hasty_settings"
    with (
        serving(site, "daphne", DJANGO_SETTINGS_MODULE=own) as (_, port),
        Tus(f"http://127.0.0.1:{port}", key) as client,
    ):
        paths = [client.begin(50_000, filename="trickle.txt") for _ in range(20)]
        wires = [Wire(port) for _ in paths]
        for wire, path in zip(wires, paths, strict=True):
            wire.send(part_head(path, key, 0, 50_000) + b"x")
        data = text(1_000)
        client.send(client.begin(len(data), filename="quick.txt"), data)
        assert data in visible(root).values()
        for wire in wires:
            assert wire.socket.recv(12) == b"HTTP/1.1 408"
            wire.socket.close()


def test_another_ones_upload_looks_like_none(site: Site, tus: Tus) -> None:
    path = tus.begin(10, area="inbox", filename="mine.txt")
    assert tus.patch(path, 0, b"abc").status_code == 204
    nothing = f"/files/{'0' * 8}-0000-0000-0000-{'0' * 12}"
    with Tus(site.web[0].url, site.api_key("upload")) as spy:
        for ask in (
            lambda where: spy.ask("HEAD", where),
            lambda where: spy.patch(where, 3, b"def"),
            lambda where: spy.ask("DELETE", where),
        ):
            theirs, none = ask(path), ask(nothing)
            assert theirs.status_code == none.status_code == 404
            assert theirs.text == none.text
            # An answer that comes before the body has ended closes the connection: that is a race, for both.
            assert set(theirs.headers) - {"connection"} == set(none.headers) - {"connection"}
    assert tus.offset(path) == 3


@pytest.mark.parametrize("where", LINKS)
def test_a_link_in_the_area_leads_nowhere(site: Site, key: str, where: str) -> None:
    area = where.replace(" ", "-")
    root, victim = new_area(site, area), site.folder / f"victim-of-{area}"
    victim.mkdir()
    (victim / "precious").write_bytes(b"precious")
    data = text(1_000)
    with Tus(site.web[0].url, key) as tus:
        path = tus.begin(len(data), area=area, filename="x.txt")
        _plant(where, root, victim, path, data)
        answer = tus.patch(path, 0, data)
        assert refused(answer, 409, 410) in ("refused", "area_refused", "part_lost")
    assert sorted(entry.name for entry in victim.iterdir()) == ["precious"]
    assert (victim / "precious").read_bytes() == b"precious"


def test_an_area_whose_directory_was_swapped_takes_nothing_and_names_no_folder(site: Site, key: str) -> None:
    root, data = new_area(site, LINKS[0].replace(" ", "-") + "-swapped"), text(100)
    with Tus(site.web[0].url, key) as tus:
        path = tus.begin(len(data), area=root.name, filename="x.txt")
        root.rename(site.folder / "aside")
        root.mkdir()
        for answer in (tus.patch(path, 0, data), tus.create(3, area=root.name, filename="y.txt")):
            assert refused(answer, 409) == "area_refused"
    assert not list(root.iterdir())


def _plant(where: str, root: Path, victim: Path, path: str, data: bytes) -> None:
    """Put a link to the victim where the next bytes, or the whole file, will go."""
    parts, name = root / ".staging-uploads", sha256(data)
    if where == "the folder of parts":
        for entry in parts.iterdir():
            entry.unlink()
        parts.rmdir()
        parts.symlink_to(victim)
    elif where == "a part":
        (parts / path.rpartition("/")[2].replace("-", "")).symlink_to(victim / "precious")
    elif where == "the folder of a hash":
        (root / name[:2]).symlink_to(victim)
    else:
        (root / name[:2]).mkdir()
        (root / name[:2] / f"{name}.txt").symlink_to(victim / "precious")


@pytest.mark.parametrize(
    "said",
    [
        "filename", "filename eC50eHQ=,filename eS50eHQ=", "filename not-base64!", "filename eC50eHQ", ",",
        "a,,b", "filename  eC50eHQ=", "file name eC50eHQ=", "filename //79", "k\u00e9y eC50eHQ=",
        "filename eC50eHQ= x",
        "a" * 101 + " eC50eHQ=", ",".join(f"k{n} eA==" for n in range(33)), "x " + "A" * 4_096,
    ],
    ids=range(14),
)  # fmt: skip
def test_metadata_that_is_none_is_refused(site: Site, tus: Tus, said: str) -> None:
    sent = {**tus.headers, "Upload-Length": "3", "Upload-Metadata": said.encode()}
    answer = tus.http.post(f"{tus.base}/files/", headers=sent)
    assert refused(answer, 400) in ("bad_name", "bad_value")


def test_ten_thousand_keys_are_refused(site: Site, root: Path, key: str) -> None:
    said = ",".join(f"key{number} eA==" for number in range(10_000))
    head = {"X-API-Key": key, "Tus-Resumable": "1.0.0", "Upload-Length": "3", "Content-Length": "0"}
    # A head beyond 16 KiB is cut off; the reset may overtake the answer.
    for given, statuses in ((said, (400, 0)), (said[:12_000].rpartition(",")[0], (400,))):
        with Wire(port_of(site.web[0])) as wire:
            wire.send(head_of("POST", "/files/", {**head, "Upload-Metadata": given, "Connection": "close"}))
            status, told = wire.answer()
            assert status in statuses
            assert not [word for word in TELLTALE if word.encode() in told]


def test_metadata_cannot_add_a_header(site: Site, tus: Tus, key: str) -> None:
    said = metadata(area="inbox", filename="x.txt", note="a\r\nX-Evil: yes")
    answer = tus.ask("POST", Upload_Length="3", Upload_Metadata=said)
    assert answer.status_code == 201, answer.text
    assert "X-Evil" not in tus.ask("HEAD", answer.headers["Location"]).headers
    for evil in ("x eA==\r\n X-Evil: yes", "x eA==\x0b", "x\teA=="):
        head = {"X-API-Key": key, "Tus-Resumable": "1.0.0", "Upload-Length": "3", "Connection": "close"}
        with Wire(port_of(site.web[0])) as wire:
            wire.send(head_of("POST", "/files/", {**head, "Upload-Metadata": evil, "Content-Length": "0"}))
            status, told = wire.answer()
            assert status == 400
            assert b"X-Evil" not in told


@pytest.mark.parametrize(
    "name", ["Upload-Length", "Upload-Offset", "Upload-Metadata", "Tus-Resumable", "Content-Type"]
)
def test_a_header_that_is_there_twice_is_refused(site: Site, tus: Tus, key: str, name: str) -> None:
    path = tus.begin(10, area="inbox", filename="twice.txt")
    pair = metadata(area="inbox", filename="twice.txt")
    head: dict[str, Any] = {
        "X-API-Key": key, "Tus-Resumable": "1.0.0", "Connection": "close", "Content-Length": "3",
        "Content-Type": PART, "Upload-Offset": "0", "Upload-Length": "3", "Upload-Metadata": pair,
    }  # fmt: skip
    head[name] = [head[name], head[name]]
    method, where = ("PATCH", path) if name == "Upload-Offset" else ("POST", "/files/")
    with Wire(port_of(site.web[0])) as wire:
        wire.send(head_of(method, where, head) + b"abc")
        assert wire.answer()[0] in (400, 412, 415)
    assert tus.offset(path) == 0


@pytest.mark.parametrize(
    "number", ["-1", "1.5", "abc", "", "1e3", "0x1", "+1", "1 1", "NaN", "9" * 40, "\u0661"], ids=ascii
)
def test_numbers_are_numbers(tus: Tus, number: str) -> None:
    said = metadata(area="inbox", filename="n.txt")
    given = {**tus.headers, "Upload-Length": number.encode(), "Upload-Metadata": said}
    assert refused(tus.http.post(f"{tus.base}/files/", headers=given), 400, 413) in ("bad_value", "too_large")
    path = tus.begin(10, area="inbox", filename="n.txt")
    given = {**tus.headers, "Upload-Offset": number.encode(), "Content-Type": PART}
    answer = tus.http.patch(tus.base + path, content=b"abc", headers=given)
    assert refused(answer, 400, 413) in ("bad_value", "too_large")
    assert tus.offset(path) == 0


@pytest.mark.parametrize(
    "method", ["../PATCH", "PATCH;", "P" * 5_000, "CONNECT", "GET", "", "PATCH, DELETE"], ids=range(7)
)
def test_an_override_is_a_method_or_nothing(tus: Tus, method: str) -> None:
    path = tus.begin(10, area="inbox", filename="o.txt")
    answer = tus.http.post(
        tus.base + path, headers={**tus.headers, "X-HTTP-Method-Override": method.encode()}
    )
    assert answer.status_code in (400, 405)
    assert not [word for word in TELLTALE if word in answer.text]
    assert tus.offset(path) == 0


def test_a_checksum_of_other_bytes_stores_nothing_even_if_the_connection_is_cut(
    site: Site, tus: Tus, key: str
) -> None:
    data = text(1_000)
    path = tus.begin(len(data), area="inbox", filename="sum.txt")
    with Wire(port_of(site.web[0])) as wire:
        wire.send(part_head(path, key, 0, 1_000, **{"Upload-Checksum": checksum(data)}) + data[:700])
        wire.socket.shutdown(1)
        wire.answer()
    before = time.monotonic()
    while time.monotonic() < before + 1:  # it never moves
        assert tus.offset(path) == 0
    assert tus.patch(path, 0, data, Upload_Checksum=checksum(data)).status_code == 204
