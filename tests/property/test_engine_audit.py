"""The fast spelling of an audit entry is the slow one, byte for byte: chains of long ago verify unchanged."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import msgspec
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cleanup.engine.audit import GENESIS, AuditRecord, canonical, entry_hash, seal

#: Control characters, quotes, DEL and what lies beyond ASCII, often.
TEXT = st.text(
    st.one_of(st.characters(codec="utf-8"), st.sampled_from('"\\/\b\f\n\r\t\x00\x1f\x7f\x80 é\u2028😀'))
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
MAYBE = st.none() | TEXT
RECORDS = st.builds(
    AuditRecord,
    at_us=st.integers(), actor=TEXT, actor_kind=TEXT, action=TEXT, run=MAYBE, item=MAYBE, area=MAYBE,
    path=MAYBE, size=st.none() | st.integers(), policy_version=MAYBE, reason=MAYBE,
    evidence=st.dictionaries(TEXT, VALUES, max_size=4),
)  # fmt: skip


def slowly(value: Any) -> bytes:
    """As the format is defined."""
    return json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":")).encode()


EASY = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@given(st.dictionaries(TEXT, VALUES))
@EASY
@example({"a\x7f": 1, "a": 2, "a\n": 3, "a ": [2**63, 2**64, -(2**64), 10**30]})
@example({"b": {"z": (1, 2), "A": True}, "a": "\x7f"})
def test_canonical_json_is_what_the_format_defines(value: dict[str, Any]) -> None:
    assert canonical(value) == slowly(value)


@given(st.lists(RECORDS, min_size=1, max_size=4))
@EASY
def test_entries_are_hashed_as_the_format_defines(records: list[AuditRecord]) -> None:
    prev_hash = GENESIS
    for seq, entry in enumerate(seal(records, prev_seq=0, prev_hash=GENESIS), 1):
        fields = {**msgspec.structs.asdict(records[seq - 1]), "seq": seq, "prev_hash": prev_hash}
        assert entry.hash == hashlib.sha256(b"xnai.audit.v1\0" + slowly(fields)).hexdigest()
        assert entry.hash == entry_hash(prev_hash, entry.fields())
        prev_hash = entry.hash
