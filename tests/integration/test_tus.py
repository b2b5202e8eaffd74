"""tus 1.0 at /files/, request by request, against a real server: what the protocol promises, and who may."""

from __future__ import annotations

import socket
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx
import pytest

from tests.harness import Site
from tests.integration.test_transport import serving
from tests.servers import PATIENCE, wait_until
from tests.uploading import (
    PART,
    Tus,
    Wire,
    checksum,
    head_of,
    is_whole,
    key,
    metadata,
    part_head,
    port_of,
    root,
    rows,
    sha256,
    text,
    tus,
    visible,
)

__all__ = ["key", "root", "tus"]

pytestmark = pytest.mark.timeout(400)


def test_options_say_what_is_spoken_here_to_anybody(site: Site) -> None:
    with Tus(site.web[0].url) as client:
        answer = client.ask("OPTIONS", Tus_Resumable="0.2.2")
    assert answer.status_code == 204
    assert answer.headers["Tus-Version"] == "1.0.0"
    assert set(answer.headers["Tus-Extension"].split(",")) == {
        "creation", "creation-with-upload", "expiration", "checksum", "termination",
    }  # fmt: skip
    assert int(answer.headers["Tus-Max-Size"]) == 1 << 30
    assert answer.headers["Tus-Checksum-Algorithm"] == "sha1,sha256"


def test_a_file_in_parts_appears_whole_and_only_then(site: Site, tus: Tus, root: Path) -> None:
    data = text(200_000)
    created = tus.create(len(data), area="inbox", filename="notes.txt", sha256=sha256(data))
    assert created.status_code == 201
    path = created.headers["Location"]
    assert path.startswith("/files/")
    assert parsedate_to_datetime(created.headers["Upload-Expires"]).tzinfo is not None
    first = tus.patch(path, 0, data[:70_000])
    assert (first.status_code, first.headers["Upload-Offset"]) == (204, "70000")
    assert parsedate_to_datetime(first.headers["Upload-Expires"]).tzinfo is not None
    assert data not in visible(root).values()
    assert len([row for row in rows(site, "inbox") if row[0] == sha256(data)]) == 0
    last = tus.patch(path, 70_000, data[70_000:])
    assert (last.status_code, last.headers["Upload-Offset"]) == (204, "200000")
    assert data in visible(root).values()
    assert len([row for row in rows(site, "inbox") if row[0] == sha256(data)]) == 1


def test_head_tells_where_an_upload_stands_and_gives_the_metadata_back(tus: Tus) -> None:
    said = metadata(area="inbox", filename="über.txt", mood="fine") + ",flag"
    answer = tus.ask("POST", Upload_Length="10", Upload_Metadata=said)
    assert answer.status_code == 201, answer.text
    path = answer.headers["Location"]
    assert tus.patch(path, 0, b"abcd").status_code == 204
    answer = tus.ask("HEAD", path)
    assert answer.status_code == 200
    assert (answer.headers["Upload-Offset"], answer.headers["Upload-Length"]) == ("4", "10")
    assert answer.headers["Upload-Metadata"] == said
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Tus-Resumable"] == "1.0.0"


def test_an_empty_file_is_there_as_soon_as_it_is_created(site: Site, tus: Tus, root: Path) -> None:
    path = tus.begin(0, area="inbox", filename="empty.txt")
    assert tus.offset(path) == 0
    assert b"" in visible(root).values()


def test_creation_takes_the_first_part_or_all_of_the_file(tus: Tus, root: Path) -> None:
    data = text(3_000)
    part = tus.create(len(data), data[:1_000], area="inbox", filename="some.txt")
    assert (part.status_code, part.headers["Upload-Offset"]) == (201, "1000")
    whole = tus.create(len(data), data, area="inbox", filename="all.txt")
    assert (whole.status_code, whole.headers["Upload-Offset"]) == (201, "3000")
    assert data in visible(root).values()
    marked = tus.create(3, b"abc", headers={"Content-Type": "text/plain"}, area="inbox", filename="x.txt")
    assert (marked.status_code, marked.json()["error"]["code"]) == (415, "wrong_content_type")


