"""The verbs of `manage.py cleanup` that speak with systemd: import-tmpfiles, export-systemd."""

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path

from django.conf import settings
from django.db import connection

from cleanup.conf import conf
from cleanup.management.output import DONE, SOME_SKIPPED, Answer
from cleanup.management.verbs import Options, actor
from cleanup.operations.exchange import Imported, import_tmpfiles
from cleanup.operations.outcomes import OperationRefused
from cleanup.operations.units import Site, export_systemd

#: What became of a line, in the words of the answer.
_WORDS = {
    "added": "made, in mode report",
    "changed": "changed",
    "unchanged": "is so already",
    "differs": "exists and says something else",
}


def tmpfiles(options: Options) -> Answer:
    """Carry out import-tmpfiles."""
    done = import_tmpfiles(
        options["files"],
        actor=actor(),
        prefixes=options["prefix"],
        update=options["update"],
        dry_run=options["dry_run"],
    )
    policies = [
        {name: getattr(one, name) for name in ("policy", "area", "path", "age", "outcome", "area_is_new")}
        for one in done.policies
    ]
    notes = [
        {
            "file": one.file,
            "line": one.number,
            "text": one.line,
            "why": one.why,
            "honoured": one.is_honoured,
        }
        for one in done.notes
    ]
    data = {"policies": policies, "notes": notes, "dry_run": options["dry_run"]}
    whole = all(one.is_honoured for one in done.notes)
    return Answer(data=data, lines=_import_lines(done, options), code=DONE if whole else SOME_SKIPPED)


def _import_lines(done: Imported, options: Options) -> list[str]:
    lines = ["Dry run."] if options["dry_run"] else []
    for one in done.policies:
        lines.append(f"Policy {one.policy}: {one.age} in {one.path}: {_WORDS[one.outcome]}.")
    for note in done.notes:
        kind = "note" if note.is_honoured else "NOT HONOURED"
        lines.append(f"{kind}: {note.file}:{note.number}: {note.why}: {note.line}")
    return lines or ["No line cleans anything by age."]


def systemd(options: Options) -> Answer:
    """Carry out export-systemd."""
    directory = Path(options["directory"]).absolute()
    done = export_systemd(directory, _site(), dry_run=options["dry_run"])
    paths = [str(directory / name) for name in done.files]
    data = {
        "files": paths,
        "policies": done.policies,
        "left_out": done.left_out,
        "dry_run": options["dry_run"],
    }
    verb = "would be written" if options["dry_run"] else "is written"
    lines = [f"{path} {verb}." for path in paths]
    lines += [f"Policy {name} is no line of tmpfiles.d: {why}." for name, why in done.left_out.items()]
    if options["dry_run"]:
        lines += [line for text in done.files.values() for line in text.splitlines()]
    return Answer(data=data, lines=lines)


def _site() -> Site:
    """Where this installation is and as whom it runs."""
    folder = Path(settings.BASE_DIR)
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    if any(char in user + str(folder) for char in "\n\r"):
        raise OperationRefused("a unit cannot hold a line feed in a path or a user name")
    return Site(
        command=[sys.executable, str(folder / "manage.py"), "cleanup", "tick"],
        folder=folder,
        user=user,
        writable=_written(),
    )


def _written() -> list[Path]:
    """What a tick writes besides the areas: the database's file, the audit's checkpoints, the logs."""
    paths = [Path(settings.VAR_DIR), conf().audit_key_file.parent, conf().audit_log_file.parent]
    if connection.vendor == "sqlite" and Path(str(connection.settings_dict["NAME"])).is_absolute():
        paths.append(Path(str(connection.settings_dict["NAME"])).parent)
    return [path.absolute() for path in paths]
