"""What the page of a preview shows: a result in words, bars, and the files of one tab at a time."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from django.utils import timezone

from bus import cells
from cleanup.admin.fields import brake_lines
from cleanup.engine.errors import PolicyInvalid
from cleanup.models import JobState, Mode, PolicyPreview, RetentionPolicy
from cleanup.operations.previews import drafted, topic_of
from cleanup.operations.versions import changes_of, fields_of
from cleanup.operations.wording import meaning_of, policy_in_words, reason_in_words
from cleanup.stores.jobs import OPEN_STATES
from cleanup.stores.previews import Seen, Wanted, page_of

#: Files of one page of a tab.
PAGE = 200

#: A preview that no worker has taken by then says so.
LATE = timedelta(seconds=6)

#: Name of a tab, what is written on it, and what it says when it is empty.
TABS = (
    ("goes", "Will be trashed", "Nothing would go to the trash. Kept says for each file why it stays."),
    ("stays", "Kept", "Nothing would be kept: every file that was seen would go."),
    ("doubt", "Could not be judged", "Every file could be judged."),
)


def page_context(row: PolicyPreview, asked: Mapping[str, str]) -> dict[str, Any]:
    """All that the page says of a preview; `asked` names tab, reason, prefix and place."""
    context: dict[str, Any] = {
        "preview": row,
        "is_open": row.state in OPEN_STATES,
        "ordered": cells.moment(row.created_at),
        "of": _of(row),
        "policy": row.policy,
    }
    try:
        policy = drafted(row)
    except PolicyInvalid as error:
        return {**context, "refusal": str(error)}
    context |= {"says": policy_in_words(policy), "changes": _changes(row)}
    if row.state in OPEN_STATES:
        return {**context, **_waiting(row)}
    if row.state != JobState.DONE:
        return {**context, "refusal": row.message or "It ended without a word."}
    return {**context, **_result(row, policy), **_files(row, policy, asked)}


def _of(row: PolicyPreview) -> str:
    if row.draft is None:
        return f"version {row.version}, as it is saved"
    if row.of_version is not None:
        return f"version {row.of_version}, which is not the newest"
    return "a version that is not saved yet"


def _changes(row: PolicyPreview) -> list[tuple[str, str, str]]:
    """What a draft says otherwise than what is saved: field, old, new."""
    if row.draft is None or row.policy is None:
        return []
    found = changes_of(fields_of(row.policy), row.draft)
    return [(one.field.replace("_", " "), one.old, one.new) for one in found if one.field != "area_id"]


def _waiting(row: PolicyPreview) -> dict[str, Any]:
    """Before the end: how far it is, and whether anybody is at it."""
    done, total = row.result.get("scanned", 0), row.result.get("total", 0)
    return {
        "topic": topic_of(row),
        "late": row.state == JobState.QUEUED and timezone.now() - row.created_at > LATE,
        "done": done,
        "total": total,
        "stopping": row.stop_requested,
    }


def _result(row: PolicyPreview, policy: RetentionPolicy) -> dict[str, Any]:
    result = row.result
    goes = result["goes"]
    at = datetime.fromisoformat(result["at"])
    return {
        "goes": goes["files"],
        "total_words": cells.files_and_bytes(goes["files"], goes["bytes"]),
        "scanned": f"{result['scanned']:,}",
        "seconds": cells.span(timedelta(seconds=max(1, result.get("seconds", 0)))),
        "judged": cells.moment(at),
        "is_old": timezone.now() - at > timedelta(hours=1),
        "grace": cells.span(policy.grace_period),
        "is_off": policy.mode == Mode.OFF,
        "is_report": policy.mode == Mode.REPORT,
        "brakes": brake_lines(result["brakes"]),
        "difference": difference_words(result),
        "verifiers": _verifiers(result),
        "bars": [
            ("By age", "since they were last changed", _bars(result["ages"])),
            ("By size", "", _bars(result["sizes"])),
        ],
        "place": result.get("of", {}),
        "rows": policy.area_id is None,
        "unlisted": sum(result[kind]["files"] for kind, *_ in TABS) - result["listed"],
    }


def difference_words(result: Mapping[str, Any]) -> str:
    """What is otherwise than with the saved version; empty if there is none to compare with."""
    saved = result.get("saved")
    if not saved:
        return ""
    if "refusal" in saved:
        return f"The saved version cannot be compared: {saved['refusal']}"
    files = result["goes"]["files"] - saved["files"]
    size = result["goes"]["bytes"] - saved["bytes"]
    if saved["same"]:
        return "The very same files as with the saved version."
    if not files and not size:
        return "As many files and bytes as with the saved version, but other files."
    return f"{signed(files, size)} against the saved version."


def signed(files: int, size: int) -> str:
    """`+1,204 files, +88.0 GB`"""
    word = "file" if abs(files) == 1 else "files"
    return f"{files:+,}\u00a0{word}, {'+' if size >= 0 else ''}{cells.size(size)}"


def _verifiers(result: Mapping[str, Any]) -> dict[str, Any]:
    said = result["verifiers"]
    if not said:
        return {}
    doubts = [f"{name.partition(':')[0]}: {text}" for name, text in result["facts"].get("doubts", {}).items()]
    asked = sum(said.values())
    return {"asked": asked, **said, "doubts": doubts}


def _bars(bands: list[list[Any]]) -> list[dict[str, Any]]:
    """Bars of a histogram, with their length in twentieths of the longest."""
    most = max((files for _, files, _ in bands), default=0)
    return [
        {
            "name": name,
            "words": cells.files_and_bytes(files, size),
            "files": files,
            "most": most,
        }
        for name, files, size in bands
    ]


def _files(row: PolicyPreview, policy: RetentionPolicy, asked: Mapping[str, str]) -> dict[str, Any]:
    """One tab: what its filter finds, a page at a time."""
    tab = asked.get("tab", "goes") if asked.get("tab") in [name for name, *_ in TABS] else "goes"
    reason, prefix = asked.get("reason", "")[:30], asked.get("prefix", "").strip()[:400]
    known = [entry for entry in row.result["reasons"] if entry[0] == tab]
    if reason not in [entry[1] for entry in known]:
        reason = ""
    after = asked.get("after", "")
    found = page_of(row, Wanted(kind=tab, reason=reason, prefix=prefix), after=after, limit=PAGE)
    chosen = {"tab": tab, "reason": reason, "prefix": prefix}
    number = row.result[tab]["files"]
    return {
        "tabs": [_tab(row, name, title, name == tab) for name, title, _ in TABS],
        "tab": tab,
        "empty": {name: text for name, _, text in TABS}[tab],
        "listing": [_line(why, seen, policy) for why, seen in found.files],
        "reasons": [
            {
                "name": why,
                "words": reason_in_words(why, policy),
                "meaning": meaning_of(why),
                "amount": cells.files_and_bytes(files, size),
                "url": f"?{urlencode({'tab': tab, 'reason': why})}#files",
                "chosen": why == reason,
            }
            for _, why, files, size in known
        ],
        "reason": reason,
        "prefix": prefix,
        "number": f"{number:,}",
        "is_first": not after,
        "is_all": not after and found.following is None,
        "first_url": _query(chosen),
        "next_url": _query({**chosen, "after": found.following}) if found.following else "",
        "narrowed": bool(reason or prefix),
    }


def _tab(row: PolicyPreview, name: str, title: str, is_chosen: bool) -> dict[str, Any]:
    amount = row.result[name]
    return {
        "title": title,
        "amount": cells.files_and_bytes(amount["files"], amount["bytes"]),
        "url": f"?tab={name}#files",
        "chosen": is_chosen,
    }


def _line(reason: str, seen: Seen, policy: RetentionPolicy) -> tuple[str, str, str, str]:
    return seen.path, cells.size(seen.size), reason_in_words(reason, policy), seen.detail


def _query(values: Mapping[str, Any]) -> str:
    return f"?{urlencode({name: value for name, value in values.items() if value})}#files"
