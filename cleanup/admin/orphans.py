"""Orphans: files that no row knows and rows whose file is not there, as the last look at each area saw them.

The list above is a card for each area; below it one page of one kind, unpacked from a batch or two however
many there are. What may be done is done to the area (`areas`), or by a run of a policy of the rule orphan.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone

from bus import cells
from bus.console import ReadOnlyAdmin
from cleanup.admin.explain import explain_url
from cleanup.conf import conf
from cleanup.engine.orphans import MAX_PERCENT, Sighting
from cleanup.models import Mode, OrphanBatch, RetentionPolicy, Rule, StagingArea
from cleanup.operations.looking import last_look, topic_of
from cleanup.stores.orphans import Kind, count, page, scanned
from cleanup.stores.registry import registered
from cleanup.stores.sql import database_now

#: Areas on the page, and orphans on a page of theirs.
_AREAS, _PAGE = 100, 100


@admin.register(OrphanBatch)
class OrphanBatchAdmin(ReadOnlyAdmin):
    """Orphans of every area."""

    intro = (
        "A file in an area that no row of the registry knows, or a row whose file is not there. Nothing goes "
        "for being seen once: an orphan counts when a second look, at least {gap} later, finds the very "
        "same one. Files then go to the trash by a policy of the rule orphan; a row is soft-deleted by it."
    )
    fields = (("area", "kind", "number"), ("items", "total", "seen_at"))

    def name_of(self, row: OrphanBatch) -> str:
        return f"{row.kind}s of {row.area.name}, part {row.number + 1}"

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        areas = list(StagingArea.objects.order_by("name")[:_AREAS])
        chosen = _chosen(request, areas)
        shown = {
            **self.admin_site.each_context(request),
            "title": "Orphans",
            "opts": self.opts,
            "intro": self.intro.format(gap=cells.span(conf().orphan_sighting_gap)),
            "most": MAX_PERCENT,
            "cards": [_card(request, area) for area in areas],
            "listed": _listed(chosen[0], chosen[1], _place(request)) if chosen else None,
            **(extra_context or {}),
        }
        return TemplateResponse(request, "console/orphans.html", shown)


def _chosen(request: HttpRequest, areas: list[StagingArea]) -> tuple[StagingArea, Kind] | None:
    """The area and kind that the address names; else the first with an orphan."""
    kind: Kind = "row" if request.GET.get("kind") == "row" else "file"
    for area in areas:
        if str(area.pk) == request.GET.get("area"):
            return area, kind
    for area in areas:
        if count(area.pk, "file") or count(area.pk, "row"):
            return area, "file" if count(area.pk, "file") else "row"
    return None


def _place(request: HttpRequest) -> tuple[int, int]:
    """Batch and place from the address; anything else is the beginning."""
    found = [request.GET.get(name, "") for name in ("batch", "at")]
    if all(text.isascii() and text.isdigit() and len(text) <= 9 for text in found):
        return int(found[0]), int(found[1])
    return 0, 0


def _card(request: HttpRequest, area: StagingArea) -> dict[str, Any]:
    first, rows, look = scanned(area.pk, "file"), scanned(area.pk, "row"), last_look(area)
    asked = None
    if look is not None:
        at = datetime.fromtimestamp(look.at_us / 1_000_000, UTC)
        asked = {"actor": look.actor, "at": cells.moment(at), "is_waiting": look.is_waiting,
                 "refused": look.refused}  # fmt: skip
    return {
        "area": area,
        "seen_at": None if first is None else cells.moment(first.seen_at),
        "files": count(area.pk, "file"), "of_files": 0 if first is None else first.total,
        "rows": count(area.pk, "row"), "of_rows": 0 if rows is None else rows.total,
        "asked": asked,
        "topic": topic_of(area),
        "buttons": _buttons(request, area),
        "policies": [policy.name for policy in _policies(area)],
    }  # fmt: skip


def _policies(area: StagingArea) -> Iterable[RetentionPolicy]:
    return RetentionPolicy.objects.filter(area=area, rule=Rule.ORPHAN).exclude(mode=Mode.OFF)


def _buttons(request: HttpRequest, area: StagingArea) -> list[dict[str, Any]]:
    """What this person may do to the area, each a page that asks."""
    user, found = request.user, []
    if area.enabled and user.has_perm("cleanup.look_stagingarea"):
        found.append(_button(request, "Look now", "stagingarea", "look", area.pk))
    if area.enabled and user.has_perm("cleanup.register_stagingarea") and count(area.pk, "file"):
        found.append(_button(request, "Register as known", "stagingarea", "register", area.pk))
    if area.enabled and user.has_perm("cleanup.run_retentionpolicy"):
        found += [
            _button(request, f"Run {policy.name}", "retentionpolicy", "run_now", policy.pk)
            for policy in _policies(area)
        ]
    return found


def _button(request: HttpRequest, label: str, model: str, name: str, pk: Any) -> dict[str, Any]:
    query = urlencode({"ids": pk, "next": request.get_full_path()})
    return {
        "label": label,
        "danger": False,
        "url": f"{reverse(f'admin:cleanup_{model}_do', args=[name])}?{query}",
    }


def _listed(area: StagingArea, kind: Kind, place: tuple[int, int]) -> dict[str, Any]:
    """One page of orphans of one area."""
    found, following = page(area.pk, kind, batch=place[0], start=place[1], size=_PAGE)
    known = registered(area.pk, [one.path for one in found]) if kind == "file" else set[str]()
    now, gap = database_now(), conf().orphan_sighting_gap
    here = {"area": area.pk, "kind": kind}
    more = "" if following is None else urlencode({**here, "batch": following[0], "at": following[1]})
    return {
        "area": area, "kind": kind,
        "rows": [_row(area, kind, one, now, gap, known) for one in found],
        "next": more,
        "first": urlencode(here) if place != (0, 0) else "",
        "files_url": urlencode({"area": area.pk, "kind": "file"}),
        "rows_url": urlencode({"area": area.pk, "kind": "row"}),
        "hold": f"{reverse('admin:cleanup_hold_add')}?area={area.pk}",
    }  # fmt: skip


def _row(
    area: StagingArea, kind: Kind, one: Sighting, now: datetime, gap: timedelta, known: set[str]
) -> dict[str, Any]:
    if one.path in known:
        standing = cells.badge("registered since", "good")
    elif one.confirmed(now=now, gap=gap):
        standing = cells.badge("counts at the next look", "warn")
    else:
        standing = cells.badge(f"seen once, counts {cells.relative(one.first_seen + gap, timezone.now())}")
    return {
        "path": one.path,
        "size": cells.size(one.identity[1]) if kind == "file" and len(one.identity) > 1 else "",
        "since": cells.moment(one.first_seen),
        "standing": standing,
        "explain": explain_url(one.path, area),
        "hold": f"{reverse('admin:cleanup_hold_add')}?{urlencode({'area': area.pk, 'pattern': one.path})}",
    }
