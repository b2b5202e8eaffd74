"""Real trees through the commands: preview, run, restore, purge, audit, and files whose task is not over."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.e2e.trees import (
    disk_usage,
    expired_results,
    fingerprints,
    old_files,
    plant,
    plant_results,
    regular_files,
    size_of,
    space_of,
    unescaped,
)
from tests.harness import Site
from tests.servers import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

#: The three demonstration areas and their ages in days.
AREAS = {"rejected": 2, "extracted": 7, "distilled": 30}
FILES = 1_300
#: Longer than a busy machine needs to begin a command, for before it is over nothing may go.
GRACE = "30s"


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """No server runs: the commands work on the database and the files alone."""
    site = Site(web=0)
    site.start()
    yield site
    site.stop()


def area(site: Site, name: str) -> Path:
    """A new, empty staging area."""
    root = site.folder / "staging" / name
    root.mkdir(parents=True)
    site.manage("cleanup", "areas", "add", name, str(root))
    return root


def policy(site: Site, name: str, *options: str) -> None:
    """A policy that acts by itself."""
    site.manage("cleanup", "policies", "add", name, "--area", name, "--mode", "enforce", *options)


def planned(site: Site, name: str) -> tuple[dict[str, Any], set[bytes]]:
    """The preview of a policy and the paths in it."""
    plan = site.manage_json("cleanup", "plan", name)
    return plan, {unescaped(item["path"]) for item in plan["items"]}


@pytest.fixture(params=[*AREAS.items()], ids=[*AREAS])
def tree(site: Site, request: pytest.FixtureRequest) -> tuple[str, Path, int]:
    name, days = request.param
    root = area(site, name)
    plant(root, site.folder / "outside" / name, files=FILES, age_days=days, seed=days)
    policy(site, name, "--rule", "age", "--age", f"{days}d")
    return name, root, days


def test_a_run_trashes_what_the_oracle_says_and_restore_brings_it_all_back(
    site: Site, tree: tuple[str, Path, int]
) -> None:
    name, root, days = tree
    outside = site.folder / "outside" / name
    expected, before = old_files(root, days), fingerprints(root)
    treasure = {path: path.read_bytes() for path in outside.rglob("*.txt")}
    assert len(before) > FILES
    assert 0.3 * len(before) < len(expected) < 0.5 * len(before)

    plan, paths = planned(site, name)
    assert paths == expected
    assert (plan["files"], plan["bytes"]) == (len(expected), size_of(root, expected))
    assert plan["kept"]["symlink"] == 3
    assert plan["kept"]["hard_linked"] == 1
    assert plan["kept"]["special"] == 1
    assert fingerprints(root) == before

    run = site.manage_json("cleanup", "run", name)
    assert {key: run[key] for key in ("state", "trashed", "skipped", "errors", "residue")} == {
        "state": "done",
        "trashed": len(expected),
        "skipped": 0,
        "errors": 0,
        "residue": 0,
    }
    assert regular_files(root) == set(before) - expected
    assert {path: path.read_bytes() for path in outside.rglob("*.txt")} == treasure

    restored = site.manage_json("cleanup", "restore", "--area", name)
    assert restored == {"restored": len(expected), "conflicts": []}
    assert fingerprints(root) == before
    assert site.manage_json("cleanup", "audit", "verify")["sound"]


def test_expired_results_go_with_their_metadata_and_the_rest_stays(site: Site) -> None:
    root = area(site, "results")
    plant_results(root, pairs=400, seed=4)
    policy(site, "results", "--rule", "expires_at", "--max-percent", "100")
    expected, before = expired_results(root), fingerprints(root)
    assert 100 < len(expected) < 300
    companions = {path.removesuffix(b".result.json.lz4") + b".metadata.json" for path in expected}

    _, paths = planned(site, "results")
    assert paths | companions == expected | companions
    assert expected <= paths
    run = site.manage_json("cleanup", "run", "results")
    assert (run["state"], run["errors"], run["residue"]) == ("done", 0, 0)
    assert regular_files(root) == set(before) - expected - companions
    site.manage("cleanup", "restore", "--area", "results", "--json")
    assert fingerprints(root) == before


def test_restore_never_overwrites_what_took_the_place(site: Site) -> None:
    root = area(site, "conflicts")
    for name in ("taken.txt", "free.txt"):
        (root / name).write_text("old")
        os.utime(root / name, (1_000_000_000, 1_000_000_000))
    policy(site, "conflicts", "--rule", "age", "--age", "1d", "--max-percent", "100")
    assert site.manage_json("cleanup", "run", "conflicts")["trashed"] == 2
    (root / "taken.txt").write_text("new")
    report = site.manage_json("cleanup", "restore", "--area", "conflicts", accept=(0, 1))
    assert report["restored"] == 1
    assert len(report["conflicts"]) == 1
    assert "taken.txt" in str(report["conflicts"])
    assert (root / "taken.txt").read_text() == "new"
    assert (root / "free.txt").read_text() == "old"


def test_purge_after_grace_frees_the_space_and_nothing_before(site: Site) -> None:
    root = area(site, "brief")
    plant(root, site.folder / "outside" / "brief", files=300, age_days=2, seed=9)
    policy(site, "brief", "--rule", "age", "--age", "2d", "--grace", GRACE)
    expected, kept = old_files(root, 2), fingerprints(root)
    occupied, due = disk_usage(root), space_of(root, expected)
    run = site.manage_json("cleanup", "run", "brief")
    assert run["trashed"] == len(expected)
    assert site.manage_json("cleanup", "purge", "--due")["purged"] == 0
    assert disk_usage(root) >= occupied

    purged = wait_until(
        lambda: (report := site.manage_json("cleanup", "purge", "--due"))["purged"] and report,
        timeout=180,
        what="the end of the grace period",
    )
    assert purged["purged"] == len(expected)
    left = {path.name: path.stat() for path in (root / ".trash").rglob("*") if path.is_file()}
    assert set(left) <= {".ballast"}
    assert disk_usage(root) == occupied - due + sum(status.st_blocks * 512 for status in left.values())
    for path in expected:
        del kept[path]
    assert fingerprints(root) == kept


def test_another_file_system_below_the_area_is_left_alone(site: Site) -> None:
    root = area(site, "mounted")
    for name in ("a.txt", "below/b.txt"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("here")
        os.utime(root / name, (1_000_000_000, 1_000_000_000))
    with (
        mounted(root / "tmpfs", "-t", "tmpfs", "none"),
        mounted(root / "bind", "--bind", str(root / "below")),
    ):
        (root / "tmpfs" / "theirs.txt").write_text("theirs")
        os.utime(root / "tmpfs" / "theirs.txt", (1_000_000_000, 1_000_000_000))
        policy(site, "mounted", "--rule", "age", "--age", "1d", "--max-percent", "100")
        plan, paths = planned(site, "mounted")
        assert paths == {b"a.txt", b"below/b.txt"}
        assert plan["kept"]["mount_point"] == 2
        assert site.manage_json("cleanup", "run", "mounted")["trashed"] == 2
        assert (root / "tmpfs" / "theirs.txt").read_text() == "theirs"


@contextlib.contextmanager
def mounted(place: Path, *options: str) -> Iterator[None]:
    place.mkdir()
    done = subprocess.run(["mount", *options, str(place)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_row_changed_by_hand_is_found(site: Site) -> None:
    root = area(site, "tampered")
    (root / "evidence.txt").write_text("x")
    os.utime(root / "evidence.txt", (1_000_000_000, 1_000_000_000))
    policy(site, "tampered", "--rule", "age", "--age", "1d", "--max-percent", "100")
    site.manage("cleanup", "run", "tampered", "--json")
    query = "SELECT seq FROM cleanup_auditentry WHERE path = %s ORDER BY seq LIMIT 1"
    ((seq,),) = site.sql(query, "evidence.txt")
    with past_the_trigger(site):
        site.sql("UPDATE cleanup_auditentry SET path = %s WHERE seq = %s", "innocent.txt", seq)
    verdict = site.manage_json("cleanup", "audit", "verify", accept=(1,))
    assert not verdict["sound"]
    assert verdict["first_bad_seq"] == seq
    with past_the_trigger(site):
        site.sql("UPDATE cleanup_auditentry SET path = %s WHERE seq = %s", "evidence.txt", seq)
    assert site.manage_json("cleanup", "audit", "verify")["sound"]


@contextlib.contextmanager
def past_the_trigger(site: Site) -> Iterator[None]:
    """What somebody with the database's password can do."""
    guarded = site.database_url.startswith("postgres")
    if guarded:
        site.sql("ALTER TABLE cleanup_auditentry DISABLE TRIGGER USER")
    yield
    if guarded:
        site.sql("ALTER TABLE cleanup_auditentry ENABLE TRIGGER USER")


