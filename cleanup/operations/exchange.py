"""Policies out of tmpfiles.d: lines of systemd become areas and policies of the rule `age`.

Whatever a line asks for that no policy does is named, and a line that meets a refusal leaves the others
alone. The same lines again change nothing. A policy that exists under the name and says something else is
changed only on request, since it may have been improved by hand. The way back is in `units`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cleanup.conf import conf
from cleanup.engine.ages import format_age, parse_age
from cleanup.engine.area import marker_uuid
from cleanup.engine.errors import AreaRefused, EngineError
from cleanup.engine.names import escape
from cleanup.engine.places import check_place
from cleanup.engine.policy import Policy
from cleanup.engine.specifiers import group_id, read_files, specifiers, user_id
from cleanup.engine.tmpfiles import Config, read
from cleanup.engine.translation import Draft, translate
from cleanup.models import Mode, RetentionPolicy, Rule, StagingArea
from cleanup.operations.areas import add_area
from cleanup.operations.outcomes import OperationRefused
from cleanup.operations.policies import add_policy, save_policy
from cleanup.stores import Actor


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedPolicy:
    """What became of a line with an age."""

    policy: str
    area: str
    path: str  #: of the area, escaped
    age: str
    #: `added`, `changed`, `unchanged`, or `differs`: a policy of this name says something else.
    outcome: str
    area_is_new: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportNote:
    """What is to be said about a line that became no policy, or not wholly."""

    file: str
    number: int
    line: str
    why: str
    #: False: it asks for something that is not done.
    is_honoured: bool


@dataclass(slots=True, kw_only=True)
class Imported:
    """What an import did."""

    policies: list[ImportedPolicy] = field(default_factory=list)
    notes: list[ImportNote] = field(default_factory=list)


def import_tmpfiles(
    files: Sequence[str],
    *,
    actor: Actor,
    prefixes: Sequence[str] = (),
    update: bool = False,
    dry_run: bool = False,
) -> Imported:
    """Make areas and policies, in mode `report`, of what the lines of some files clean by age.

    Args:
        files: paths of files in the format of tmpfiles.d; of two lines for one path the first counts.
        actor: in whose name.
        prefixes: only lines about paths below one of these count.
        update: change policies that exist and say something else; their mode stays.
        dry_run: only say what would be done.

    Raises:
        OperationRefused: a file cannot be read.
    """
    try:
        text, places = read_files(list(files))
    except OSError as error:
        raise OperationRefused(f"{error.filename}: {error.strerror}") from error
    config = read(text, specifiers=specifiers(), user_id=user_id, group_id=group_id)
    importer = _Importer(text.split(b"\n"), places, actor, update=update, dry_run=dry_run)
    importer.take(config, [prefix.encode("utf-8", "surrogateescape") for prefix in prefixes])
    return importer.done


class _Importer:
    """Carries the drafts out, one after the other."""

    def __init__(
        self,
        lines: Sequence[bytes],
        places: Sequence[tuple[str, int]],
        actor: Actor,
        *,
        update: bool,
        dry_run: bool,
    ) -> None:
        self.lines, self.places, self.actor = lines, places, actor
        self.update, self.dry_run = update, dry_run
        self.done = Imported()
        #: Areas of this import by path; those of a dry run have no row.
        self.areas: dict[str, StagingArea] = {}
        self.names: set[str] = set()

    def take(self, config: Config, prefixes: Sequence[bytes]) -> None:
        drafts, notes = translate(config.lines, prefixes=prefixes)
        for trouble in config.troubles:
            self._note(trouble.number, trouble.why, is_honoured=False)
        for note in notes:
            self._note(note.number, note.why, is_honoured=note.is_honoured)
        for draft in drafts:
            try:
                self._carry_out(draft)
            except EngineError as refusal:
                self._note(draft.line.number, str(refusal), is_honoured=False)
        self.done.notes.sort(key=lambda note: (note.file, note.number))

    def _note(self, number: int, why: str, *, is_honoured: bool) -> None:
        file, own = self.places[number - 1]
        line = escape(self.lines[number - 1].strip())
        self.done.notes.append(ImportNote(file=file, number=own, line=line, why=why, is_honoured=is_honoured))

    def _carry_out(self, draft: Draft) -> None:
        area, is_new = self._area(draft.directory)
        name = self._policy_name(draft, area)
        wanted = _fields(draft)
        row = RetentionPolicy.objects.filter(name=name).first()
        outcome = self._policy(name, area, wanted, row)
        if outcome == "differs":
            self._note(
                draft.line.number,
                f"policy {name!r} exists and says something else; --update changes it",
                is_honoured=False,
            )
        self.done.policies.append(
            ImportedPolicy(
                policy=name,
                area=area.name,
                path=escape(draft.directory),
                age=str(wanted["age"]),
                outcome=outcome,
                area_is_new=is_new,
            )
        )

    def _policy(
        self, name: str, area: StagingArea, wanted: dict[str, Any], row: RetentionPolicy | None
    ) -> str:
        """Make or change the policy; return what became of it."""
        if row is not None and _says(row, wanted):
            return "unchanged"
        if row is not None and not self.update:
            return "differs"
        _check(name, wanted)
        if self.dry_run:
            return "added" if row is None else "changed"
        if row is None:
            add_policy(name, area, self.actor, mode=Mode.REPORT, **wanted)
            return "added"
        for key, value in wanted.items():
            setattr(row, key, value)
        save_policy(row, self.actor)
        return "changed"

    def _area(self, directory: bytes) -> tuple[StagingArea, bool]:
        """Return the area of a directory, and whether it is new.

        Raises:
            EngineError: it may not be an area.
        """
        path = directory.decode("utf-8", "surrogateescape")
        known = self.areas.get(path) or _known_area(path)
        if known is not None:
            return known, False
        check_place(Path(path), forbidden=conf().forbidden_paths, mounts=True)
        name = next(name for name in _area_names(directory) if self._is_free(name))
        area = StagingArea(name=name, path=path) if self.dry_run else add_area(name, path, self.actor)
        self.areas[path] = area
        return area, True

    def _is_free(self, name: str) -> bool:
        taken = any(area.name == name for area in self.areas.values())
        return not taken and not StagingArea.objects.filter(name=name).exists()

    def _policy_name(self, draft: Draft, area: StagingArea) -> str:
        """Name the policy after its area: the same in every import of the same lines."""
        for name in _numbered(area.name):
            row = RetentionPolicy.objects.filter(name=name).select_related("area").first()
            is_ours = row is None or (row.area is not None and row.area.path == area.path)
            if is_ours and name not in self.names:
                self.names.add(name)
                return name
        raise AssertionError("numbers do not end")


def _known_area(path: str) -> StagingArea | None:
    row = StagingArea.objects.filter(path=path).first() if _is_text(path) else None
    if row is not None:
        return row
    try:
        uuid = marker_uuid(path)
    except AreaRefused:
        return None  # registering it will say why
    return StagingArea.objects.filter(uuid=uuid).first() if uuid else None


def _is_text(path: str) -> bool:
    return path.isascii() or not any(0xD800 <= ord(char) < 0xE000 for char in path)


def _check(name: str, wanted: dict[str, Any]) -> None:
    """Refuse what could not be obeyed, before anything is made."""
    Policy(
        name=name,
        rule="age",
        age=parse_age(wanted["age"]),
        age_by=frozenset(wanted["age_by"]),
        include=tuple(wanted["include"]),
        exclude=tuple(wanted["exclude"]),
    ).validate()


def _fields(draft: Draft) -> dict[str, Any]:
    """The fields of the policy's row."""
    return {
        "rule": Rule.AGE,
        "age": format_age(draft.age),
        "age_by": "".join(sorted(draft.age_by)),
        "include": list(draft.include),
        "exclude": list(draft.exclude),
    }


def _says(row: RetentionPolicy, wanted: dict[str, Any]) -> bool:
    if row.rule != wanted["rule"] or set(row.age_by) != set(str(wanted["age_by"])):
        return False
    same = all(getattr(row, key) == wanted[key] for key in ("include", "exclude"))
    return same and bool(row.age) and parse_age(row.age) == parse_age(str(wanted["age"]))


def _slug(name: bytes) -> str:
    return re.sub("[^A-Za-z0-9_-]+", "-", name.decode("utf-8", "replace")).strip("-")[:80] or "area"


def _area_names(directory: bytes) -> Iterator[str]:
    """Yield names for an area: that of the directory, with its parent's before it, then numbered."""
    parts = [part for part in directory.split(b"/") if part] or [b"root"]
    yield _slug(parts[-1])
    longer = "-".join(_slug(part)[:40] for part in parts[-2:])
    yield from _numbered(longer)


def _numbered(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        yield f"{name[:90]}-{number}"
        number += 1
