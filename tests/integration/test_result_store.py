"""Results of tasks: whole or not at all, in pages within bounded memory, never expired before their time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from threading import Barrier, Thread
from typing import Any

import lz4.frame
import pytest

from cleanup.engine.daemon import ResultCleanupDaemon
from cleanup.staging import lz4pages
from cleanup.staging.errors import StorageFull
from cleanup.staging.results import NoResult, ResultCorrupt, ResultRefused, ResultStore, Summary

pytestmark = pytest.mark.sqlite_only

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
MB = 1_000_000


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> ResultStore:
    folder = tmp_path / "results"
    folder.mkdir()
    return ResultStore(folder, clock=clock)


def rows(count: int) -> Iterator[dict[str, Any]]:
    """Entries of very different lengths, with line ends and every kind of letter in them."""
    for number in range(count):
        yield {"n": number, "text": f"line\nend {chr(0x20AC)} " * (number % 50), "id": f"{number:08x}"}


def visible(store: ResultStore) -> set[str]:
    return {path.name for path in store.folder.iterdir() if not path.name.startswith(".")}


@pytest.mark.parametrize("data", [{"a": [1, 2.5, None]}, [], [1], ["x\ny", {"z": []}], "text", 0, None, [[]]])
def test_what_was_stored_is_read_back(store: ResultStore, data: Any) -> None:
    summary = store.store("task-1", data)
    assert store.retrieve("task-1") == data
    assert store.summary("task-1") == summary
    assert store.checksum("task-1") == summary.sha256
    assert list(store.entries("task-1")) == (data if isinstance(data, list) else [data])


def test_the_files_are_those_that_the_rule_and_everybodys_lz4_know(store: ResultStore) -> None:
    data = list(rows(20_000))
    summary = store.store("task-1", data)
    assert visible(store) == {"task-1.result.json.lz4", "task-1.metadata.json"}
    raw = (store.folder / "task-1.result.json.lz4").read_bytes()
    text = lz4.frame.decompress(raw)
    assert json.loads(text) == data
    with lz4.frame.open(store.folder / "task-1.result.json.lz4") as file:
        assert file.read() == text
    told = json.loads((store.folder / "task-1.metadata.json").read_text())
    assert told["expires_at"] == (START + timedelta(days=7)).isoformat()
    assert told["created_at"] == START.isoformat()
    assert (told["file_size"], told["size"], told["sha256"]) == (len(raw), len(text), summary.sha256)
    assert told["compression_ratio"] == round(len(raw) / len(text), 4) < 1


def test_the_command_lz4_reads_a_result(store: ResultStore) -> None:
    program = shutil.which("lz4")
    if program is None:
        pytest.skip("no lz4 on PATH")
    store.store("task-1", list(rows(5_000)))
    done = subprocess.run(
        [program, "-dc", str(store.folder / "task-1.result.json.lz4")], capture_output=True, check=True
    )
    assert json.loads(done.stdout) == list(rows(5_000))


@pytest.mark.parametrize("size", [1, 7, 100, 30_000])
def test_pages_in_their_order_are_the_whole(store: ResultStore, size: int) -> None:
    count = 700 if size < 100 else 20_000
    store.store("task-1", rows(count))
    pages = -(-count // size)
    found = []
    for number in range(1, pages + 1):
        page = store.page("task-1", number, size=size)
        assert (page.number, page.pages, page.total) == (number, pages, count)
        found += page.entries
    assert found == list(rows(count))
    assert store.page("task-1", pages + 1, size=size).entries == []


def test_an_entry_larger_than_many_blocks_has_its_place_in_a_page(store: ResultStore) -> None:
    long = "0123456789" * (lz4pages.BLOCK // 3)
    data = ["first", long, "between", long, long, "last"]
    store.store("task-1", iter(data))
    for number, entry in enumerate(data, 1):
        assert store.page("task-1", number, size=1).entries == [entry]


def test_entries_that_end_exactly_with_a_block_are_found(store: ResultStore) -> None:
    # `[\n`, then entries of `"...",\n`: with this length the blocks end between two of them.
    data = ["x" * (lz4pages.BLOCK // 4 - 4)] * 9
    data[0] = data[0][:-2]
    store.store("task-1", data)
    assert [store.page("task-1", number, size=1).entries[0] for number in range(1, 10)] == data


@pytest.mark.parametrize("number", [0, -1])
def test_there_is_no_page_before_the_first(store: ResultStore, number: int) -> None:
    store.store("task-1", [1])
    with pytest.raises(ResultRefused, match="begin with 1"):
        store.page("task-1", number)


def test_a_large_result_is_written_paged_and_summed_up_in_bounded_memory(store: ResultStore) -> None:
    filler = "".join(f"{number:07d}" for number in range(1_400))
    count = 200 * MB // len(filler)
    tracemalloc.start()
    try:
        summary = store.store("big", ({"n": number, "text": filler} for number in range(count)))
        page = store.page("big", count // 100, size=100)
        assert [entry["n"] for entry in page.entries] == list(
            range((count // 100 - 1) * 100, count // 100 * 100)
        )
        assert store.summary("big") == summary
        assert store.checksum("big") == summary.sha256
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert summary.size > 199 * MB
    assert peak < 12 * MB


def test_a_page_at_the_end_reads_little_of_the_file(store: ResultStore) -> None:
    noise = Random(7)
    store.store("big", (noise.randbytes(1_500).hex() for _ in range(2_000)))
    file = store.folder / "big.result.json.lz4"
    with file.open("rb") as opened:
        contents = lz4pages.read_contents(opened)
        place, line, _ = contents.way_to(1_990)
    assert 1_800 < line <= 1_990
    assert contents.end - place < 3 * lz4pages.BLOCK < file.stat().st_size / 5


@pytest.mark.parametrize(
    "task_id", ["", ".", "..", "../x", "a/b", "a\\b", ".hidden", "a\0", "ä", "x" * 201, "a b"]
)
def test_an_id_never_becomes_a_path(store: ResultStore, task_id: str) -> None:
    for verb in (
        lambda: store.store(task_id, 1),
        lambda: store.retrieve(task_id),
        lambda: store.touch(task_id),
    ):
        with pytest.raises(ResultRefused, match="a task has an id"):
            verb()
    assert visible(store) == set()


def test_a_link_is_not_followed(store: ResultStore, tmp_path: Path) -> None:
    store.store("task-1", "mine")
    outside = tmp_path / "outside"
    (store.folder / "task-1.result.json.lz4").rename(outside)
    (store.folder / "task-1.result.json.lz4").symlink_to(outside)
    with pytest.raises(ResultCorrupt, match=r"task-1\.result\.json\.lz4 cannot be opened"):
        store.retrieve("task-1")
    store.store("task-1", "new")
    assert store.retrieve("task-1") == "new"
    assert outside.is_file()


@pytest.mark.parametrize("data", [{1, 2}, float("nan"), "\ud800", object()])
def test_what_is_no_json_is_refused_and_the_former_result_stays(store: ResultStore, data: Any) -> None:
    store.store("task-1", "former")
    with pytest.raises(ResultRefused, match="no JSON"):
        store.store("task-1", iter([1, data]))
    assert store.retrieve("task-1") == "former"
    assert [*(store.folder / ".staging-results").glob("*.part")] == []


def test_a_stream_that_breaks_leaves_the_former_result(store: ResultStore) -> None:
    def broken() -> Iterator[int]:
        yield from range(100_000)
        raise ConnectionError("the model went away")

    store.store("task-1", "former")
    with pytest.raises(ConnectionError, match="went away"):
        store.store("task-1", broken())
    assert store.retrieve("task-1") == "former"


@pytest.mark.parametrize("ttl", [timedelta(0), timedelta(seconds=-1), timedelta.max])
def test_a_time_to_live_is_a_time(store: ResultStore, ttl: timedelta) -> None:
    with pytest.raises(ResultRefused, match="kept"):
        store.store("task-1", 1, ttl=ttl)


def test_a_result_without_metadata_and_metadata_without_a_result_are_no_result(store: ResultStore) -> None:
    store.store("task-1", 1)
    store.store("task-2", 2)
    (store.folder / "task-1.metadata.json").unlink()
    (store.folder / "task-2.result.json.lz4").unlink()
    for task_id in ("task-1", "task-2", "task-3"):
        for verb in (store.retrieve, store.summary, store.page, store.checksum, store.touch):
            with pytest.raises(NoResult, match=task_id):
                verb(task_id)
    assert list(store.tasks()) == []


def test_all_results_are_listed(store: ResultStore) -> None:
    for number in range(20):
        store.store(f"task-{number}", number)
    (store.folder / "notes.txt").write_text("not ours")
    assert sorted(store.tasks()) == sorted(f"task-{number}" for number in range(20))


@pytest.mark.parametrize("spoil", ["flip", "cut", "empty", "swap"])
def test_a_corrupt_file_is_a_clear_error_that_names_it(store: ResultStore, spoil: str) -> None:
    store.store("task-1", list(rows(20_000)))
    file = store.folder / "task-1.result.json.lz4"
    data = bytearray(file.read_bytes())
    if spoil == "flip":
        data[100] ^= 0xFF
    elif spoil == "cut":
        del data[len(data) // 2 :]
    elif spoil == "empty":
        data.clear()
    else:  # blocks of the right form at the wrong place: only the hash of the whole tells
        other = ResultStore(store.folder)
        other.store("task-2", [{**row, "id": row["id"][::-1]} for row in rows(20_000)])
        data = bytearray((store.folder / "task-2.result.json.lz4").read_bytes())
        data = data.replace(store.summary("task-2").sha256.encode(), store.summary("task-1").sha256.encode())
    file.write_bytes(data)
    for verb in (store.retrieve, store.checksum):
        with pytest.raises(ResultCorrupt, match=r"task-1\.result\.json\.lz4 is corrupt"):
            verb("task-1")
    if spoil != "swap":
        with pytest.raises(ResultCorrupt, match=r"task-1\.result\.json\.lz4 is corrupt"):
            store.page("task-1", 1)


def test_every_flipped_byte_is_noticed(store: ResultStore) -> None:
    """Wherever it is, the answer is right or a clear error."""
    data = list(rows(30))
    store.store("task-1", data)
    file = store.folder / "task-1.result.json.lz4"
    whole = file.read_bytes()
    for at in range(len(whole)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            found = store.retrieve("task-1")
        except ResultCorrupt as error:
            found = data if "task-1.result.json.lz4" in str(error) else str(error)
        assert found == data, at


@pytest.mark.parametrize(
    "text", ["", "{}", '{"expires_at": "soon"}', '{"expires_at": "0001-01-01T00:00+10:00"}']
)
def test_corrupt_metadata_are_named(store: ResultStore, text: str) -> None:
    store.store("task-1", 1)
    (store.folder / "task-1.metadata.json").write_text(text)
    with pytest.raises(ResultCorrupt, match=r"task-1\.metadata\.json is corrupt"):
        store.summary("task-1")
    assert store.retrieve("task-1") == 1
    store.store("task-1", 2)
    assert store.summary("task-1").expires_at == START + timedelta(days=7)


def test_touching_prolongs_and_never_shortens(store: ResultStore, clock: Clock) -> None:
    store.store("task-1", [1, 2], ttl=timedelta(days=2))
    clock.now += timedelta(days=1)
    assert store.touch("task-1", ttl=timedelta(days=5)).expires_at == START + timedelta(days=6)
    assert store.touch("task-1", ttl=timedelta(hours=1)).expires_at == START + timedelta(days=6)
    assert store.summary("task-1").created_at == START
    assert store.retrieve("task-1") == [1, 2]


async def test_the_daemon_cleans_what_has_expired_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    past = ResultStore(folder, clock=lambda: datetime.now(UTC) - timedelta(days=8))
    past.store("old", list(rows(100)))
    past.store("kept", [1])
    present = ResultStore(folder)
    present.store("new", [2])
    present.touch("kept")
    done = await ResultCleanupDaemon(cache_dir=str(folder), metrics_url="")._cleanup_expired()
    assert (done["deleted_count"], done["errors"]) == (1, 0)
    assert sorted(present.tasks()) == ["kept", "new"]
    assert "old.metadata.json" not in visible(present)


def test_the_last_whole_one_wins_and_two_are_never_mixed(store: ResultStore) -> None:
    start, stop, seen = Barrier(5), Barrier(5), list[Any]()
    store.store("task-1", ["0"] * 300)

    def write(mark: str) -> None:
        start.wait(60)
        for number in range(25):
            store.store("task-1", (mark for _ in range(200 + number)), ttl=timedelta(days=1 + number))
        stop.wait(120)

    def read() -> None:
        start.wait(60)
        for _ in range(100):
            seen.append((store.retrieve("task-1"), store.summary("task-1")))
        stop.wait(120)

    threads = [Thread(target=write, args=(mark,)) for mark in "abc"] + [Thread(target=read)]
    for thread in threads:
        thread.start()
    start.wait(60)
    stop.wait(120)
    for thread in threads:
        thread.join(60)
    assert len(seen) == 100
    assert all(len(set(entries)) == 1 for entries, _ in seen)
    told = json.loads((store.folder / "task-1.metadata.json").read_text())
    summary: Summary = store.summary("task-1")
    assert (told["sha256"], told["entries"]) == (summary.sha256, summary.entries)
    assert summary.entries == 224
    assert store.checksum("task-1") == summary.sha256


_KILLED = """
import os, signal, sys
from datetime import timedelta
from cleanup.staging.results import ResultStore
real, left = {call}, int(sys.argv[2])
def dying(*args, **options):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **options)
{call} = dying
ResultStore(sys.argv[1]).store("task-1", (["new"] * 50 for _ in range(9_000)), ttl=timedelta(days=1))
"""


@pytest.mark.parametrize("call", ["os.fsync", "os.replace", "os.open"])
def test_killed_at_any_step_the_old_or_the_new_result_is_whole_and_kept_as_long_as_promised(
    tmp_path: Path, call: str
) -> None:
    """The old one was promised for 30 days, the new one is for 1: neither may be cut short."""
    folder = tmp_path / "results"
    folder.mkdir()
    store, number, code = ResultStore(folder), 0, -9
    while code == -9:
        number += 1
        old = store.store("task-1", "old", ttl=timedelta(days=30))
        environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "xnai_site.settings"}
        command = [sys.executable, "-c", _KILLED.format(call=call), str(folder), str(number)]
        code = subprocess.run(
            command, env=environment, cwd=Path(__file__).parents[2], check=False, timeout=120
        ).returncode
        assert code in (0, -9)
        found, summary = store.retrieve("task-1"), store.summary("task-1")
        assert found == "old" or len(found) == 9_000
        if found == "old":
            assert summary.expires_at >= old.expires_at
    assert number > 2
    assert store.summary("task-1").expires_at < old.expires_at
    assert visible(store) == {"task-1.result.json.lz4", "task-1.metadata.json"}


def test_what_a_dead_writer_left_is_removed_and_what_a_living_one_writes_is_not(store: ResultStore) -> None:
    store.store("task-1", 1)
    left = store.folder / ".staging-results" / "dead.part"
    fresh = store.folder / ".staging-results" / "fresh.part"
    for path in (left, fresh):
        path.write_text("half")
    os.utime(left, (0, 0))
    store.store("task-2", 2)
    assert not left.exists()
    assert fresh.exists()


def test_a_full_disk_is_a_clear_error_and_the_former_result_stays(
    store: ResultStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the kernel says of a full disk, at the moment when the bytes go there."""
    store.store("task-1", "former")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFull, match="no room"):
        store.store("task-1", ["x"] * 100)
    monkeypatch.undo()
    assert store.retrieve("task-1") == "former"
    store.store("task-1", "later")
    assert store.retrieve("task-1") == "later"