@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
def test_a_part_that_is_not_what_its_checksum_says_is_dropped(tus: Tus, algorithm: str) -> None:
    data = text(5_000)
    path = tus.begin(len(data), area="inbox", filename="sums.txt")
    wrong = tus.patch(path, 0, data[:2_000], Upload_Checksum=checksum(data[1:2_001], algorithm))
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (460, "checksum_mismatch")
    assert tus.offset(path) == 0
    good = tus.patch(path, 0, data[:2_000], Upload_Checksum=checksum(data[:2_000], algorithm))
    assert good.status_code == 204
    for said in ("crc32 AAAA", f"{algorithm} AAAA", algorithm, "", f"{algorithm} ???"):
        assert tus.patch(path, 2_000, data[2_000:], Upload_Checksum=said).status_code == 400
    assert tus.offset(path) == 2_000


def test_a_part_at_another_offset_is_a_conflict_that_says_the_right_one(tus: Tus) -> None:
    path = tus.begin(10, area="inbox", filename="offsets.txt")
    assert tus.patch(path, 0, b"abc").status_code == 204
    for offset in (0, 2, 4, 10):
        answer = tus.patch(path, offset, b"def")
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "wrong_offset")
        assert answer.headers["Tus-Resumable"] == "1.0.0"
    assert tus.offset(path) == 3


def test_a_part_may_not_go_beyond_the_length_of_the_file(tus: Tus, root: Path) -> None:
    path = tus.begin(4, area="inbox", filename="short.txt")
    answer = tus.patch(path, 0, b"abcdefgh")
    assert answer.status_code == 413
    assert b"abcd" not in visible(root).values()
    assert tus.patch(path, 0, b"wxyz").status_code == 204
    assert b"wxyz" in visible(root).values()


def test_what_is_given_up_is_gone(tus: Tus) -> None:
    path = tus.begin(10, area="inbox", filename="gone.txt")
    assert tus.patch(path, 0, b"abc").status_code == 204
    assert tus.ask("DELETE", path).status_code == 204
    assert tus.ask("HEAD", path).status_code in (404, 410)
    assert "Upload-Offset" not in tus.ask("HEAD", path).headers
    assert tus.patch(path, 3, b"def").status_code in (404, 410)


def test_a_post_may_stand_for_another_method_and_nothing_else_may(tus: Tus) -> None:
    path = tus.begin(6, area="inbox", filename="override.txt")
    part = {"Upload_Offset": "0", "Content_Type": PART, "X_HTTP_Method_Override": "PATCH"}
    assert tus.ask("POST", path, b"abc", **part).status_code == 204
    assert tus.offset(path) == 3
    for method in ("GET", "HEAD", "PUT"):
        assert tus.ask(method, path, X_HTTP_Method_Override="DELETE").status_code == 400
    assert tus.ask("POST", path, X_HTTP_Method_Override="BREW").status_code == 405
    assert tus.ask("POST", path, X_HTTP_Method_Override="DELETE").status_code == 204
    assert tus.ask("HEAD", path).status_code in (404, 410)


@pytest.mark.parametrize("version", [None, "", "0.2.2", "1.0.1", "1.0.0, 1.0.0"])
def test_another_version_is_refused_and_nothing_is_done(tus: Tus, version: str | None) -> None:
    answer = tus.create(5, headers={"Tus_Resumable": version}, area="inbox", filename="v.txt")  # type: ignore[dict-item]
    assert (answer.status_code, answer.headers["Tus-Version"]) == (412, "1.0.0")
    assert "Location" not in answer.headers


def test_a_length_that_comes_later_is_not_supported(tus: Tus) -> None:
    answer = tus.ask(
        "POST", Upload_Defer_Length="1", Upload_Metadata=metadata(area="inbox", filename="x.txt")
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_value")


def test_what_is_sent_once_more_is_stored_once(site: Site, tus: Tus, root: Path) -> None:
    data = text(4_000)
    for name in ("a.txt", "b.txt", "c.txt"):
        tus.send(tus.begin(len(data), area="inbox", filename=name), data)
    assert list(visible(root).values()).count(data) == 1
    found = [row for row in rows(site, "inbox") if row[0] == sha256(data)]
    assert len(found) == 3
    assert len({row[2] for row in found}) == 1


def test_bytes_with_another_hash_than_was_said_never_appear(tus: Tus, root: Path) -> None:
    data = text(1_000)
    path = tus.begin(len(data), area="inbox", filename="h.txt", sha256=sha256(b"other"))
    answer = tus.patch(path, 0, data)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "wrong_digest")
    assert data not in visible(root).values()
    assert tus.ask("HEAD", path).status_code == 410


