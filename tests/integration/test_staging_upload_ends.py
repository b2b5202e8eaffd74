"""Uploads after a death, within their quotas, on their topics, and raced: each ends once, and as one file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from bus.log.current import event_log
from cleanup.models import StagedContent, StagedFile, Upload, UploadState
from cleanup.operations import OperationRefused
from cleanup.operations.area_changes import remove_area, set_enabled
from cleanup.staging import finishing, folders, placing, uploads
from cleanup.staging.errors import Gone, Locked, QuotaExceeded, TooLarge, WrongOffset
from cleanup.staging.uploads import expire, give_up, recover, terminate, write_part
from cleanup.stores.sql import database_now
from tests.integration.staged import at_once, visible
from tests.integration.test_staging_uploads import AGENT, OTHER, TEXT, begin, in_parts, send, state_of
from tests.retention import ANNA, Staging

pytestmark = pytest.mark.django_db


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    return Staging(tmp_path)


@pytest.fixture
def configured(settings: Any) -> Callable[..., None]:
    """Changes settings of cleanup."""

    def change(**values: Any) -> None:
        settings.CLEANUP = {**settings.CLEANUP, **values}

    return change


def told(upload: Upload) -> list[tuple[str, dict[str, Any]]]:
    page = event_log().read(f"upload:{upload.pk}", limit=100)
    return [(event.event_type, json.loads(event.payload)["data"]) for event in page.events]


class Dying(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("when", ["before the rename", "after the rename", "after the rows"])
def test_a_finish_that_was_interrupted_goes_on(staging: Staging, monkeypatch: Any, when: str) -> None:
    upload = send(begin(), TEXT[:-1])

    def die(*_: object, **__: object) -> None:
        raise Dying

    where = {
        "before the rename": (placing, "rename_new"),
        "after the rename": (finishing, "_done"),
        "after the rows": (folders, "drop"),
    }[when]
    with monkeypatch.context() as patched:
        patched.setattr(*where, die)
        with pytest.raises(Dying):
            send(upload, TEXT[-1:], len(TEXT) - 1)
    assert recover(database_now()) == (0 if when == "after the rows" else 1)
    found = Upload.objects.get(pk=upload.pk)
    assert found.state == UploadState.DONE
    assert [row.pk for row in StagedFile.objects.all()] == [found.staged_file]
    assert list(visible(staging.area).values()) == [TEXT]
    assert in_parts(staging) == []
    assert recover(database_now()) == 0


def test_a_whole_upload_waits_for_its_area(staging: Staging) -> None:
    upload = send(begin(), TEXT[:-1])

    def body() -> Iterator[bytes]:
        yield TEXT[-1:]
        set_enabled(staging.area, False, ANNA)

    with pytest.raises(OperationRefused):
        write_part(upload.pk, AGENT, len(TEXT) - 1, body())
    assert (state_of(upload), recover(database_now())) == (UploadState.FINISHING, 0)
    set_enabled(staging.area, True, ANNA)
    assert recover(database_now()) == 1
    assert list(visible(staging.area).values()) == [TEXT]


def test_recovery_removes_parts_of_no_upload_and_leaves_those_of_others(staging: Staging) -> None:
    upload = send(begin(), TEXT[:100])
    folder = staging.root / ".staging-uploads"
    for name in (uuid4().hex, "source-3-abc.part", "bytes-young"):
        (folder / name).write_bytes(b"x")
    (folder / "bytes-old").write_bytes(b"x")
    os.utime(folder / "bytes-old", (1_000_000_000, 1_000_000_000))
    assert recover(database_now()) == 2
    assert in_parts(staging) == sorted([upload.pk.hex, "source-3-abc.part", "bytes-young"])


def test_rows_of_uploads_that_are_long_over_are_removed(staging: Staging) -> None:
    upload, still_open = send(begin(), TEXT), begin()
    Upload.objects.update(created_at=database_now() - timedelta(days=31))
    expire(database_now())
    assert not Upload.objects.filter(pk=upload.pk).exists()
    assert Upload.objects.filter(pk=still_open.pk).exists()
    assert StagedFile.objects.count() == 1


def test_an_area_goes_when_its_uploads_are_over_and_not_before(staging: Staging) -> None:
    upload = begin()
    StagedContent.objects.create(area=staging.area, sha256="0" * 64, size=1, path="00/0.txt")
    set_enabled(staging.area, False, ANNA)
    with pytest.raises(OperationRefused, match="uploads still point"):
        remove_area(staging.area, ANNA)
    give_up(upload.pk, ANNA)
    remove_area(staging.area, ANNA)
    assert not Upload.objects.exists()
    assert not StagedContent.objects.exists()


def test_quotas_hold_and_say_when_to_come_again(staging: Staging, configured: Any) -> None:
    configured(UPLOAD_MAX_OPEN=2)
    first = begin(size=10)
    begin(size=10)
    with pytest.raises(QuotaExceeded, match="2 uploads"):
        begin(size=10)
    begin(size=10, who=OTHER)
    terminate(first.pk, AGENT)
    configured(UPLOAD_MAX_OPEN=9, UPLOAD_RATE=2)
    with pytest.raises(QuotaExceeded) as refusal:
        begin(size=10)
    assert 1 <= refusal.value.retry_after <= 60
    configured(UPLOAD_RATE=600, UPLOAD_DAILY_BYTES=25)
    with pytest.raises(QuotaExceeded) as refusal:
        begin(size=6)
    assert 3_600 < refusal.value.retry_after <= 86_400
    begin(size=5)
    with pytest.raises(TooLarge):
        begin(size=26)
    Upload.objects.filter(uploader=AGENT.name).update(created_at=database_now() - timedelta(hours=25))
    begin(size=25)


def test_an_upload_tells_its_topic_and_ends_it(staging: Staging) -> None:
    upload = begin()
    send(upload, TEXT[:100])
    assert [kind for kind, _ in told(upload)] == ["upload.started", "upload.progress"]
    assert told(upload)[1][1]["done"] == 100
    send(upload, TEXT[100:], 100)
    kind, data = told(upload)[2]
    assert (kind, data["state"], data["total"]) == ("upload.completed", "done", len(TEXT))
    topic = f"upload:{upload.pk}"
    assert event_log().states([topic])[topic].ended_at is not None


@pytest.mark.django_db(transaction=True)
def test_quotas_are_exact_however_many_ask_at_once(staging: Staging, configured: Any) -> None:
    configured(UPLOAD_MAX_OPEN=5)
    done = at_once(*[partial(begin, size=10)] * 8)
    assert sum(isinstance(one, Upload) for one in done) == Upload.objects.count() == 5
    assert sum(isinstance(one, QuotaExceeded) for one in done) == 3


@pytest.mark.django_db(transaction=True)
def test_of_many_who_write_the_same_part_one_is_taken(staging: Staging) -> None:
    upload = begin()
    done = at_once(*[partial(send, upload, TEXT)] * 6)
    taken = [one for one in done if isinstance(one, Upload)]
    assert len(taken) == 1
    assert all(isinstance(one, Upload | Locked | WrongOffset | Gone) for one in done)
    assert StagedFile.objects.count() == 1
    assert list(visible(staging.area).values()) == [TEXT]


@pytest.mark.django_db(transaction=True)
def test_an_upload_that_is_finished_twice_at_once_is_one_file(staging: Staging, monkeypatch: Any) -> None:
    upload = send(begin(), TEXT[:-1])
    with monkeypatch.context() as patched:
        patched.setattr(uploads, "finish", finishing.reread)
        send(upload, TEXT[-1:], len(TEXT) - 1)
    assert state_of(upload) == UploadState.FINISHING
    done = at_once(*[lambda: recover(database_now())] * 4)
    assert not [one for one in done if isinstance(one, Exception)]
    assert state_of(upload) == UploadState.DONE
    assert StagedFile.objects.count() == 1
    assert in_parts(staging) == []


@pytest.mark.django_db(transaction=True)
def test_giving_up_and_finishing_have_one_winner(staging: Staging) -> None:
    for _ in range(5):
        upload = send(begin(), TEXT[:-1])
        last = partial(send, upload, TEXT[-1:], len(TEXT) - 1)
        done = at_once(partial(give_up, upload.pk, ANNA), last)
        state = state_of(upload)
        assert state in (UploadState.DONE, UploadState.TERMINATED)
        assert sum(isinstance(one, Exception) for one in done) == 1
        assert (Upload.objects.get(pk=upload.pk).staged_file is not None) == (state == UploadState.DONE)
    recover(database_now())
    assert in_parts(staging) == []
    assert StagedFile.objects.count() == Upload.objects.filter(state=UploadState.DONE).count()