@pytest.fixture(scope="module")
def tasks(site: Site) -> tuple[Path, set[bytes]]:
    """Files of 60 tasks: a third of these are Complete, a third Running, a third unknown."""
    root = area(site, "tasks")
    policy(site, "tasks", "--rule", "age", "--age", "1d", "--max-percent", "100", "--verifier", "redis_task")
    with redis.Redis.from_url(site.valkey.url) as server:
        for number in range(60):
            name = root / f"task-t{number}" / "part.bin"
            name.parent.mkdir()
            name.write_bytes(b"x" * 100)
            os.utime(name, (1_000_000_000, 1_000_000_000))
            if number % 3 < 2:
                server.set(f"task:t{number}:status", ("Complete", "Running")[number % 3])
    return root, {b"task-t%d/part.bin" % number for number in range(0, 60, 3)}


def test_files_of_unfinished_tasks_stay_and_while_the_server_is_frozen_all_do(
    site: Site, tasks: tuple[Path, set[bytes]]
) -> None:
    root, finished = tasks
    before = regular_files(root)
    site.valkey.freeze()
    try:
        run = site.manage_json("cleanup", "run", "tasks", accept=(0, 1, 2))
    finally:
        site.valkey.thaw()
    assert run["trashed"] == 0
    assert regular_files(root) == before
    _, paths = planned(site, "tasks")
    assert paths == finished
    assert site.manage_json("cleanup", "run", "tasks", accept=(0, 1))["trashed"] == len(finished)
    assert regular_files(root) == before - finished