@pytest.mark.parametrize("server", ["daphne", "uvicorn"])
def test_what_came_before_a_cut_is_kept(site: Site, root: Path, key: str, server: str) -> None:
    data = text(400_000)
    with serving(site, server) as (_, port), Tus(f"http://127.0.0.1:{port}", key) as client:
        path = client.begin(len(data), area="inbox", filename="cut.txt")
        with Wire(port) as wire:
            wire.send(part_head(path, key, 0, len(data)) + data[:150_000])
            wire.socket.shutdown(socket.SHUT_WR)
            wire.answer()
        wait_until(lambda: client.offset(path), what="what came before the cut")
        offset = client.offset(path)
        # Another server may drop what it has read and not handed on yet.
        assert offset == 150_000 if server == "daphne" else 0 < offset <= 150_000
        assert data not in visible(root).values()
        client.send(path, data, at=offset)
    assert data in visible(root).values()
    assert is_whole(root)


@pytest.mark.parametrize("server", ["daphne", "uvicorn"])
def test_a_body_in_chunks_is_taken(site: Site, root: Path, key: str, server: str) -> None:
    data = text(300_000)
    with serving(site, server) as (_, port), Tus(f"http://127.0.0.1:{port}", key) as client:
        path = client.begin(len(data), area="inbox", filename="chunks.txt")
        pieces = (data[at : at + 10_000] for at in range(0, len(data), 10_000))
        headers = {**client.headers, "Upload-Offset": "0", "Content-Type": PART}
        answer = client.http.patch(client.base + path, content=pieces, headers=headers)
        assert (answer.status_code, answer.headers.get("Upload-Offset")) == (204, "300000"), answer.text
    assert data in visible(root).values()


def test_a_key_without_the_scope_and_a_stranger_are_refused(site: Site, root: Path) -> None:
    for given, status, code in (
        (site.api_key("publish"), 403, "not_allowed"),
        (f"xk_{'0' * 10}_{'x' * 43}", 401, "unauthorized"),
        ("", 401, "unauthorized"),
    ):
        with Tus(site.web[0].url, given) as client:
            answer = client.create(3, area="inbox", filename="x.txt")
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_a_token_with_the_scope_uploads_and_goes_on_with_what_its_agent_has_begun(
    site: Site, root: Path
) -> None:
    def client(agent: str, *scopes: str) -> Tus:
        return Tus(site.web[0].url, Authorization=f"Bearer {site.token(agent, *scopes)}")

    with (
        client("scribe", "upload") as mine,
        client("scribe", "upload") as again,
        client("spy", "upload") as spy,
    ):
        path = mine.begin(6, area="inbox", filename="t.txt")
        assert mine.patch(path, 0, b"abc").status_code == 204
        assert again.offset(path) == 3
        assert spy.ask("HEAD", path).status_code == 404
    with client("scribe") as without:
        assert without.create(3, area="inbox", filename="x.txt").status_code == 403


def login(site: Site, name: str, *, may: bool) -> str:
    """A person of staff; returns the session key."""
    return site.python(
        "from tests.integration.rights.cast import login\n"
        "from django.contrib.auth.models import User, Permission\n"
        f"key = login({name!r}, is_staff=True)\n"
        f"may = Permission.objects.filter(codename='add_upload') if {may} else ()\n"
        f"User.objects.get(username={name!r}).user_permissions.add(*may)\n"
        "print(key)"
    )


def test_a_person_uploads_with_session_permission_and_token_against_forgery(site: Site, root: Path) -> None:
    base, forged = site.web[0].url, "x" * 32
    cookies = f"sessionid={login(site, 'anna', may=True)}; csrftoken={forged}"
    data = text(500)
    with Tus(base, Cookie=cookies, Origin=base) as page:
        refused = page.create(len(data), area="inbox", filename="p.txt")
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "not_allowed")
        page.headers["X-CSRFToken"] = forged
        page.send(page.begin(len(data), area="inbox", filename="p.txt"), data)
        page.headers["Origin"] = "http://evil.example"
        assert page.create(len(data), area="inbox", filename="p.txt").status_code == 403
    assert data in visible(root).values()
    cookies = f"sessionid={login(site, 'viewer', may=False)}; csrftoken={forged}"
    with Tus(base, Cookie=cookies, Origin=base, **{"X-CSRFToken": forged}) as viewer:
        assert viewer.create(5, area="inbox", filename="p.txt").status_code == 403


