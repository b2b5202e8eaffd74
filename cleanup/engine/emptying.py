"""The engine alone, on the trash: what is in it, bringing back, purging, and reading the audit file."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from cleanup.engine.area import AreaHandle
from cleanup.engine.audit import GENESIS, verify_chain
from cleanup.engine.auditlog import JsonlAuditSink
from cleanup.engine.clearing import in_trash, is_own, purge_area
from cleanup.engine.errors import AuditInvalid
from cleanup.engine.journal import Step
from cleanup.engine.names import patterns, unescape
from cleanup.engine.restore import Restored, restore, restore_batch
from cleanup.engine.shelf import Manifest, ManifestItem
from cleanup.engine.standalone import DONE, REFUSED, SOME_SKIPPED, Refused, Report, Standalone

_Matches = Callable[[ManifestItem], bool]


def _matcher(path: str | None, items: Sequence[str] = ()) -> _Matches:
    """Return what tells the items of a trash that are meant."""
    ids = frozenset(items)
    glob = patterns((path,), subtree=True) if path is not None else None

    def matches(item: ManifestItem) -> bool:
        if ids and item.id not in ids:
            return False
        return glob is None or any(glob.match(member.path) is not None for member in item.members)

    return matches


def listing(alone: Standalone, area_names: Sequence[str], *, path: str | None = None) -> Report:
    """Say what is in the trash and until when."""
    rows: list[dict[str, Any]] = []
    bad: list[str] = []
    matches = _matcher(path)
    for name in area_names or list(alone.config.areas):
        with alone.opened(name) as area:
            for manifest, items in in_trash(area, on_bad=lambda batch, why: bad.append(why)):
                rows += [_row(name, manifest, item) for item in items if matches(item)]
    lines = [f"{row['purge_after']}  {row['size']:>12}  {row['item']}  {row['path']}" for row in rows]
    lines += [f"{len(rows)} in the trash", *(f"UNREADABLE: {why}" for why in bad)]
    return Report(data={"items": rows, "errors": bad}, lines=lines, code=SOME_SKIPPED if bad else DONE)


def _row(area: str, manifest: Manifest, item: ManifestItem) -> dict[str, Any]:
    return {
        "item": item.id,
        "area": area,
        "path": item.members[0].path,
        "size": item.bytes,
        "reason": str(item.reason),
        "policy": manifest.policy,
        "trashed_at": manifest.trashed_at.isoformat(),
        "purge_after": manifest.purge_after.isoformat(),
        "own": is_own(manifest),
    }


def _chosen(alone: Standalone, name: str, dry_run: bool) -> AbstractContextManager[AreaHandle]:
    """Open an area to look, or lock it to act."""
    return alone.opened(name) if dry_run else alone.acting(name)


def bring_back(
    alone: Standalone,
    area_name: str,
    *,
    path: str | None = None,
    items: Sequence[str] = (),
    to: str | None = None,
    dry_run: bool = False,
) -> Report:
    """Bring files back from the trash, whoever has moved them there; never over another file.

    Args:
        alone: whose area it is.
        area_name: of the area.
        path: a pattern; only what matches.
        items: ids in the trash; only these.
        to: another path below the area, escaped, for one item.
        dry_run: only say which.
    """
    matches = _matcher(path, items)
    with _chosen(alone, area_name, dry_run) as area:
        found = [
            (manifest, [item for item in there if matches(item)])
            for manifest, there in in_trash(area, on_bad=lambda batch, why: None)
        ]
        count = sum(len(chosen) for _, chosen in found)
        if to is not None and count != 1:
            raise Refused(f"--to is for one item, and {count} match")
        if missing := set(items) - {item.id for _, chosen in found for item in chosen}:
            raise Refused(f"the trash of {area_name} does not hold {sorted(missing)[0]}")
        if dry_run:
            paths = [item.members[0].path for _, chosen in found for item in chosen]
            return Report(data={"restored": 0, "items": paths, "dry_run": True}, lines=paths)
        done = [
            one for manifest, chosen in found if chosen for one in _restore(alone, area, manifest, chosen, to)
        ]
    return _restore_report(done)


def _restore(
    alone: Standalone,
    area: AreaHandle,
    manifest: Manifest,
    items: Sequence[ManifestItem],
    to: str | None,
) -> list[Restored]:
    wanted = [(item.id, to or item.members[0].path, item.bytes) for item in items]
    alone.journal.begin("restore", manifest.batch, wanted, area=area.uuid, policy=manifest.policy)
    if to is None:
        done = restore_batch(area, [item.id for item in items])
    else:
        done = [restore(area, items[0].id, to=unescape(to))]
    steps = [
        Step(action=one.outcome, item=item.id, path=one.path, size=item.bytes, detail=one.detail)
        for item, one in zip(items, done, strict=True)
    ]
    alone.journal.settle("restore", manifest.batch, steps, area=area.uuid, policy=manifest.policy)
    return done


def _restore_report(done: Sequence[Restored]) -> Report:
    back = [one for one in done if one.outcome == "restored"]
    others = [one for one in done if one.outcome != "restored"]
    conflicts = [{"path": one.path, "outcome": one.outcome, "detail": one.detail} for one in others]
    lines = [f"{len(back)} restored.", *(f"{one.outcome}: {one.path}: {one.detail}" for one in others)]
    if back:
        lines.append("The next run judges them anew; a hold in the configuration keeps them.")
    code = SOME_SKIPPED if others else DONE
    return Report(data={"restored": len(back), "conflicts": conflicts}, lines=lines, code=code)


def purge(
    alone: Standalone,
    area_names: Sequence[str],
    *,
    path: str | None = None,
    early: str | None = None,
    dry_run: bool = False,
) -> Report:
    """Remove from the trash for good what is due, or with a reason what is not.

    Args:
        alone: whose areas they are.
        area_names: of areas; none: all of them.
        path: with `early`, only what matches.
        early: why the grace period is not waited for; what is held stays all the same.
        dry_run: only say how much.
    """
    if early is not None and (not early.strip() or not area_names):
        raise Refused("--now needs an area and a reason")
    if path is not None and early is None:
        raise Refused("--path goes with --now")
    matches = _matcher(path)
    total: dict[str, int] = {"purged": 0, "bytes": 0, "held": 0, "of_a_site": 0}
    errors: list[str] = []
    for name in area_names or list(alone.config.areas):
        with _chosen(alone, name, dry_run) as area:
            if early is not None and not dry_run:
                alone.journal.note("purge_now", area=area.uuid, reason=early, pattern=path or "")
            done = purge_area(
                area,
                alone.journal,
                now=alone.now,
                holds=alone.config.holds_of(name),
                wanted=None if early is None else lambda manifest, item: matches(item),
                dry_run=dry_run,
            )
        for key, value in zip(total, (done.files, done.bytes, done.held, done.foreign), strict=True):
            total[key] += value
        errors += done.errors
    return _purge_report(total, errors, dry_run=dry_run)


def _purge_report(total: dict[str, int], errors: list[str], *, dry_run: bool) -> Report:
    word = "would be purged" if dry_run else "purged"
    lines = [f"{total['purged']} files, {total['bytes']} bytes {word}."]
    lines += [f"kept by a hold: {total['held']}"] if total["held"] else []
    lines += [f"left to the site that moved them: {total['of_a_site']}"] if total["of_a_site"] else []
    lines += [f"error: {error}" for error in errors]
    code = SOME_SKIPPED if errors or total["held"] or total["of_a_site"] else DONE
    return Report(data={**total, "errors": errors, "dry_run": dry_run}, lines=lines, code=code)


def verify(alone: Standalone, *, head: tuple[int, str] | None = None) -> Report:
    """Read the whole audit file: 0 sound, 1 tampered, 2 could not check.

    Args:
        alone: whose audit it is.
        head: number and hash of its last entry as noted elsewhere, without which a cut-off tail is not seen.
    """
    path, last = alone.config.audit_file, (0, GENESIS)
    if not path.exists():
        return Report(data={"sound": None}, lines=[f"There is no audit at {path}."], code=REFUSED)
    try:
        entries = list(JsonlAuditSink(path))
        report = verify_chain(entries, head=head)
    except AuditInvalid as error:
        return Report(data={"sound": False, "kind": "line"}, lines=[str(error)], code=SOME_SKIPPED)
    except OSError as error:
        return Report(data={"sound": None}, lines=[f"{path}: {error.strerror}"], code=REFUSED)
    if entries:
        last = (entries[-1].seq, entries[-1].hash)
    data = {
        "sound": report.sound,
        "entries": report.entries,
        "first_bad_seq": report.first_bad_seq,
        "kind": report.kind,
        "head": f"{last[0]}:{last[1]}",
    }
    sentence = f"{report.entries} entries are sound; the head is {data['head']}"
    if not report.sound:
        sentence = f"TAMPERED at entry {report.first_bad_seq}: {report.kind}"
    return Report(data=data, lines=[sentence], code=DONE if report.sound else SOME_SKIPPED)
