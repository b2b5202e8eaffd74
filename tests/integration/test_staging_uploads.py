"""Uploads: part by part by any process, acknowledged only when it is on the disk, and ended once."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.db import OperationalError, connection

from cleanup.models import AuditEntry, StagedFile, Upload, UploadState
from cleanup.operations import NotFound, OperationRefused
from cleanup.staging import parts
from cleanup.staging.errors import (
    BadName,
    BadValue,
    ChecksumMismatch,
    Gone,
    Locked,
    NotAllowed,
    PartLost,
    StorageFull,
    TooLarge,
    WrongDigest,
    WrongOffset,
    WrongType,
)
from cleanup.staging.uploads import Uploader, create, expire, find, give_up, recover, terminate, write_part
from cleanup.stores.leases import owner_name
from cleanup.stores.sql import database_now
from tests.integration import staged
from tests.integration.staged import cut_after, sha256, visible
from tests.retention import ANNA, Staging

AGENT = Uploader(name="key:agent-7", may_upload=True, kind="key")
OTHER = Uploader(name="key:agent-8", may_upload=True, kind="key")
TEXT = b"".join(b"line %06d\n" % number for number in range(2_000))

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


def begin(size: int = len(TEXT), name: str = "lines.txt", who: Uploader = AGENT, **more: Any) -> Upload:
    return create(area="area", name=name, size=size, uploader=who, **more)


def send(upload: Upload, data: bytes, offset: int = 0, **more: Any) -> Upload:
    return write_part(upload.pk, AGENT, offset, [data], **more)


def state_of(upload: Upload) -> str:
    return Upload.objects.get(pk=upload.pk).state


def in_parts(staging: Staging) -> list[str]:
    return staged.parts(staging.area)


def on_disk(staging: Staging, upload: Upload) -> bytes:
    return (staging.root / ".staging-uploads" / upload.pk.hex).read_bytes()


def test_an_upload_in_parts_becomes_a_file_with_its_row(staging: Staging) -> None:
    upload = begin(task_id="t-1", sha256=sha256(TEXT).upper())
    assert (upload.state, upload.offset) == ("open", 0)
    for start in range(0, len(TEXT), 5_000):
        upload = send(upload, TEXT[start : start + 5_000], start)
        assert upload.offset == min(start + 5_000, len(TEXT))
    assert upload.state == UploadState.DONE
    row = StagedFile.objects.get(pk=upload.staged_file)
    assert (row.uploader, row.task_id, row.name, row.size) == ("key:agent-7", "t-1", "lines.txt", len(TEXT))
    assert visible(staging.area) == {row.path: TEXT}
    assert in_parts(staging) == []
    assert find(upload.pk, AGENT).offset == len(TEXT)


def test_nothing_is_visible_before_the_last_byte(staging: Staging) -> None:
    upload = send(begin(), TEXT[:-1])
    assert visible(staging.area) == {}
    send(upload, TEXT[-1:], len(TEXT) - 1)
    assert list(visible(staging.area).values()) == [TEXT]


def test_an_empty_upload_is_done_when_it_is_created(staging: Staging) -> None:
    upload = begin(size=0)
    assert upload.state == UploadState.DONE
    assert list(visible(staging.area).values()) == [b""]


def test_a_part_that_was_cut_is_kept_as_far_as_it_came(staging: Staging) -> None:
    upload = begin()
    with pytest.raises(ConnectionResetError):
        write_part(upload.pk, AGENT, 0, cut_after(TEXT[:700], TEXT[700:1_001]))
    assert find(upload.pk, AGENT).offset == 1_001
    assert send(upload, TEXT[1_001:], 1_001).state == UploadState.DONE
    assert list(visible(staging.area).values()) == [TEXT]


def test_a_part_with_a_checksum_is_kept_whole_or_not_at_all(staging: Staging) -> None:
    upload = begin()
    sent, good = TEXT[:1_000], ("sha1", hashlib.sha1(TEXT[:1_000], usedforsecurity=False).digest())
    with pytest.raises(ConnectionResetError):
        write_part(upload.pk, AGENT, 0, cut_after(sent[:500]), checksum=good)
    with pytest.raises(ChecksumMismatch):
        send(upload, sent, checksum=("sha256", hashlib.sha256(b"other").digest()))
    assert find(upload.pk, AGENT).offset == 0
    assert on_disk(staging, upload) == b""
    assert send(upload, sent, checksum=good).offset == 1_000
    good = ("sha256", hashlib.sha256(TEXT[1_000:]).digest())
    assert send(upload, TEXT[1_000:], 1_000, checksum=good).state == UploadState.DONE


@pytest.mark.parametrize("checksum", [("md5", b"x" * 16), ("sha256", b"short"), ("sha1", b"")])
def test_a_checksum_that_nobody_can_compare_is_refused(staging: Staging, checksum: tuple[str, bytes]) -> None:
    upload = begin()
    with pytest.raises(BadValue):
        send(upload, TEXT, checksum=checksum)
    assert find(upload.pk, AGENT).offset == 0


def test_another_process_goes_on_from_the_row_and_the_disk(staging: Staging) -> None:
    upload = send(begin(sha256=sha256(TEXT)), TEXT[:9_000])
    # What this process remembers and what it had written beyond the row are both gone.
    parts.hashes.forget(upload.pk)
    with (staging.root / ".staging-uploads" / upload.pk.hex).open("ab") as file:
        file.write(b"never acknowledged")
    assert send(upload, TEXT[9_000:], 9_000).state == UploadState.DONE
    assert list(visible(staging.area).values()) == [TEXT]


def test_a_process_that_saw_the_beginning_reads_what_others_have_written_since(staging: Staging) -> None:
    upload = send(begin(sha256=sha256(TEXT)), TEXT[:3_000])
    part = staging.root / ".staging-uploads" / upload.pk.hex
    with part.open("ab") as file:
        file.write(TEXT[3_000:9_000])
    Upload.objects.filter(pk=upload.pk).update(offset=9_000)
    assert send(upload, TEXT[9_000:], 9_000).state == UploadState.DONE


def test_a_part_begins_where_the_stored_bytes_end(staging: Staging) -> None:
    upload = send(begin(), TEXT[:100])
    for offset in (0, 99, 101, len(TEXT)):
        with pytest.raises(WrongOffset) as refusal:
            send(upload, TEXT, offset)
        assert refusal.value.offset == 100


def test_a_part_is_no_larger_than_parts_or_the_rest(staging: Staging, configured: Any) -> None:
    configured(UPLOAD_PART_SIZE=1_000)
    upload = begin(size=1_500)
    with pytest.raises(TooLarge, match="1000"):
        write_part(upload.pk, AGENT, 0, iter([TEXT[:900], TEXT[900:1_001]]))
    assert find(upload.pk, AGENT).offset == 0
    send(upload, TEXT[:1_000])
    with pytest.raises(TooLarge, match="beyond"):
        send(upload, TEXT[1_000:1_501], 1_000)
    assert on_disk(staging, upload) == TEXT[:1_000]
    assert send(upload, TEXT[1_000:1_500], 1_000).state == UploadState.DONE


def test_a_wrong_type_is_refused_with_its_first_bytes(staging: Staging) -> None:
    upload = begin(name="photo.png", size=100_000)
    with pytest.raises(WrongType, match="png"):
        send(upload, TEXT[:5_000])
    found = Upload.objects.get(pk=upload.pk)
    assert found.state == UploadState.FAILED
    assert "png" in found.detail
    assert in_parts(staging) == []
    assert AuditEntry.objects.get(action="upload_refused").actor == AGENT.name
    with pytest.raises(Gone):
        find(upload.pk, AGENT)
    with pytest.raises(Gone):
        send(upload, TEXT, 5_000)


def test_a_whole_that_is_not_what_was_announced_is_refused(staging: Staging) -> None:
    upload = send(begin(sha256=sha256(b"other")), TEXT[:-1])
    with pytest.raises(WrongDigest):
        send(upload, TEXT[-1:], len(TEXT) - 1)
    assert state_of(upload) == UploadState.FAILED
    assert (visible(staging.area), in_parts(staging)) == ({}, [])
    assert not StagedFile.objects.exists()


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"name": "../up.txt"}, BadName),
        ({"name": "a\x00.txt"}, BadName),
        ({"name": "program.exe"}, WrongType),
        ({"size": -1}, BadValue),
        ({"size": 1 << 60}, TooLarge),
        ({"sha256": "abc"}, BadValue),
        ({"task_id": "../etc"}, BadValue),
        ({"metadata": "a\nb"}, BadValue),
        ({"metadata": "a" * 9_000}, BadValue),
        ({"content_type": "text/\u00fcber"}, BadValue),
        ({"area": "../area"}, NotFound),
        ({"uploader": Uploader(name="key:x", may_upload=False, kind="key")}, NotAllowed),
    ],
)
def test_what_cannot_be_taken_is_refused_before_a_byte_has_come(
    staging: Staging, given: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        create(**{"area": "area", "name": "a.txt", "size": 5, "uploader": AGENT, **given})
    assert not Upload.objects.exists()


def test_the_upload_of_somebody_else_is_not_there(staging: Staging) -> None:
    upload = begin()
    verbs: tuple[Callable[[], object], ...] = (
        lambda: find(upload.pk, OTHER),
        lambda: write_part(upload.pk, OTHER, 0, [TEXT]),
        lambda: terminate(upload.pk, OTHER),
        lambda: find(uuid4(), AGENT),
        lambda: find("../../etc/passwd", AGENT),
    )
    for verb in verbs:
        with pytest.raises(NotFound, match="no such upload"):
            verb()
    assert state_of(upload) == UploadState.OPEN


def test_an_upload_that_is_given_up_leaves_nothing(staging: Staging) -> None:
    upload = send(begin(), TEXT[:100])
    terminate(str(upload.pk), AGENT)
    assert (state_of(upload), in_parts(staging)) == (UploadState.TERMINATED, [])
    assert AuditEntry.objects.get(action="upload_terminated").actor == AGENT.name
    with pytest.raises(Gone):
        terminate(upload.pk, AGENT)
    with pytest.raises(Gone):
        send(upload, TEXT, 100)


def test_an_operator_gives_anybodys_upload_up_once(staging: Staging) -> None:
    upload = begin()
    assert give_up(upload.pk, ANNA).state == UploadState.TERMINATED
    assert AuditEntry.objects.get(action="upload_terminated").actor == "anna"
    with pytest.raises(OperationRefused, match="given up"):
        give_up(upload.pk, ANNA)
    with pytest.raises(NotFound):
        give_up(uuid4(), ANNA)


def test_an_upload_that_got_no_byte_in_its_time_expires(staging: Staging, configured: Any) -> None:
    old, young = send(begin(), TEXT[:10]), begin()
    Upload.objects.filter(pk=old.pk).update(expires_at=database_now() - timedelta(seconds=1))
    with pytest.raises(Gone):
        find(old.pk, AGENT)
    assert expire(database_now()) == 1
    assert (state_of(old), state_of(young)) == (UploadState.EXPIRED, UploadState.OPEN)
    assert in_parts(staging) == []
    assert AuditEntry.objects.filter(action="upload_expired").count() == 1
    assert expire(database_now()) == 0


def test_every_byte_gives_an_upload_more_time(staging: Staging) -> None:
    upload = begin()
    soon = database_now() + timedelta(minutes=1)
    Upload.objects.filter(pk=upload.pk).update(expires_at=soon)
    assert send(upload, TEXT[:1]).expires_at > soon


def test_while_somebody_writes_everybody_else_is_locked_out(staging: Staging) -> None:
    upload, met = begin(), list[type[Exception]]()

    def body() -> Iterator[bytes]:
        yield TEXT[:100]
        try:
            send(upload, TEXT)
        except Locked as locked:
            met.append(type(locked))
        yield TEXT[100:200]

    assert write_part(upload.pk, AGENT, 0, body()).offset == 200
    assert met == [Locked]


def test_a_writer_that_was_overtaken_acknowledges_nothing(staging: Staging) -> None:
    upload = begin()

    def body() -> Iterator[bytes]:
        yield TEXT[:100]
        Upload.objects.filter(pk=upload.pk).update(lease_by="somebody:1:2:3#else")

    with pytest.raises(Locked):
        write_part(upload.pk, AGENT, 0, body())
    assert Upload.objects.get(pk=upload.pk).offset == 0


def test_a_writer_whose_upload_is_given_up_meanwhile_leaves_nothing(staging: Staging) -> None:
    upload = begin()

    def body() -> Iterator[bytes]:
        yield TEXT[:100]
        give_up(upload.pk, ANNA)

    with pytest.raises(Gone):
        write_part(upload.pk, AGENT, 0, body())
    recover(database_now())
    assert (state_of(upload), in_parts(staging)) == (UploadState.TERMINATED, [])


def test_the_lease_of_a_dead_process_is_taken_at_once(staging: Staging) -> None:
    upload = begin()
    *host, _, started = owner_name().split(":")
    dead = ":".join([*host, "4194303", started]) + "#abc"
    later = database_now() + timedelta(hours=1)
    Upload.objects.filter(pk=upload.pk).update(lease_by=dead, lease_until=later)
    assert send(upload, TEXT).state == UploadState.DONE


def test_a_link_where_the_part_should_be_is_refused(staging: Staging, tmp_path: Path) -> None:
    upload, victim = begin(), tmp_path / "victim"
    victim.write_bytes(b"mine")
    link = staging.root / ".staging-uploads" / upload.pk.hex
    link.symlink_to(victim)
    with pytest.raises(OperationRefused):
        send(upload, TEXT)
    link.unlink()
    os.link(victim, link)
    with pytest.raises(OperationRefused):
        send(upload, TEXT)
    assert victim.read_bytes() == b"mine"


def test_bytes_that_were_lost_from_the_disk_end_the_upload(staging: Staging) -> None:
    upload = send(begin(), TEXT[:100])
    (staging.root / ".staging-uploads" / upload.pk.hex).write_bytes(b"")
    with pytest.raises(PartLost):
        send(upload, TEXT[100:], 100)
    assert state_of(upload) == UploadState.FAILED


def test_a_full_disk_acknowledges_nothing_and_heals(staging: Staging, monkeypatch: Any) -> None:
    upload = send(begin(), TEXT[:100])

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for where in ("pwrite", "fsync"):
        with monkeypatch.context() as patched:
            patched.setattr(os, where, full)
            with pytest.raises(StorageFull):
                send(upload, TEXT[100:], 100)
        assert Upload.objects.get(pk=upload.pk).offset == 100
        assert on_disk(staging, upload) == TEXT[:100]
    assert send(upload, TEXT[100:], 100).state == UploadState.DONE


@pytest.mark.django_db(transaction=True)
def test_a_full_database_acknowledges_nothing_and_heals(staging: Staging) -> None:
    upload = send(begin(), TEXT[:100])

    def refuse(execute: Any, sql: str, *rest: Any) -> Any:
        if sql.startswith("UPDATE") and '"offset"' in sql.split("WHERE")[0]:
            raise OperationalError("database or disk is full")
        return execute(sql, *rest)

    with connection.execute_wrapper(refuse), pytest.raises(StorageFull):
        send(upload, TEXT[100:], 100)
    assert Upload.objects.get(pk=upload.pk).offset == 100
    assert send(upload, TEXT[100:], 100).state == UploadState.DONE
