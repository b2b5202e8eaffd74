"""P17: a full disk is a clean error, below the area or the database: nothing is acknowledged; it heals."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from tests.harness import Site
from tests.servers import wait_until
from tests.unit.cleanup_engine.test_mounts import Mount, mount
from tests.uploading import Tus, is_whole, new_area, rows, sha256, text, visible

__all__ = ["mount"]

pytestmark = [pytest.mark.timeout(500)]

MIB = 1 << 20
#: Of the file system that gets full.
ROOM = "size=8m"


@pytest.fixture
def own_site(mount: Mount) -> Iterator[Site]:
    """A site that ends before the file systems below it."""
    site = Site(web=1)
    yield site
    site.stop()


def fill(folder: Path) -> Path:
    """Take all the room that is left."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            while _writes(file, b"x" * size):
                pass
    return ballast


def _writes(file: IO[bytes], data: bytes) -> bool:
    """Whether there was room."""
    try:
        return bool(file.write(data))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False


def is_full(tus: Tus, path: str, offset: int, data: bytes) -> None:
    """A part is refused for want of room."""
    answer = tus.patch(path, offset, data)
    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "storage_full"), answer.text
    assert "/" not in answer.json()["error"]["message"]
    assert int(answer.headers["Retry-After"]) > 0


def test_p17_a_full_disk_below_the_area_is_507_and_the_same_upload_goes_on_once_there_is_room(
    own_site: Site, mount: Mount
) -> None:
    root = own_site.folder / "staging" / "small"
    root.parent.mkdir()
    mount(root, "-t", "tmpfs", "-o", ROOM, "tmpfs")
    own_site.start()
    new_area(own_site, "small")
    ballast, data = root / "ballast", text(4 * MIB)
    ballast.write_bytes(b"x" * 5 * MIB)
    with Tus(own_site.web[0].url, own_site.api_key("upload")) as tus:
        path = tus.begin(len(data), area="small", filename="big.txt", sha256=sha256(data))
        assert tus.patch(path, 0, data[:MIB]).status_code == 204
        is_full(tus, path, MIB, data[MIB:])
        assert tus.offset(path) == MIB
        for _ in range(5):  # again and again: nothing adds up
            is_full(tus, path, MIB, data[MIB:])
        assert rows(own_site, "small") == []
        assert set(visible(root)) == {"ballast"}
        ballast.unlink()
        tus.send(path, data, at=tus.offset(path))
    assert list(visible(root).values()) == [data]
    assert is_whole(root)
    assert len(rows(own_site, "small")) == 1


def test_p17_an_area_that_is_full_to_the_last_byte_refuses_to_begin_or_to_go_on(
    own_site: Site, mount: Mount
) -> None:
    root = own_site.folder / "staging" / "full"
    root.parent.mkdir()
    mount(root, "-t", "tmpfs", "-o", ROOM, "tmpfs")
    own_site.start()
    new_area(own_site, "full")
    with Tus(own_site.web[0].url, own_site.api_key("upload")) as tus:
        data = text(100_000)
        path = tus.begin(len(data), area="full", filename="late.txt")
        ballast = fill(root)
        is_full(tus, path, 0, data)
        assert tus.offset(path) == 0
        ballast.unlink()
        tus.send(path, data)
    assert list(visible(root).values()) == [data]


@pytest.mark.sqlite_only
def test_p17_a_full_disk_below_the_database_is_507_and_the_same_upload_goes_on_once_there_is_room(
    own_site: Site, mount: Mount
) -> None:
    folder = own_site.folder / "database"
    mount(folder, "-t", "tmpfs", "-o", ROOM, "tmpfs")
    shutil.move(own_site.folder / "db.sqlite3", folder / "db.sqlite3")
    own_site.database_url = f"sqlite:///{folder / 'db.sqlite3'}"
    own_site.environment["DATABASE_URL"] = own_site.database_url
    own_site.start()
    root = new_area(own_site, "roomy")
    data = text(2_000_000)
    with Tus(own_site.web[0].url, own_site.api_key("upload")) as tus:
        path = tus.begin(len(data), area="roomy", filename="big.txt", sha256=sha256(data))
        assert tus.patch(path, 0, data[:100_000]).status_code == 204
        ballast = fill(folder)
        acknowledged = 100_000
        while True:  # room that the database has taken before lasts for a while
            answer = tus.patch(path, acknowledged, data[acknowledged : acknowledged + 1_000])
            if answer.status_code != 204:
                break
            acknowledged = int(answer.headers["Upload-Offset"])
        assert (answer.status_code, answer.json()["error"]["code"]) == (507, "storage_full"), answer.text
        refused = tus.create(10, area="roomy", filename="other.txt")
        assert (refused.status_code, refused.json()["error"]["code"]) == (507, "storage_full"), refused.text
        assert visible(root) == {}
        ballast.unlink()
        wait_until(lambda: tus.ask("HEAD", path).status_code == 200, what="the database")
        assert tus.offset(path) == acknowledged
        tus.send(path, data, at=acknowledged)
    assert list(visible(root).values()) == [data]
    assert len(rows(own_site, "roomy")) == 1
