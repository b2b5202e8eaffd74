"""The TOML file by which the engine works alone: areas, policies, holds, and where the audit goes.

    state = "/var/lib/xnai-cleanup"        # a folder that holds nothing but audit.jsonl

    [areas.inbox]
    path = "/srv/inbox"

    [policies.old]
    area = "inbox"
    rule = "age"
    age = "2d"
    mode = "enforce"

    [[holds]]
    area = "inbox"
    pattern = "important/*"
    reason = "asked for by the auditors"

Everything is checked before anything is done; what is wrong is named with its line and key.
"""

import re
import tomllib
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import msgspec

from cleanup.engine.ages import parse_age
from cleanup.engine.errors import EngineError, PolicyInvalid
from cleanup.engine.expiry import zone_from_name
from cleanup.engine.holds import Hold
from cleanup.engine.names import patterns
from cleanup.engine.policy import Mode, Policy, Rule
from cleanup.engine.terms import OrderBy, Unit

__all__ = ["AreaEntry", "Configuration", "ConfigurationInvalid", "HoldEntry", "PolicyEntry", "load"]

#: Rules that need to know more than files.
_NOT_ALONE = {
    "orphan": "it compares files with rows of a database",
    "rows": "it is about rows of a database",
}

#: Larger is no configuration.
_MOST_BYTES = 1024 * 1024

Table = TypeVar("Table")


class ConfigurationInvalid(EngineError):
    """The file cannot be read, or says what could not be obeyed."""

    code = "configuration_invalid"


class AreaEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A directory that may be cleaned."""

    path: str
    uuid: str | None = None  #: which the marker must hold; None believes the marker
    high_watermark: int = 90  #: percent of the disk in use
    low_watermark: int = 80


class PolicyEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A policy and where it applies."""

    area: str
    policy: Policy


class HoldEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A hold, in which area, and why."""

    area: str
    hold: Hold
    reason: str


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """What the file says."""

    state: Path
    areas: dict[str, AreaEntry]
    policies: dict[str, PolicyEntry]
    holds: tuple[HoldEntry, ...] = ()
    forbidden: tuple[str, ...] = ()  #: trees in which no area may be

    @property
    def audit_file(self) -> Path:
        """Where every step is written down."""
        return self.state / "audit.jsonl"

    def holds_of(self, area: str) -> list[Hold]:
        """Return the holds of an area, those that are over among them."""
        return [entry.hold for entry in self.holds if entry.area == area]


class _Policy(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    area: str
    rule: Rule
    age: str | None = None
    age_by: str = "m"
    include: list[str] = []
    exclude: list[str] = []
    unit: Unit = "file"
    bundle_pattern: str | None = None
    keep: int | None = None
    group_pattern: str | None = None
    order_by: OrderBy = "age"
    grace_period: str = "7d"
    mode: Mode = "report"
    max_files: int = 50_000
    max_bytes: int = 100 * 10**9
    max_percent: int = 50
    max_median_factor: int = 10
    allow_hardlinks: bool = False
    skip_in_use: bool = False
    naive_timezone: str = "UTC"


class _Hold(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    area: str
    pattern: str
    reason: str
    until: datetime | None = None


#: Keys of a policy that only the site understands, and why.
_OF_THE_SITE = {
    "verifiers": "verifiers are asked by the site alone",
    "task_id_pattern": "verifiers are asked by the site alone",
    "max_unknown_percent": "verifiers are asked by the site alone",
    "floor": "without the site everything stays in the trash for its whole grace period",
    "schedule": "a timer of the system decides when the engine runs alone",
}


def load(path: str | Path) -> Configuration:
    """Read the file at `path`.

    Raises:
        ConfigurationInvalid: with the line and the key.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigurationInvalid(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > _MOST_BYTES:
        raise ConfigurationInvalid(f"{path} is larger than {_MOST_BYTES} bytes")
    try:
        text = data.decode()
        return _Reader(Path(path), text, tomllib.loads(text)).configuration()
    except UnicodeDecodeError as error:
        raise ConfigurationInvalid(f"{path} is not UTF-8") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigurationInvalid(f"{path} is not TOML: {error}") from error


class _Reader:
    """Turns the tables of one file into entries; every complaint knows its line."""

    def __init__(self, path: Path, text: str, document: dict[str, Any]) -> None:
        self.path, self.lines, self.document = path, text.splitlines(), document

    def configuration(self) -> Configuration:
        """Read and check everything."""
        if unknown := set(self.document) - {"state", "areas", "policies", "holds", "forbidden"}:
            raise self._wrong("", sorted(unknown)[0], "there is no such key")
        areas = {name: self._area(name, table) for name, table in self._tables("areas").items()}
        policies = {
            name: self._policy(name, table, areas) for name, table in self._tables("policies").items()
        }
        holds = tuple(self._hold(table, number, areas) for number, table in enumerate(self._holds()))
        return Configuration(
            state=self._state(areas), areas=areas, policies=policies, holds=holds, forbidden=self._forbidden()
        )

    def _tables(self, key: str) -> dict[str, Any]:
        return self._typed(self.document.get(key, {}), dict[str, dict[str, Any]], "", key)

    def _holds(self) -> list[dict[str, Any]]:
        return self._typed(self.document.get("holds", []), list[dict[str, Any]], "", "holds")

    def _state(self, areas: dict[str, AreaEntry]) -> Path:
        if "state" not in self.document:
            raise self._wrong("", "state", "the folder of the audit is missing")
        state = self.path.absolute().parent / self._typed(self.document["state"], str, "", "state")
        for name, area in areas.items():
            if state.resolve().is_relative_to(Path(area.path).resolve()):
                raise self._wrong("", "state", f"lies in area {name}, where files are removed")
        return state

    def _forbidden(self) -> tuple[str, ...]:
        return tuple(self._typed(self.document.get("forbidden", []), list[str], "", "forbidden"))

    def _area(self, name: str, table: dict[str, Any]) -> AreaEntry:
        where = f"areas.{name}"
        area = self._typed(table, AreaEntry, where)
        if not Path(area.path).is_absolute():
            raise self._wrong(where, "path", "the path of an area is absolute")
        if not 0 < area.low_watermark < area.high_watermark <= 100:
            raise self._wrong(where, "high_watermark", "marks are percents, the low one below the high one")
        try:
            UUID(area.uuid or "0" * 32)
        except ValueError as error:
            raise self._wrong(where, "uuid", "not a uuid") from error
        return area

    def _policy(self, name: str, table: dict[str, Any], areas: dict[str, AreaEntry]) -> PolicyEntry:
        where = f"policies.{name}"
        for key, why in _OF_THE_SITE.items():
            if key in table:
                raise self._wrong(where, key, why)
        written = self._typed(table, _Policy, where)
        if written.rule in _NOT_ALONE:
            raise self._wrong(where, "rule", f"{written.rule} needs the site: {_NOT_ALONE[written.rule]}")
        self._known_area(where, written.area, areas)
        fields = msgspec.structs.asdict(written)
        given = {
            key: fields[key] for key in fields if key not in ("area", "age", "age_by", "include", "exclude")
        } | {
            "age": None if written.age is None else self._age(where, "age", written.age),
            "age_by": frozenset(written.age_by),
            "include": tuple(written.include),
            "exclude": tuple(written.exclude),
            "grace_period": self._age(where, "grace_period", written.grace_period),
        }
        try:
            policy = Policy(name=name, **{**given, "naive_timezone": zone_from_name(written.naive_timezone)})
            policy.validate()
        except PolicyInvalid as error:
            raise self._wrong(where, "", str(error)) from error
        return PolicyEntry(area=written.area, policy=policy)

    def _hold(self, table: dict[str, Any], number: int, areas: dict[str, AreaEntry]) -> HoldEntry:
        where = f"holds#{number}"
        written = self._typed(table, _Hold, where)
        self._known_area(where, written.area, areas)
        if written.until is not None and written.until.tzinfo is None:
            raise self._wrong(where, "until", "a time needs a zone, such as 2027-01-01T00:00:00Z")
        try:
            patterns((written.pattern,), subtree=True)
        except PolicyInvalid as error:
            raise self._wrong(where, "pattern", str(error)) from error
        hold = Hold(pattern=written.pattern, until=written.until)
        return HoldEntry(area=written.area, hold=hold, reason=written.reason)

    def _known_area(self, where: str, name: str, areas: dict[str, AreaEntry]) -> None:
        if name not in areas:
            raise self._wrong(where, "area", f"there is no area {name!r}")

    def _age(self, where: str, key: str, text: str) -> timedelta:
        try:
            return parse_age(text)
        except PolicyInvalid as error:
            raise self._wrong(where, key, str(error)) from error

    def _typed(self, value: object, kind: type[Table], where: str, key: str = "") -> Table:
        try:
            return msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            found = re.search(r"(?:field `(\w+)`|at `\$\.(\w+))", str(error))
            named = (found[1] or found[2]) if found else ""
            raise self._wrong(where, key or named, str(error).partition(" - at ")[0]) from error

    def _wrong(self, where: str, key: str, why: str) -> ConfigurationInvalid:
        """Say what is wrong at `key` of the table `where`, with the line where that stands."""
        name = ".".join(part for part in (where.partition("#")[0], key) if part)
        return ConfigurationInvalid(f"{self.path}:{self._line(where, key)}: {name}: {why}")

    def _line(self, where: str, key: str) -> int:
        """Return the line of a key, else that of its table, else the first."""
        table, _, number = where.partition("#")
        begins, left = 0, int(number or 0)
        for at, line in enumerate(self.lines, 1):
            head = re.match(r"\s*\[+\s*([^\]]+?)\s*\]+", line)
            if head:
                name = head[1].replace('"', "").replace("'", "").replace(" ", "")
                if begins and where:
                    break
                if name == table:
                    begins, left = (at, 0) if left == 0 else (0, left - 1)
            elif (begins or not where) and key and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*[.=]", line):
                return at
        return begins or 1
