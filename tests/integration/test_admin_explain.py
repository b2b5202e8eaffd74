"""Explain a path in the console: in words, without a walk unless asked, and never about what lies outside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from cleanup import operations
from cleanup.admin.explain import explain_url
from cleanup.models import StagedFile
from cleanup.operations import judging
from tests.retention import ANNA, DAY, Staging, write

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("refusals_unlogged")]


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    return Staging(tmp_path, "staged")


def shown(people: dict[str, User], path: str, staging: Staging | None = None, *, method: str = "get") -> str:
    client = Client()
    client.force_login(people["viewer"])
    reply: Any = getattr(client, method)(explain_url(path, staging.area if staging else None))
    assert reply.status_code == 200, reply.status_code
    return str(reply.content.decode())


def test_a_file_is_explained_with_its_policies_row_and_holds(people, staging):
    staging.policy("old")
    write(staging.root / "d/a.txt")
    StagedFile.objects.create(area=staging.area, path="d/a.txt", uploader="ben", task_id="t7")
    operations.hold(staging.area, "d/**", None, "asked for", ANNA)
    for page in (shown(people, str(staging.root / "d/a.txt")), shown(people, "d/a.txt", staging)):
        assert "It is a file of 7\u00a0B" in page
        assert "asked for" in page
        assert "by ben, task t7" in page
        assert ">stays<" in page
        assert "Held by" in page


@pytest.mark.sqlite_only
def test_a_young_file_says_when_that_changes(people, staging):
    staging.policy("old")
    write(staging.root / "a", age=DAY)
    page = shown(people, "a", staging)
    assert "Its rule lets it go from" in page
    assert "in 23 h" in page
    assert "It was never in the trash under this name" in page


def test_what_went_through_the_trash_is_told_with_its_audit_entries(people, staging):
    write(staging.root / "a")
    staging.run(staging.policy("old"))
    page = shown(people, "a", staging)
    assert "It is not there" in page
    assert "in trash" in page
    assert "old v1" in page
    assert ">trashed<" in page


@pytest.mark.sqlite_only
def test_nothing_but_the_path_is_looked_at_until_it_is_asked_for(people, staging, monkeypatch):
    staging.policy("best", rule="keep_newest", keep=1, age="")
    write(staging.root / "a")
    write(staging.root / "b", age=9 * DAY)

    def no_plan(*_: Any, **__: Any) -> None:
        raise AssertionError("the whole area was read")

    with monkeypatch.context() as patch:
        patch.setattr(judging, "make_plan", no_plan)
        page = shown(people, "b", staging)
    assert "not judged yet" in page
    assert "Ask verifiers and compare files" in page
    full = shown(people, "b", staging, method="post")
    assert "not judged yet" not in full
    assert "would go" in full


@pytest.mark.sqlite_only
def test_verifiers_are_asked_by_the_button_alone(people, staging):
    staging.policy("asked", verifiers=["sidecar"])
    write(staging.root / "a")
    page = shown(people, "a", staging)
    assert "if its verifiers pass" in page
    assert "not asked yet" in page
    full = shown(people, "a", staging, method="post")
    assert "not asked yet" not in full
    assert "verifier sidecar" in full


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    "path", ["../../etc/passwd", "/etc/passwd", "d/../../x", "a\0b", "x" * 6_000, "\\x00", "//", ".."]
)
def test_paths_that_lead_out_or_make_no_sense_are_refused_in_words(people, staging, path):
    page = shown(people, path, staging)
    assert "Nothing can be said" in page or "stays" in page or "Explain a path" in page
    assert "It is a file" not in page
    assert "root:" not in page


@pytest.mark.sqlite_only
def test_nothing_is_told_of_what_lies_outside(people, staging, tmp_path):
    secret = write(tmp_path / "secret", "do not tell")
    page = shown(people, str(secret))
    assert "No area contains it" in page
    assert "a file of" not in page
    assert "do not tell" not in page
    (staging.root / "link").symlink_to(tmp_path)
    through = shown(people, "link/secret", staging)
    assert "It is not there" in through
    assert "11\u00a0B" not in through


@pytest.mark.sqlite_only
def test_a_relative_path_needs_its_area_and_an_unknown_area_is_named(people, staging):
    assert "name the area" in shown(people, "d/a.txt")
    client = Client()
    client.force_login(people["viewer"])
    reply = client.get("/admin/cleanup/explain/", {"path": "a", "area": "nowhere"})
    assert "there is no area" in reply.content.decode()


@pytest.mark.sqlite_only
def test_the_page_asks_for_a_role_and_a_csrf_token(people, staging):
    client = Client(enforce_csrf_checks=True)
    assert client.get("/admin/cleanup/explain/").status_code == 302
    client.force_login(people["nobody"])
    assert client.get("/admin/cleanup/explain/").status_code == 403
    client.force_login(people["viewer"])
    assert client.post("/admin/cleanup/explain/?path=/tmp").status_code == 403


@pytest.mark.sqlite_only
def test_an_area_that_cannot_be_opened_says_so(people, staging):
    staging.policy("old")
    write(staging.root / "a")
    (staging.root / ".staging-area").unlink()
    page = shown(people, "a", staging)
    assert "not known, since the area cannot be opened" in page
    assert "The area cannot be cleaned" in page
