"""What a screen of the console is called: on its tab in the browser, and as the trail in its head.

The menu and its tabs (`xnai_site.console`) are the one place where screens have names; a list that is in
neither is called after its rows. Nothing of an admin is imported here: templates are loaded before those.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django import template
from django.contrib import admin
from django.db.models.options import Options
from django.template import Context
from django.urls import reverse
from django.utils.safestring import SafeString

from bus import cells
from xnai_site.console import PLACES

register = template.Library()


@register.simple_tag(takes_context=True)
def screen_trail(context: Context) -> list[dict[str, str]]:
    """The way to this screen, as `{"title", "link"}`: group, list, row, and what is done there."""
    opts = context.get("opts")
    if opts is None:
        return [_part(str(context.get("content_title") or context.get("title") or ""))]
    trail, row, doing = _lists(opts), _row(context), _doing(context)
    name = "" if row is None else _name(row)
    if name and name not in doing:
        link = reverse(f"admin:{opts.app_label}_{opts.model_name}_change", args=[row.pk])
        trail.append({"title": name, "link": link})
    if doing and doing != trail[-1]["title"]:
        trail.append(_part(doing))
    return trail


@register.simple_tag(takes_context=True)
def screen_title(context: Context) -> str:
    """What the tab of the browser says: the narrowest name first, and no group."""
    trail = screen_trail(context)
    names = [part["title"] for part in (trail[1:] or trail)]
    return " | ".join(reversed(names))


@register.simple_tag
def screen_name(opts: Options[Any]) -> str:
    """What a list is called."""
    return _lists(opts)[-1]["title"]


@register.filter
def with_code(text: str) -> SafeString:
    """What stands between backquotes, as code."""
    return cells.with_code(str(text))


@register.filter
def as_moment(at: datetime | None) -> SafeString | str:
    """A moment with its zone, and as seen from now."""
    return cells.moment(at)


@register.simple_tag
def lasted(begin: datetime, end: datetime) -> str:
    """The time between two moments by its two biggest units."""
    return cells.span(end - begin)


def _lists(opts: Options[Any]) -> list[dict[str, str]]:
    """Group and list; of a tab also the list whose tab it is."""
    found = PLACES.get(opts.label_lower)
    if found is None:
        name = str(opts.verbose_name_plural)
        group = str(opts.app_config.verbose_name)
        return [_part(group), _part(name[:1].upper() + name[1:], opts.label_lower)]
    return [_part(found.group), *(_part(title, label) for title, label in found.lists)]


def _part(title: str, label: str = "") -> dict[str, str]:
    link = reverse(f"admin:{label.replace('.', '_')}_changelist") if label else ""
    return {"title": title, "link": link}


def _row(context: Context) -> Any:
    """The row that the page is about, if it is about one."""
    row = context.get("original") or context.get("object")
    return None if row is None or isinstance(row, str) else row


def _name(row: Any) -> str:
    page = admin.site._registry.get(type(row))
    return str(getattr(page, "name_of", str)(row))


def _doing(context: Context) -> str:
    """What the page does beside showing a list or a row."""
    is_row = context.get("adminform") is not None and context.get("original") is not None
    return "" if is_row or context.get("cl") is not None else str(context.get("title") or "")
