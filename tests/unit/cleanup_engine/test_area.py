"""Where an area may be, its marker, its lock."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from cleanup.engine import places
from cleanup.engine.area import marker_uuid, open_area, register_area
from cleanup.engine.errors import AreaBusy, AreaRefused
from tests.unit.cleanup_engine.kit import Garden


def refusal(path: Path | str, **options: object) -> str:
    with pytest.raises(AreaRefused) as caught:
        register_area(path, uuid4(), **options)  # type: ignore[arg-type]
    return caught.value.reason


def test_registering_writes_the_uuid_into_the_marker(tmp_path: Path) -> None:
    uuid = uuid4()
    registered = register_area(tmp_path, uuid)
    assert json.loads((tmp_path / ".staging-area").read_text())["area"] == str(uuid)
    assert (registered.uuid, registered.device) == (str(uuid), tmp_path.stat().st_dev)
    assert marker_uuid(tmp_path) == str(uuid)
    assert os.listdir(tmp_path) == [".staging-area"]


def test_registering_again_changes_nothing(garden: Garden) -> None:
    before = (garden.root / ".staging-area").stat()
    register_area(garden.root, garden.uuid)
    assert (garden.root / ".staging-area").stat().st_ino == before.st_ino


def test_an_area_is_not_registered_as_another(garden: Garden) -> None:
    assert refusal(garden.root) == "other_area"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/", "root"),
        ("/etc", "system"),
        ("/usr/local", "system"),
        ("/var", "system"),
        ("/tmp", "system"),
        ("/dev/shm", "system"),
        ("relative", "not_absolute"),
        ("/tmp/../etc", "not_absolute"),
        ("/no/such/place", "missing"),
        ("/etc/passwd", "not_a_directory"),
    ],
)
def test_dangerous_places_are_refused(path: str, reason: str) -> None:
    assert refusal(path) == reason


def test_a_home_and_what_holds_homes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "homes" / "ann"
    (home / "staging").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    assert refusal(home) == "home"
    assert refusal(home.parent) == "home"
    register_area(home / "staging", uuid4())


def test_a_link_is_refused_and_so_is_one_that_replaced_an_area(garden: Garden, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(garden.root)
    assert refusal(link) == "symlink"
    garden.root.rename(tmp_path / "moved")
    garden.root.symlink_to(tmp_path / "moved")
    with pytest.raises(AreaRefused, match="symbolic link"):
        garden.open()


def test_the_project_is_refused_but_for_its_data_folder(tmp_path: Path) -> None:
    project, staging = tmp_path / "project", tmp_path / "project" / "var" / "staging"
    staging.mkdir(parents=True)
    (project / "src").mkdir()
    options = {"forbidden": [project], "permitted": [project / "var"]}
    assert refusal(project, **options) == "forbidden"
    assert refusal(project / "src", **options) == "forbidden"
    assert refusal(tmp_path, **options) == "forbidden"
    register_area(staging, uuid4(), **options)  # type: ignore[arg-type]


def test_a_parent_of_a_mount_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "mountinfo"
    (tmp_path / "with space" / "disk").mkdir(parents=True)
    table.write_text(f"36 35 98:0 / {tmp_path}/with\\040space/disk rw - ext4 /dev/x rw\n")
    monkeypatch.setattr(places, "_MOUNTINFO", table)
    assert refusal(tmp_path / "with space") == "mount_below"
    register_area(tmp_path / "with space" / "disk", uuid4())


def test_an_area_without_its_marker_is_refused(garden: Garden) -> None:
    (garden.root / ".staging-area").unlink()
    with pytest.raises(AreaRefused, match="mounted") as caught:
        garden.open()
    assert caught.value.reason == "marker_missing"


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"area": 7}', '{"area": "x"}', "\x00", "[" * 5000])
def test_a_marker_that_holds_no_uuid_is_refused(garden: Garden, content: str) -> None:
    (garden.root / ".staging-area").write_text(content)
    with pytest.raises(AreaRefused) as caught:
        garden.open()
    assert caught.value.reason == "marker_invalid"


def test_a_marker_that_is_a_link_or_a_fifo_is_refused(garden: Garden, tmp_path: Path) -> None:
    marker = garden.root / ".staging-area"
    marker.rename(tmp_path / "elsewhere")
    marker.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AreaRefused, match="marker"):
        garden.open()
    marker.unlink()
    os.mkfifo(marker)
    with pytest.raises(AreaRefused, match="marker"):
        garden.open()


def test_another_uuid_or_another_device_is_refused(garden: Garden) -> None:
    for options, reason in (
        ({"uuid": UUID(int=7)}, "other_area"),
        ({"uuid": garden.uuid, "device": garden.root.stat().st_dev + 1}, "other_device"),
    ):
        with pytest.raises(AreaRefused) as caught:
            open_area(garden.root, **options)  # type: ignore[arg-type]
        assert caught.value.reason == reason


def test_one_process_at_a_time_holds_an_area(garden: Garden) -> None:
    with garden.open() as one, garden.open() as other:
        with one.lock(), pytest.raises(AreaBusy), other.lock():
            pass
        with other.lock():
            pass


def test_an_open_area_stays_the_same_directory_when_its_path_is_exchanged(
    garden: Garden, tmp_path: Path
) -> None:
    garden.write("file")
    with garden.open() as area:
        garden.root.rename(tmp_path / "moved")
        garden.root.mkdir()
        assert sorted(os.listdir(area.fd)) == [".staging-area", "file"]


def test_a_refusal_survives_pickling() -> None:
    refused = pickle.loads(pickle.dumps(AreaRefused("root", "no")))  # noqa: S301
    assert (refused.reason, str(refused), refused.code, refused.retryable) == (
        "root",
        "no",
        "area_refused",
        False,
    )
