"""Areas and policies with which nothing may be done, and what is remembered of each policy."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest

from cleanup import operations
from cleanup.engine.errors import AreaRefused, PolicyInvalid
from cleanup.models import PolicyVersion
from cleanup.operations import OperationRefused
from tests.retention import ANNA, BEN, Staging, later

pytestmark = pytest.mark.django_db


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    return Staging(tmp_path)


def test_an_area_without_its_marker_is_refused_and_left_alone(staging: Staging) -> None:
    names = staging.fill(3)
    policy = staging.policy()
    (staging.root / ".staging-area").unlink()
    run = staging.run(policy)
    assert run.state == "refused"
    assert ".staging-area" in run.message
    assert staging.files() == names
    with pytest.raises(AreaRefused):
        operations.preview(policy)
    assert operations.purge_due(now=later(99)).errors == []


def test_an_area_replaced_by_a_link_is_refused(staging: Staging, tmp_path: Path) -> None:
    staging.fill(3)
    policy = staging.policy()
    staging.root.rename(tmp_path / "moved")
    os.symlink(tmp_path / "moved", staging.root)
    run = staging.run(policy)
    assert run.state == "refused"
    assert len(list((tmp_path / "moved").rglob("f*"))) == 3


def test_dangerous_places_are_no_areas(tmp_path: Path) -> None:
    for path in ("/", "/etc", "relative/path", str(tmp_path / "absent"), "/srv/\0", "/srv/\udcff"):
        with pytest.raises((AreaRefused, OperationRefused)):
            operations.add_area("bad", path, ANNA)
    Staging(tmp_path, "one")
    with pytest.raises(AreaRefused, match="already the area"):
        operations.add_area("two", tmp_path / "one", ANNA)
    with pytest.raises(OperationRefused, match="already"):
        operations.add_area("one", tmp_path, ANNA)


@pytest.mark.parametrize(
    "fields",
    [
        {"age": "2q"},
        {"age": ""},
        {"rule": "whim"},
        {"include": ["re:("]},
        {"verifiers": ["nobody"]},
        {"verifiers": [{"kind": "redis_task", "key": "constant"}]},
        {"task_id_pattern": "no group"},
        {"max_percent": 101},
        {"grace_period": timedelta(days=-1)},
        {"age_by": "x"},
        {"include": "*.txt"},
        {"schedule": "0"},
    ],
)
def test_a_policy_that_could_not_be_obeyed_is_not_saved(staging: Staging, fields: dict[str, object]) -> None:
    with pytest.raises((PolicyInvalid, OperationRefused)):
        staging.policy(**fields)
    assert not PolicyVersion.objects.exists()


def test_every_save_makes_a_version_and_a_run_points_at_the_newest(staging: Staging) -> None:
    policy = staging.policy()
    first = staging.run(policy)
    policy.age = "3d"
    operations.save_policy(policy, BEN)
    second = staging.run(policy)
    assert [run.policy_version.number for run in (first, second)] == [1, 2]
    assert [version.document["age"] for version in policy.versions.order_by("number")] == ["2d", "3d"]
    assert policy.versions.get(number=2).created_by == "ben"


def test_a_policy_that_is_off_or_in_a_disabled_area_does_not_run(staging: Staging) -> None:
    policy = staging.policy(mode="off")
    with pytest.raises(OperationRefused, match="off"):
        operations.start_run(policy, ANNA)
    operations.set_mode(policy, "enforce", ANNA)
    policy.area.enabled = False
    policy.area.save()
    with pytest.raises(OperationRefused, match="disabled"):
        operations.start_run(policy, ANNA)
