"""Uploads, staged files and runs in any order, with deaths in between: nothing torn is visible or lost."""

from __future__ import annotations

import hashlib
import itertools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from cleanup.models import StagedContent, StagedFile, Upload, UploadState
from cleanup.staging import finishing, folders, parts, placing
from cleanup.staging.content import Incoming, open_staged, release, stage_bytes
from cleanup.staging.errors import ChecksumMismatch
from cleanup.staging.holding import Hold
from cleanup.staging.placing import references
from cleanup.staging.uploads import Uploader, create, expire, recover, terminate, write_part
from cleanup.stores.sql import database_now
from tests.figures import figure
from tests.integration import staged
from tests.retention import ANNA, Staging

AGENT = Uploader(name="key:agent-7", may_upload=True, kind="key")

#: Few, so that the same bytes come again and again; of sizes below, at and above what is looked at at first.
CONTENTS = tuple(bytes([97 + number]) * size for number, size in enumerate((1, 3, 4_096, 9_000)))

OPEN = (UploadState.OPEN, UploadState.FINISHING)

_names = itertools.count()


class Death(BaseException):
    """The process ends here."""


#: Where it may end: before the row acknowledges, before and after the rename, after the rows.
DEATHS: dict[str, tuple[Any, str]] = {
    "before the acknowledgement": (Hold, "change"),
    "before the rename": (placing, "rename_new"),
    "after the rename": (finishing, "_done"),
    "after the rows": (folders, "drop"),
}


@contextmanager
def dying(where: str) -> Iterator[None]:
    with mock.patch.object(*DEATHS[where], side_effect=Death):
        try:
            yield
        except Death:
            return