def test_settings_name_the_area_the_origins_and_the_limits(site: Site, root: Path, key: str) -> None:
    own = "tests.integration.hasty_settings"
    with (
        serving(site, "daphne", DJANGO_SETTINGS_MODULE=own) as (_, port),
        Tus(f"http://127.0.0.1:{port}", key) as tus,
    ):
        assert tus.create(3, filename="x.txt").status_code == 201
        assert tus.create((1 << 20) + 1, filename="x.txt").status_code == 413
        path = tus.begin(100_000, filename="parts.txt")
        answer = tus.patch(path, 0, text(65_537))
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
        assert tus.patch(path, 0, text(65_536)).status_code == 204
        for origin, allowed in (("https://friends.example", True), ("https://evil.example", False)):
            for method in ("OPTIONS", "HEAD"):
                answer = tus.ask(method, path, Origin=origin)
                assert ("Access-Control-Allow-Origin" in answer.headers) is allowed
        preflight = tus.ask(
            "OPTIONS", Origin="https://friends.example", Access_Control_Request_Method="PATCH"
        )
        assert "PATCH" in preflight.headers["Access-Control-Allow-Methods"]
        assert "Upload-Offset" in preflight.headers["Access-Control-Expose-Headers"]


def test_only_what_is_there_to_do_is_done_and_a_secret_in_the_address_is_refused(tus: Tus, key: str) -> None:
    path = tus.begin(5, area="inbox", filename="x.txt")
    for method, where in (
        ("GET", path),
        ("PUT", path),
        ("POST", path),
        ("GET", "/files/"),
        ("PATCH", "/files/"),
    ):
        answer = tus.ask(method, where)
        assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
    assert tus.ask("HEAD", f"{path}?token={key}").status_code == 400
    assert tus.ask("PATCH", path, b"abc", Upload_Offset="0").status_code == 415


def test_a_request_whose_answer_comes_before_its_body_ends_its_connection_alone(
    site: Site, tus: Tus, key: str
) -> None:
    port, data = port_of(site.web[0]), text(300_000)
    path = tus.begin(10, area="inbox", filename="x.txt")
    hidden = head_of("DELETE", path, {"X-API-Key": key, "Tus-Resumable": "1.0.0", "Connection": "close"})
    with Wire(port) as wire:  # the body of what is refused holds another request: it stays a body
        head = {"X-API-Key": key, "Tus-Resumable": "1.0.0", "Content-Type": PART, "Upload-Offset": "7"}
        wire.send(head_of("PATCH", path, {**head, "Content-Length": len(data) + len(hidden)}))
        wire.send(data + hidden)
        status, said = wire.answer()
    assert status == 409
    assert said.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in said.lower()
    assert tus.offset(path) == 0


def test_one_connection_serves_many_large_parts_and_what_comes_between(tus: Tus, root: Path) -> None:
    """A large part makes the server stop reading for moments; what comes next must not notice."""
    data = text(12_000_000)
    path = tus.begin(len(data), area="inbox", filename="large.txt")
    for at in range(0, len(data), 1_500_000):
        assert tus.patch(path, at, data[at : at + 1_500_000]).status_code == 204
        assert tus.offset(path) == at + 1_500_000
    assert data in visible(root).values()


def test_other_requests_with_bodies_work_as_before(site: Site, tus: Tus) -> None:
    given = site.api_key("publish", "publish:task")
    with httpx.Client(trust_env=False, timeout=PATIENCE, headers={"X-API-Key": given}) as client:
        for number in range(3):  # on one connection
            body = {"channel": "lab:1", "data": {"text": "x" * 20_000, "number": number}}
            answer = client.post(f"{site.web[0].url}/api/publish", json=body)
            assert answer.status_code == 200
            assert answer.json()
