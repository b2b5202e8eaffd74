"""What a storage has to promise to hold contents: one suite for every backend, and what the default adds."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from threading import Barrier, Thread

import pytest
from django.core.exceptions import SuspiciousFileOperation
from django.core.files.storage import FileSystemStorage, InMemoryStorage, Storage, storages

from cleanup.staging.errors import StorageFull
from cleanup.staging.storage import ContentFiles, StorageBroken, put, read, staging_storage

pytestmark = pytest.mark.sqlite_only

BACKENDS: dict[str, Callable[[Path], Storage]] = {
    "files": lambda folder: ContentFiles(location=folder),
    "memory": lambda _: InMemoryStorage(),
}


@pytest.fixture(params=[*BACKENDS])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return BACKENDS[request.param](tmp_path / "contents")


@pytest.fixture
def files(tmp_path: Path) -> ContentFiles:
    return ContentFiles(location=tmp_path / "contents")


def name_of(data: bytes, suffix: str = ".txt") -> str:
    digest = hashlib.sha256(data).hexdigest()
    return f"{digest[:2]}/{digest}{suffix}"


def put_bytes(storage: Storage, data: bytes) -> bool:
    return put(storage, name_of(data), io.BytesIO(data), size=len(data))


@pytest.mark.parametrize("data", [b"", b"text", os.urandom(3_000_000)], ids=["empty", "small", "large"])
def test_what_was_put_is_there_whole(storage: Storage, data: bytes) -> None:
    name = name_of(data)
    assert not storage.exists(name)
    assert put_bytes(storage, data)
    assert storage.exists(name)
    assert storage.size(name) == len(data)
    with read(storage, name) as file:
        assert file.read() == data


def test_the_same_content_is_put_once(storage: Storage) -> None:
    assert [put_bytes(storage, b"text") for _ in range(3)] == [True, False, False]
    folders, names = storage.listdir(name_of(b"text")[:2])
    assert (folders, len(names)) == ([], 1)


def test_what_is_not_there_is_not_found(storage: Storage) -> None:
    with pytest.raises(FileNotFoundError):
        read(storage, name_of(b"nothing"))


def test_other_bytes_under_a_name_are_noticed(storage: Storage) -> None:
    put_bytes(storage, b"text")
    with pytest.raises(StorageBroken, match="4 bytes in the storage and should have 5"):
        put(storage, name_of(b"text"), io.BytesIO(b"other"), size=5)
    with read(storage, name_of(b"text")) as file:
        assert file.read() == b"text"


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a.txt", "ab/" + "cd" * 32, "ab/" + "ab" * 31, ""])
def test_only_names_of_contents_are_taken(storage: Storage, name: str) -> None:
    with pytest.raises(SuspiciousFileOperation):
        put(storage, name, io.BytesIO(b"x"), size=1)
    with pytest.raises(SuspiciousFileOperation):
        read(storage, name)


def test_a_storage_that_finds_another_name_is_refused(tmp_path: Path) -> None:
    """Django's own file system invents a name when two come at once."""

    class Renaming(FileSystemStorage):
        def exists(self, name: str) -> bool:
            return False

        def get_available_name(self, name: str, max_length: int | None = None) -> str:
            return name.replace(".txt", "_1.txt")

    with pytest.raises(StorageBroken, match=r"_1\.txt"):
        put_bytes(Renaming(location=tmp_path / "other"), b"text")


def test_the_setting_names_the_default() -> None:
    assert isinstance(staging_storage(), ContentFiles)
    assert staging_storage() is storages["staging"]


def test_of_many_who_put_the_same_at_once_one_has_put_it(files: ContentFiles) -> None:
    data, start, won = os.urandom(500_000), Barrier(8), list[bool]()

    def work() -> None:
        start.wait(60)
        won.append(put_bytes(files, data))

    threads = [Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(won) == [False] * 7 + [True]
    found = [path for path in Path(files.location).rglob("*") if path.is_file()]
    assert [path.name for path in found] == [name_of(data)[3:]]
    assert found[0].read_bytes() == data


def test_no_link_is_followed(files: ContentFiles, tmp_path: Path) -> None:
    put_bytes(files, b"text")
    outside = tmp_path / "outside"
    outside.mkdir()
    folder = Path(files.location) / name_of(b"text")[:2]
    folder.rename(tmp_path / "moved")
    folder.symlink_to(outside)
    with pytest.raises(OSError, match=r"symbolic links|Not a directory"):
        put_bytes(files, b"text")
    with pytest.raises(OSError, match=r"symbolic links|Not a directory"):
        read(files, name_of(b"text"))
    assert list(outside.iterdir()) == []


def test_nothing_half_written_is_ever_visible(files: ContentFiles) -> None:
    class Breaking(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 100_000:
                raise ConnectionError("the sender went away")
            return super().read(size)

    data = os.urandom(300_000)
    with pytest.raises(ConnectionError):
        put(files, name_of(data), Breaking(data), size=len(data))
    assert [path for path in Path(files.location).rglob("*") if path.is_file()] == []
    assert put_bytes(files, data)


def test_a_full_disk_is_a_clear_error(files: ContentFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(StorageFull):
            put_bytes(files, b"text")
    assert not files.exists(name_of(b"text"))
    assert put_bytes(files, b"text")


def test_nothing_is_removed_by_a_storage(files: ContentFiles) -> None:
    put_bytes(files, b"text")
    with pytest.raises(NotImplementedError, match="policies"):
        files.delete(name_of(b"text"))
