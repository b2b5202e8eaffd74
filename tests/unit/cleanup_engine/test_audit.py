"""The audit chain, sealed and verified."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from cleanup.engine.audit import (
    GENESIS,
    AuditEntry,
    AuditRecord,
    MemoryAuditSink,
    canonical,
    entry_hash,
    seal,
    verify_chain,
)
from cleanup.engine.auditlog import JsonlAuditSink
from cleanup.engine.errors import AuditInvalid
from tests.unit.cleanup_engine.kit import write_many


def record(number: int = 0, **fields: object) -> AuditRecord:
    return AuditRecord(at_us=number, actor="ops", actor_kind="user", action="trashed", **fields)  # type: ignore[arg-type]


def chain(length: int) -> list[AuditEntry]:
    return seal(
        [record(number, path=f"file{number}") for number in range(length)], prev_seq=0, prev_hash=GENESIS
    )


def head(entries: list[AuditEntry]) -> tuple[int, str]:
    return entries[-1].seq, entries[-1].hash


def test_the_hash_is_sha256_over_domain_and_canonical_json_without_the_hash() -> None:
    entry = chain(1)[0]
    fields = {key: value for key, value in entry.fields().items() if key != "hash"}
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    assert entry.hash == hashlib.sha256(b"xnai.audit.v1\0" + text.encode()).hexdigest()
    assert entry_hash(GENESIS, entry.fields()) == entry.hash


def test_canonical_json_is_ascii_sorted_and_without_spaces() -> None:
    assert canonical({"b": [1, None, True], "a": "é\n"}) == b'{"a":"\\u00e9\\n","b":[1,null,true]}'


@pytest.mark.parametrize("value", [1.0, float("nan"), b"bytes", {1: 2}, {"x": [0.5]}, {"a", "b"}, "\udc80"])
def test_what_has_no_single_spelling_is_refused(value: object) -> None:
    with pytest.raises(AuditInvalid):
        canonical({"x": value})


def test_a_chain_is_sound_and_ends_at_its_head() -> None:
    entries = chain(5)
    report = verify_chain(iter(entries), head=head(entries))
    assert (report.sound, report.entries, report.kind) == (True, 5, None)
    assert verify_chain([], head=(0, GENESIS)).sound


def test_a_segment_is_verified_from_the_entry_before_it() -> None:
    entries = chain(5)
    assert verify_chain(entries[2:], head=head(entries), start=(2, entries[1].hash)).sound


def rewritten(entries: list[AuditEntry]) -> list[AuditEntry]:
    """Change entry 3 and give it a new, fitting hash: the next link breaks."""
    forged = msgspec.structs.replace(entries[2], actor="nobody")
    forged = msgspec.structs.replace(forged, hash=entry_hash(forged.prev_hash, forged.fields()))
    return [*entries[:2], forged, *entries[3:]]


MUTATIONS: dict[str, tuple[Callable[[list[AuditEntry]], list[AuditEntry]], str, int]] = {
    "changed": (lambda e: [*e[:2], msgspec.structs.replace(e[2], size=7), *e[3:]], "hash", 3),
    "changed and hashed anew": (rewritten, "link", 4),
    "removed": (lambda e: [*e[:2], *e[3:]], "gap", 3),
    "first removed": (lambda e: e[1:], "gap", 1),
    "swapped": (lambda e: [e[0], e[2], e[1], *e[3:]], "gap", 2),
    "repeated": (lambda e: [*e[:2], e[1], *e[2:]], "gap", 3),
    "cut off": (lambda e: e[:-1], "head", 5),
    "emptied": (lambda e: [], "head", 1),
    "evidence made unspeakable": (
        lambda e: [*e[:2], msgspec.structs.replace(e[2], evidence={"x": 0.5}), *e[3:]],
        "hash",
        3,
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_tampered_chain_is_found_and_named(name: str) -> None:
    mutate, kind, seq = MUTATIONS[name]
    entries = chain(5)
    report = verify_chain(mutate(entries), head=head(entries))
    assert (report.sound, report.kind, report.first_bad_seq) == (False, kind, seq)


def test_an_appended_forgery_is_found_by_the_head() -> None:
    entries = chain(5)
    longer = entries + seal([record(9)], prev_seq=5, prev_hash=entries[-1].hash)
    report = verify_chain(longer, head=head(entries))
    assert (report.sound, report.kind, report.first_bad_seq) == (False, "head", 6)


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_a_sink_continues_its_chain(kind: str, tmp_path: Path) -> None:
    sink = MemoryAuditSink() if kind == "memory" else JsonlAuditSink(tmp_path / "audit.jsonl")
    assert sink.write([]) == []
    first = sink.write([record(1), record(2)])
    second = sink.write([record(3, evidence={"redis": "pass"}, path=r"odd\x0aname")])
    assert list(sink) == [*first, *second]
    assert verify_chain(iter(sink), head=(3, second[-1].hash)).sound


def test_the_file_survives_its_writer_and_a_torn_last_line(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    JsonlAuditSink(path).write([record(number) for number in range(200)])
    with path.open("ab") as file:
        file.write(b'{"at_us":9,"actor":"to')
    assert len(list(JsonlAuditSink(path))) == 200
    last = JsonlAuditSink(path).write([record(7)])[-1]
    assert last.seq == 201
    assert verify_chain(iter(JsonlAuditSink(path)), head=(201, last.hash)).sound


def test_a_file_that_holds_only_a_torn_line_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b'{"torn')
    assert JsonlAuditSink(path).write([record()])[0].seq == 1


def test_a_file_whose_last_line_is_no_entry_is_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    JsonlAuditSink(path).write([record()])
    with path.open("ab") as file:
        file.write(b'{"hello": "world"}\n')
    before = path.read_bytes()
    with pytest.raises(AuditInvalid):
        JsonlAuditSink(path).write([record()])
    assert path.read_bytes() == before


def test_an_entry_with_a_field_too_many_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    JsonlAuditSink(path).write([record()])
    path.write_bytes(path.read_bytes().replace(b'{"', b'{"smuggled":1,"', 1))
    with pytest.raises(AuditInvalid):
        list(JsonlAuditSink(path))


def test_writers_in_several_processes_never_fork_the_chain(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_many, args=(str(path), 20)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(100)
        assert writer.exitcode == 0
    report = verify_chain(iter(JsonlAuditSink(path)), head=None)
    assert (report.sound, report.entries) == (True, 120)
