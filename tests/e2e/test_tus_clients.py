"""The stock clients of tus, unmodified, against real servers: cut anywhere, resumed anywhere, finished.

`tus-js-client` of npm and `tuspy` of PyPI, each in a process of its own, driven by the same words.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.clients import Refused, StockClient
from tests.harness import Site
from tests.servers import wait_until
from tests.uploading import (
    Tus,
    UploadProxy,
    is_whole,
    key,
    port_of,
    root,
    rows,
    sha256,
    text,
    visible,
)

__all__ = ["key", "root"]

# Once: what clients meet is HTTP, the same on both databases; the verbs behind it are tested on both.
pytestmark = [pytest.mark.e2e, pytest.mark.sqlite_only, pytest.mark.timeout(500)]

SDKS = ("tus-js-client", "tuspy")
SIZE, PART = 3_000_000, 1_000_000
#: What a client waits before it tries again (ms): as often as a server may need to come back.
RETRIES = [200] * 900


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    started = Site(web=2).start()
    yield started
    started.stop()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file that no other test has."""
    made = tmp_path / "report.txt"
    made.write_bytes(text(SIZE))
    return made


@pytest.fixture
def proxy(site: Site) -> Iterator[UploadProxy]:
    with UploadProxy(port_of(site.web[0])) as between:
        yield between


def words(base: str, key: str, file: Path, **more: Any) -> dict[str, Any]:
    """What both SDKs are told."""
    told = {"filename": "report.txt", "filetype": "text/plain", "area": "inbox"}
    return {
        "endpoint": f"{base}/files/",
        "path": str(file),
        "part": PART,
        "headers": {"X-API-Key": key},
        "metadata": {**told, "sha256": sha256(file.read_bytes())},
        **more,
    }


@pytest.fixture(params=SDKS)
def client(request: pytest.FixtureRequest) -> Iterator[StockClient]:
    with StockClient(request.param) as started:
        yield started.awake()


def arrived(site: Site, root: Path, file: Path) -> None:
    """The file is there, once and whole, and in the registry."""
    data = file.read_bytes()
    assert list(visible(root).values()).count(data) == 1
    assert is_whole(root)
    assert len([row for row in rows(site, "inbox") if row[0] == sha256(data)]) == 1


def test_a_stock_client_uploads(site: Site, root: Path, key: str, file: Path, client: StockClient) -> None:
    assert "/files/" in client.do("upload", **words(site.web[0].url, key, file))["url"]
    arrived(site, root, file)


def test_the_first_part_comes_with_the_request_that_creates(
    site: Site, root: Path, key: str, file: Path
) -> None:
    with StockClient("tus-js-client") as client:
        client.do("upload", **words(site.web[0].url, key, file, withData=True))
    arrived(site, root, file)


def test_parts_come_with_checksums(site: Site, root: Path, key: str, file: Path) -> None:
    with StockClient("tuspy") as client:
        client.do("upload", **words(site.web[0].url, key, file, summed=True))
    arrived(site, root, file)


@pytest.mark.parametrize("way", ["RST", "FIN"])
def test_a_stock_client_goes_on_by_itself_after_cuts_anywhere(
    site: Site, root: Path, key: str, file: Path, proxy: UploadProxy, client: StockClient, way: str
) -> None:
    number = client.start("upload", **words(f"http://127.0.0.1:{proxy.port}", key, file, retries=RETRIES))
    client.wait("created")
    for _ in range(2):
        proxy.cut_upload_after(random.randint(1, SIZE // 4), way)
        wait_until(lambda: proxy.has_cut, what="the cut")
    client.answer(number)
    arrived(site, root, file)


def test_a_stored_address_is_enough_for_another_client_to_go_on(
    site: Site, root: Path, key: str, file: Path
) -> None:
    with StockClient("tuspy") as first, StockClient("tus-js-client") as second:
        url = first.do("upload", **words(site.web[0].url, key, file, stop=PART + 12_345))["url"]
        assert file.read_bytes() not in visible(root).values()
        with Tus(site.web[0].url, key) as tus:
            assert tus.offset(url.removeprefix(site.web[0].url)) == PART + 12_345
        assert second.do("upload", **words(site.web[0].url, key, file, url=url))["url"] == url
    arrived(site, root, file)


def test_a_stock_client_survives_the_death_of_the_server_and_goes_on_at_the_other(
    site: Site, root: Path, key: str, file: Path, proxy: UploadProxy, client: StockClient
) -> None:
    proxy.cut_upload_after(PART + random.randint(PART // 4, PART), "stall")
    number = client.start("upload", **words(f"http://127.0.0.1:{proxy.port}", key, file, retries=RETRIES))
    wait_until(lambda: proxy.has_cut, what="the middle of the second part")
    site.web[0].kill()
    proxy.target = port_of(site.web[1])
    proxy.cut()
    proxy.release()
    client.answer(number)
    site.mend()
    arrived(site, root, file)


def test_a_stock_client_outlasts_a_server_that_is_killed_and_started_again(
    site: Site, root: Path, key: str, file: Path, proxy: UploadProxy, client: StockClient
) -> None:
    number = client.start("upload", **words(f"http://127.0.0.1:{proxy.port}", key, file, retries=RETRIES))
    client.wait("created")
    site.web[0].kill()
    site.mend()
    client.answer(number)
    arrived(site, root, file)


def test_a_refusal_reaches_a_stock_client_as_an_error(
    site: Site, root: Path, key: str, tmp_path: Path, client: StockClient
) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(text(50_000))
    told = {"filename": "picture.png", "area": "inbox"}
    for given, status in ((key, 415), (site.api_key("publish"), 403)):
        with pytest.raises(Refused) as refused:
            client.do("upload", **{**words(site.web[0].url, given, picture), "metadata": told})
        assert refused.value.code == status
    assert picture.read_bytes() not in visible(root).values()


def test_an_upload_that_was_given_up_is_begun_anew(site: Site, root: Path, key: str, file: Path) -> None:
    with StockClient("tuspy") as first, StockClient("tus-js-client") as second:
        url = first.do("upload", **words(site.web[0].url, key, file, stop=PART))["url"]
        with Tus(site.web[0].url, key) as tus:
            assert tus.ask("DELETE", url.removeprefix(site.web[0].url)).status_code == 204
        assert second.do("upload", **words(site.web[0].url, key, file, url=url))["url"] != url
    arrived(site, root, file)
