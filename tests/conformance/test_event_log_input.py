"""The contract of `bus.log.EventLog`: all refuse the same, and keep the rest byte for byte."""

from __future__ import annotations

import pytest

from bus.protocol.errors import BadRequest
from tests.conformance.kit import all_of, event

pytestmark = pytest.mark.django_db(transaction=True)


#: What one database could store and the other could not, had it not been refused before.
ODD = {
    "NUL in the payload": {"payload": b'"a\0b"'},
    "payload that is no UTF-8": {"payload": b'"\xff"'},
    "lone surrogate in the payload": {"payload": b'"\xed\xa0\x80"'},
    "NUL in the tags": {"tags": b'{"id":"\0"}'},
    "NUL in the key": {"key": "a\0b"},
    "lone surrogate in the key": {"key": "a\ud800"},
    "NUL in the event type": {"event_type": "a\0b"},
    "NUL in the publisher": {"publisher": "a\0b"},
    "empty key": {"key": ""},
    "long key": {"key": "k" * 201},
    "long event type": {"event_type": "t" * 101},
    "long publisher": {"publisher": "p" * 201},
    "long end status": {"end_status": "s" * 33},
    "empty topic": {"topic": ""},
    "long topic": {"topic": "t" * 201},
    "topic with a space": {"topic": "task: 1"},
    "topic with a line end": {"topic": "task:1\n"},
}


FINE = {
    "the longest names": {
        "topic": "t" * 200,
        "key": "k" * 200,
        "event_type": "e" * 100,
        "publisher": "p" * 200,
    },
    "the longest names beyond ASCII": {"key": "ß" * 200, "event_type": "😀" * 100},
    "an escaped NUL that is text": {"payload": b'"\\\\u0000"'},
    "a large payload": {"payload": b'"' + b"x" * 260_000 + b'"'},
    "tabs and percent signs": {"payload": b'"\\t %s %% \\\\N"', "key": "\\N\t%s"},
    "quotes": {"payload": b'"\'; DROP TABLE bus_event; --"', "key": "';--"},
}


@pytest.mark.parametrize("options", ODD.values(), ids=ODD)
def test_what_one_database_cannot_hold_is_refused_by_all(log, options):
    with pytest.raises(BadRequest):
        log.append([event(**options)])
    assert isinstance(log.append_each([event(**options)])[0], BadRequest)
    assert log.names() == []


@pytest.mark.parametrize("options", FINE.values(), ids=FINE)
def test_what_all_can_hold_comes_back_as_it_was(log, options):
    given = event(**options)
    # More than a few rows at once take another way into PostgreSQL.
    log.append([given, *(event("task:other", number) for number in range(20))])
    (stored,) = all_of(log, given.topic).events
    assert all(getattr(stored, name) == value for name, value in options.items())


def test_many_rows_at_once_are_stored_as_few_are(log):
    given = [event(number=number, key=f"k{number}", tags=b'{"id":"%d"}' % number) for number in range(600)]
    log.append(given)
    stored = all_of(log).events
    assert [(one.payload, one.key, one.tags) for one in stored] == [
        (one.payload, one.key, one.tags) for one in given
    ]
