"""Explain a path: where it is, what every policy makes of it and why, what holds it, where it went.

A GET looks at the path alone; what takes as long as there are files, or asks others (rules that compare
files, verifiers), is done by the button, whose POST changes nothing either. No content of a file is read.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.html import format_html

from bus import cells
from cleanup import operations
from cleanup.admin.fields import words
from cleanup.engine.errors import EngineError
from cleanup.models import AuditEntry, CleanupItem, ItemState, RetentionPolicy, StagingArea
from cleanup.operations.explanations import Explanation, PolicyExplained
from cleanup.operations.judging import NOT_JUDGED

#: Audit entries that are shown, and characters of a path that are taken.
_ENTRIES, _LONGEST = 50, 5_000

_KINDS = {
    "file": "a file", "dir": "a directory", "symlink": "a symbolic link", "absent": "not there",
    "other": "neither file nor directory", "unknown": "not known, since the area cannot be opened",
}  # fmt: skip


def explain_url(path: str, area: StagingArea | None = None) -> str:
    """The address of a path's explanation."""
    asked = {"path": path} if area is None else {"path": path, "area": area.name}
    return f"{reverse('cleanup-explain')}?{urlencode(asked)}"


def explain_page(request: HttpRequest) -> HttpResponse:
    """The page: a form, and below it what is known about the path in the address."""
    if not request.user.has_perm("cleanup.view_stagingarea"):
        raise PermissionDenied
    path, name = request.GET.get("path", ""), request.GET.get("area", "")
    is_thorough = request.method == "POST"
    shown: dict[str, Any] = {
        **admin.site.each_context(request),
        "title": "Explain a path",
        "path": path,
        "area": name,
        "areas": list(StagingArea.objects.order_by("name").values_list("name", flat=True)),
        "is_thorough": is_thorough,
    }
    if path:
        shown |= _found(request, path.strip("\r\n"), name, thorough=is_thorough)
    return TemplateResponse(request, "console/explain.html", shown)


def _found(request: HttpRequest, path: str, name: str, *, thorough: bool) -> dict[str, Any]:
    """What is known, or why nothing can be said."""
    if len(path) > _LONGEST or "\0" in path:
        return {"refusal": "No path is that long, and none holds a NUL byte."}
    try:
        area = operations.find_area(name) if name else None
        found = operations.explain(path, area=area, thorough=thorough)
    except (EngineError, OSError, UnicodeEncodeError) as refusal:
        return {"refusal": str(refusal)}
    if found.area is None:
        return {"outside": found}
    ids = [went.item for went in found.trash]
    return {
        "found": found,
        "kind": _KINDS.get(found.kind, found.kind),
        "size": cells.size(found.size) if found.kind == "file" else "",
        "area_row": operations.find_area(found.area),
        "policies": [_policy(one) for one in found.policies],
        "unjudged": not thorough and _is_open(found),
        "holds": [(one, cells.moment(one.until, empty="until released")) for one in found.holds],
        "registry": _registry(found),
        "trash": _trash(ids),
        "entries": _entries(request, ids),
        "hold_url": f"{reverse('admin:cleanup_hold_add')}?{_hold_query(found)}",
    }


def _hold_query(found: Explanation) -> str:
    area = operations.find_area(str(found.area))
    return urlencode({"area": area.pk, "pattern": found.below})


def _is_open(found: Explanation) -> bool:
    """Whether the button would tell more."""
    return any(
        one.reason == NOT_JUDGED or any(each.name == "verifiers" for each in one.conditions)
        for one in found.policies
    )


def _policy(one: PolicyExplained) -> dict[str, Any]:
    row = RetentionPolicy.objects.filter(name=one.policy).first()
    unasked = any(each.name == "verifiers" for each in one.conditions)
    if one.reason == NOT_JUDGED:
        verdict = cells.badge("not judged yet", "info")
    elif one.goes:
        verdict = cells.badge("would go, if its verifiers pass" if unasked else "would go", "warn")
    else:
        verdict = cells.badge("stays", "good")
    return {
        "row": row,
        "name": one.policy,
        "rule": f"{words(one.rule)}, {one.mode}",
        "verdict": verdict,
        "why": one.meaning + (f": {one.detail}" if one.detail else ""),
        "conditions": [
            (
                words(each.name),
                _value(each.value),
                {True: "speaks for going", False: "keeps it", None: ""}[each.holds],
            )
            for each in one.conditions
        ],
        "members": one.members[:10] if len(one.members) > 1 else [],
        "more": max(0, len(one.members) - 10),
        "changes": cells.moment(one.eligible_from) if one.eligible_from else "",
        "next_run": cells.moment(one.next_run_at) if one.next_run_at else "",
        "obstacles": one.obstacles,
    }


def _value(text: str) -> str:
    """A moment as the console writes moments; anything else as it is."""
    try:
        return cells.moment(datetime.fromisoformat(text)) if "T" in text else text
    except ValueError:
        return text


def _registry(found: Explanation) -> dict[str, Any] | None:
    row = found.registry
    if row is None:
        return None
    gone, by, task = row["deleted_at"], row["uploader"] or "unknown", row["task_id"] or "none"
    return {
        "url": reverse("admin:cleanup_stagedfile_change", args=[row["id"]]),
        "said": f"{cells.size(row['size'])}, by {by}, task {task}",
        "created": cells.moment(row["created_at"]),
        "gone": cells.moment(gone) if gone else "",
    }


def _trash(ids: list[str]) -> list[dict[str, Any]]:
    rows = CleanupItem.objects.filter(pk__in=ids).select_related("run__policy_version__policy")
    return [
        {
            "row": row,
            "state": row.get_state_display(),
            "why": format_html("{}{}", words(row.reason), f": {row.detail}" if row.detail else ""),
            "by": ""
            if row.run is None
            else f"{row.run.policy_version.policy} v{row.run.policy_version.number}",
            "at": cells.moment(row.trashed_at),
            "until": cells.moment(row.purge_after) if row.state == ItemState.TRASHED else "",
        }
        for row in sorted(rows, key=lambda row: row.changed_at, reverse=True)
    ]


def _entries(request: HttpRequest, ids: list[str]) -> list[AuditEntry]:
    """What the audit says of its ways through the trash, for those who may read it."""
    if not ids or not request.user.has_perm("cleanup.view_auditentry"):
        return []
    return list(AuditEntry.objects.filter(item__in=ids).order_by("-seq")[:_ENTRIES])