class Uploads(RuleBasedStateMachine):
    """One area, one uploader, and whatever can happen to them."""

    uploads: Bundle[tuple[Upload, bytes]] = Bundle("uploads")
    rows: Bundle[StagedFile] = Bundle("rows")

    @initialize()
    def begin_anew(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        name = f"area-{next(_names)}"
        self.staging = Staging(Path(self.folder.name), name)
        self.policy = self.staging.policy(name, age="1us", age_by="m", max_median_factor=10**6)

    def teardown(self) -> None:
        if not hasattr(self, "staging"):
            return
        recover(database_now())
        assert not self.mine().filter(state=UploadState.FINISHING).exists()
        waiting = {upload.pk.hex for upload in self.mine().filter(state__in=OPEN)}
        assert set(staged.parts(self.staging.area)) <= waiting
        # No more open uploads than one may have, over all examples.
        self.mine().filter(state__in=OPEN).update(expires_at=database_now() - timedelta(seconds=1))
        expire(database_now())
        assert staged.parts(self.staging.area) == []
        self.folder.cleanup()

    def mine(self) -> Any:
        return Upload.objects.filter(area=self.staging.area)

    @rule(target=uploads, content=st.sampled_from(CONTENTS), is_known=st.booleans())
    def create(self, content: bytes, is_known: bool) -> tuple[Upload, bytes]:
        sha256 = staged.sha256(content) if is_known else ""
        name = self.staging.area.name
        return create(area=name, name="a.txt", size=len(content), uploader=AGENT, sha256=sha256), content

    def write(self, upload: Upload, content: bytes, count: int, **more: Any) -> None:
        found = Upload.objects.get(pk=upload.pk)
        if found.state == UploadState.OPEN:
            part = content[found.offset : found.offset + count]
            write_part(upload.pk, AGENT, found.offset, [part[:7], part[7:]], **more)

    @rule(one=uploads, count=st.sampled_from((1, 2, 5_000, 10_000)))
    def send(self, one: tuple[Upload, bytes], count: int) -> None:
        self.write(*one, count)

    @rule(one=uploads, count=st.sampled_from((1, 3_000)))
    def send_what_is_cut(self, one: tuple[Upload, bytes], count: int) -> None:
        upload, content = one
        found = Upload.objects.get(pk=upload.pk)
        if found.state != UploadState.OPEN:
            return
        kept = min(found.offset + count, len(content))
        chunks = staged.cut_after(content[found.offset : kept])
        with pytest.raises(ConnectionResetError):
            write_part(upload.pk, AGENT, found.offset, chunks)
        assert Upload.objects.get(pk=upload.pk).offset == kept

    @rule(one=uploads, is_right=st.booleans())
    def send_with_a_checksum(self, one: tuple[Upload, bytes], is_right: bool) -> None:
        upload, content = one
        start = Upload.objects.get(pk=upload.pk).offset
        digest = hashlib.sha256(content[start:] if is_right else b"other").digest()
        try:
            self.write(upload, content, len(content), checksum=("sha256", digest))
        except ChecksumMismatch:
            assert not is_right
            assert Upload.objects.get(pk=upload.pk).offset == start

    @rule(one=uploads, where=st.sampled_from(sorted(DEATHS)))
    def send_and_die(self, one: tuple[Upload, bytes], where: str) -> None:
        with dying(where):
            self.write(*one, 10_000)

    @rule(one=uploads)
    def go_on_elsewhere(self, one: tuple[Upload, bytes]) -> None:
        parts.hashes.forget(one[0].pk)

    @rule(one=consumes(uploads))
    def give_up(self, one: tuple[Upload, bytes]) -> None:
        if Upload.objects.get(pk=one[0].pk).state == UploadState.OPEN:
            terminate(one[0].pk, AGENT)

    @rule(one=consumes(uploads))
    def let_expire(self, one: tuple[Upload, bytes]) -> None:
        self.mine().filter(pk=one[0].pk).update(expires_at=database_now() - timedelta(seconds=1))
        expire(database_now())

    @rule()
    def recover(self) -> None:
        recover(database_now())

    @rule(target=rows, content=st.sampled_from(CONTENTS))
    def stage(self, content: bytes) -> StagedFile:
        return stage_bytes(self.staging.area, content, Incoming(name="b.md"), staged.AGENT)

    @rule(row=consumes(rows))
    def release(self, row: StagedFile) -> None:
        release(row, ANNA)

    @rule()
    def clean(self) -> None:
        self.staging.run(self.policy)

    @invariant()
    def what_is_visible_is_whole(self) -> None:
        if not hasattr(self, "staging"):
            return
        for path, data in staged.visible(self.staging.area).items():
            assert Path(path).stem == staged.sha256(data)

    @invariant()
    def what_was_acknowledged_is_on_the_disk(self) -> None:
        if not hasattr(self, "staging"):
            return
        for upload in self.mine().filter(state=UploadState.OPEN, offset__gt=0):
            part = self.staging.root / ".staging-uploads" / upload.pk.hex
            assert part.stat().st_size >= upload.offset

    @invariant()
    def every_living_row_has_its_file_and_its_content(self) -> None:
        if not hasattr(self, "staging"):
            return
        living = StagedFile.objects.filter(area=self.staging.area).select_related("area", "content")
        for row in living:
            with open_staged(row) as file:
                assert staged.sha256(file.read()) == row.sha256 == row.content.sha256
        for content in StagedContent.objects.filter(area=self.staging.area):
            assert references(content) == sum(row.content_id == content.pk for row in living)


@pytest.mark.django_db
def test_nothing_torn_is_visible_and_nothing_acknowledged_is_lost(settings: Any) -> None:
    settings.CLEANUP = {**settings.CLEANUP, "UPLOAD_RATE": 10**9, "UPLOAD_MAX_OPEN": 10**9}
    run(Uploads)


def run(machine: type[RuleBasedStateMachine]) -> None:
    examples = figure(10, deep=500)
    run_state_machine_as_test(
        machine, settings=settings(max_examples=examples, stateful_step_count=20, deadline=None)
    )
