"""The event log in SQL: SQLite or PostgreSQL, with raw statements over Django's connection.

The row of a topic is the lock of the topic: it is taken before offsets are given and held until the commit, so
commit order is offset order and a reader never sees 3 before 2. (A sequence gives no such promise.) A batch over
several topics locks them in the order of their ids. Where `transaction.atomic()` is open, `append` is part of
it: events and business data are committed together or not at all, and until then nobody sees them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from django.db import DatabaseError, InterfaceError, connections, transaction
from django.utils import timezone
from msgspec import structs

from bus.faults import fault
from bus.log import Appended, NewEvent, Page, StoredEvent, TopicState, check_event, event_id
from bus.log.batch import Batch, TopicRow
from bus.log.dialect import Dialect, Row, dialect_of
from bus.protocol.errors import BusError, LogUnavailable
from bus.protocol.positions import Position
