"""The verbs of `manage.py cleanup audit`: who did what, and the proof.

`verify` answers 0 for sound, 1 for tampered and 2 where it could not check, which is never read as sound.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from django.db import DatabaseError
from django.db.models import QuerySet

from cleanup.engine.audit import ChainReport
from cleanup.engine.errors import EngineError
from cleanup.management.output import DONE, REFUSED, SOME_SKIPPED, Answer, progress_bar, table
from cleanup.management.verbs import actor
from cleanup.models import AuditEntry
from cleanup.operations import Progress, auditing, excerpts, segments
from cleanup.stores.audit import micros
from cleanup.stores.checkpoints import DatabaseSource

Options = dict[str, Any]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def audit_verify(options: Options) -> Answer:
    try:
        if options["segment"]:
            return _verdict(segments.verify_segment(
                options["segment"], keys=options["keys"], log=options["log"]
            ))  # fmt: skip
        return _verdict(_read_all(options))
    except (DatabaseError, EngineError) as error:
        message = f"the audit could not be checked: {error}".strip()
        return Answer(data={"sound": None, "error": message}, lines=[message], code=REFUSED)


def _read_all(options: Options) -> ChainReport:
    head = DatabaseSource().head()
    with progress_bar(shown=not options["json"]) as show:

        def tell(seq: int) -> None:
            if show is not None:
                show(Progress(state="reading", done=seq, total=head[0] if head else 0))

        return auditing.verify_audit(
            on_progress=tell, log=options["log"], keys=options["keys"], segments=options["segments"]
        )


def _verdict(found: ChainReport) -> Answer:
    data: dict[str, Any] = {"sound": found.sound, "entries": found.entries, "checkpoints": found.checkpoints}
    notes = [f"Note: {note}." for note in found.notes]
    if found.notes:
        data["notes"] = list(found.notes)
    if found.sound:
        line = f"Sound: {found.entries} entries, checkpoints: {found.checkpoints}."
        return Answer(data=data, lines=[line, *notes], code=DONE)
    data |= {"first_bad_seq": found.first_bad_seq, "kind": found.kind, "checkpoint": found.checkpoint}
    where = f" of checkpoint {found.checkpoint}" if found.checkpoint is not None else ""
    line = f"TAMPERED: the first bad entry is {found.first_bad_seq} ({found.kind}{where})."
    return Answer(data=data, lines=[line, *notes], code=SOME_SKIPPED)


def audit_list(options: Options) -> Answer:
    moments = {name: options[name] and micros(options[name]) for name in ("since", "until")}
    entries = excerpts.entries_of({**options, **moments}, scan=options["scan"])
    if options["jsonl"]:
        return _write(entries, options["jsonl"])
    names = ("seq", "actor", "action", "area", "path", "size", "reason", "run", "item", "policy_version")
    rows = [
        {"at": _when(entry.at_us)} | {name: getattr(entry, name) for name in names}
        for entry in entries[: options["limit"]]
    ]
    shown = [
        [row["seq"], row["at"][:19], row["actor"], row["action"], row["area"], row["path"]] for row in rows
    ]
    lines = table(shown, header=["SEQ", "AT", "WHO", "WHAT", "AREA", "PATH"])
    return Answer(data={"entries": rows}, lines=lines)


def _write(entries: QuerySet[AuditEntry], path: Path) -> Answer:
    """Write entries as JSON lines to a file, the oldest first, in constant memory."""
    count = 0
    with path.open("wb") as file:
        for part in excerpts.lines(entries):
            count += part.count(b"\n")
            file.write(part)
    return Answer(data={"entries": count, "file": str(path)}, lines=[f"{count} entries are in {path}."])


def _when(at_us: int) -> str:
    return (_EPOCH + timedelta(microseconds=at_us)).isoformat()


def audit_checkpoint(options: Options) -> Answer:
    if options["rebuild"] and not options["dry_run"]:
        count = segments.rebuild_log(actor())
        return Answer(data={"rebuilt": count}, lines=[f"The file was made anew, checkpoints: {count}."])
    if options["dry_run"]:
        waiting = auditing.unsealed()
        return Answer(
            data={"unsealed": waiting, "dry_run": True}, lines=[f"{waiting} entries are not sealed."]
        )
    cut = auditing.cut_checkpoints(force=True)
    lines = [f"Checkpoint {one.number} seals entries {one.first_seq} to {one.last_seq}." for one in cut]
    data = {"checkpoints": [msgspec.to_builtins(one) for one in cut]}
    return Answer(data=data, lines=lines or ["Every entry is sealed already."])


def audit_export(options: Options) -> Answer:
    done = segments.export_audit(
        options["folder"], actor(), up_to=options["up_to"], before=options["before"], again=options["again"],
        dry_run=options["dry_run"],
    )  # fmt: skip
    rows = [
        {"segment": one.name, "sha256": one.sha256, "checkpoint": one.checkpoint.number,
         "first_seq": one.checkpoint.first_seq, "last_seq": one.checkpoint.last_seq}
        for one in done
    ]  # fmt: skip
    lines = [f"{row['segment']}: entries {row['first_seq']} to {row['last_seq']}" for row in rows]
    data = {"segments": rows, "dry_run": options["dry_run"]}
    return Answer(data=data, lines=lines or ["No sealed stretch is left to be exported."])


def audit_prune(options: Options) -> Answer:
    done = segments.prune_audit(options["folder"], actor(), dry_run=options["dry_run"])
    numbers = [one.number for one in done.checkpoints]
    data = {
        "checkpoints": numbers, "entries": done.entries, "ended": done.ended, "dry_run": options["dry_run"]
    }  # fmt: skip
    verb = "would go" if options["dry_run"] else "are gone; their checkpoints stay"
    lines = [f"{done.entries} entries of {len(numbers)} checkpoints {verb}."]
    return Answer(data=data, lines=[*lines, f"Ended: {done.ended}."] if done.ended else lines)


def audit_prove(options: Options) -> Answer:
    proof = auditing.prove(options["seq"])
    return Answer(data=proof, lines=json.dumps(proof, indent=2).splitlines())


def audit_keys(options: Options) -> Answer:
    if options["renew"] and not options["dry_run"]:
        auditing.renew_key(actor())
    keys = auditing.public_keys().keys
    rows = [[key.key_id, _when(key.at_us)[:19], key.public_key] for key in keys]
    data = {"keys": [msgspec.to_builtins(key) for key in keys], "dry_run": options["dry_run"]}
    return Answer(data=data, lines=table(rows, header=["KEY", "MADE", "PUBLIC KEY (ED25519)"]))
