"""The look and the menu of the console (Django admin with unfold).

Loaded with the settings, before any app: addresses are lazy, and the figures of the overview are named by
their path. The menu names only pages that exist, and each person sees those that he or she may look at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from django.http import HttpRequest
from django.templatetags.static import static
from django.urls import get_script_prefix, reverse
from django.utils.functional import lazy


@cache
def _found(name: str, prefix: str) -> str:
    return reverse(name)


def _address(name: str) -> Any:
    """A lazy address. Unfold reads each hundreds of times a page: it is looked up once for each prefix."""
    return lazy(lambda: _found(name, get_script_prefix()), str)()


def _may(permission: str) -> Callable[[HttpRequest], bool]:
    return lambda request: request.user.has_perm(permission)


def _item(title: str, icon: str, model: str) -> dict[str, Any]:
    """A page of the menu: the list of `app.model`, for those who may look at it."""
    app, name = model.split(".")
    return {
        "title": title,
        "icon": icon,
        "model": model,
        "link": _address(f"admin:{app}_{name}_changelist"),
        "permission": _may(f"{app}.view_{name}"),
    }


def _tabs(app: str, *pages: tuple[str, str]) -> dict[str, Any]:
    """Lists of one app side by side, as title and model, each for those who may look at it."""
    return {
        "models": [f"{app}.{model}" for _, model in pages],
        "items": [
            {
                "title": title,
                "model": f"{app}.{model}",
                "link": _address(f"admin:{app}_{model}_changelist"),
                "permission": _may(f"{app}.view_{model}"),
            }
            for title, model in pages
        ],
    }


def _group(title: str, *items: dict[str, Any]) -> dict[str, Any]:
    return {"title": title, "separator": True, "collapsible": False, "items": list(items)}


def _static(path: str) -> Callable[[HttpRequest], str]:
    return lambda request: static(path)


#: Indigo, from the lightest to the darkest: the same hue as on the dashboard.
_PRIMARY = {
    "50": "oklch(96.2% .018 272.314)",
    "100": "oklch(93% .034 272.788)",
    "200": "oklch(87% .065 274.039)",
    "300": "oklch(78.5% .115 274.713)",
    "400": "oklch(67.3% .182 276.935)",
    "500": "oklch(58.5% .233 277.117)",
    "600": "oklch(51.1% .262 276.966)",
    "700": "oklch(45.7% .24 277.023)",
    "800": "oklch(39.8% .195 277.366)",
    "900": "oklch(35.9% .144 278.697)",
    "950": "oklch(25.7% .09 281.288)",
}

_NAVIGATION = [
    {
        "items": [
            {"title": "Overview", "icon": "space_dashboard", "link": _address("admin:index")},
            # Every page begins with "/": without this the menu would mark the dashboard everywhere.
            {
                "title": "Live",
                "icon": "monitoring",
                "link": "/",
                "active": lambda request: request.path == "/",
            },
        ]
    },
    _group(
        "Bus",
        _item("Connections", "cable", "bus.activeconnection"),
        _item("Agents", "smart_toy", "bus.agent"),
        _item("Topics", "forum", "bus.topic"),
        _item("Events", "receipt_long", "bus.event"),
        _item("Cursors", "bookmark", "bus.cursor"),
        _item("Running tasks", "progress_activity", "bus.runningtask"),
        _item("API keys", "key", "bus.apikey"),
    ),
    _group(
        "Cleanup",
        _item("Areas", "folder_managed", "cleanup.stagingarea"),
        _item("Policies", "policy", "cleanup.retentionpolicy"),
        _item("Runs & plans", "fact_check", "cleanup.cleanuprun"),
        _item("Trash", "restore_from_trash", "cleanup.cleanupitem"),
        _item("Orphans", "link_off", "cleanup.orphanbatch"),
        _item("Holds", "back_hand", "cleanup.hold"),
        _item("Verifiers", "rule", "cleanup.verifiercheck"),
        {
            "title": "Explain a path",
            "icon": "help",
            "link": _address("cleanup-explain"),
            "permission": _may("cleanup.view_stagingarea"),
        },
        _item("Audit", "verified_user", "cleanup.auditentry"),
    ),
    _group(
        "Staging",
        _item("Files", "draft", "cleanup.stagedfile"),
        _item("Uploads", "upload", "cleanup.upload"),
        _item("Sources", "cloud_download", "cleanup.source"),
    ),
    _group("Schedule", _item("Periodic tasks", "schedule", "django_celery_beat.periodictask")),
    _group("People", _item("Users", "person", "auth.user"), _item("Roles", "group", "auth.group")),
]

_TABS = [
    _tabs(
        "bus", ("Live", "activeconnection"), ("History", "connectionsession"), ("Servers", "serverinstance")
    ),
    _tabs("bus", ("API keys", "apikey"), ("Revoked tokens", "tokenrevocation")),
    _tabs("cleanup", ("Entries", "auditentry"), ("Checkpoints", "auditcheckpoint")),
    _tabs(
        "cleanup",
        ("Policies", "retentionpolicy"),
        ("Previews", "policypreview"),
        ("Versions", "policyversion"),
    ),
    _tabs("cleanup", ("Files", "cleanupitem"), ("Orders", "trashorder")),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a list stands in the menu."""

    group: str
    #: As title and `app.model`: the page of the menu, and of its tabs, but for the first, the tab.
    lists: tuple[tuple[str, str], ...]


def _places() -> Iterator[tuple[str, Place]]:
    found = {}
    for group in _NAVIGATION[1:]:
        for item in group["items"]:
            if model := item.get("model"):
                found[model] = Place(group=group["title"], lists=((item["title"], model),))
    yield from found.items()
    for row in _TABS:
        first, *others = row["items"]
        place = found[first["model"]]
        for tab in others:
            lists = (*place.lists, (tab["title"], tab["model"]))
            yield tab["model"], Place(group=place.group, lists=lists)


#: `app.model` -> where its list is. The names of screens come from here (`xnai_site.templatetags.console`).
PLACES: dict[str, Place] = dict(_places())

UNFOLD: dict[str, Any] = {
    "SITE_TITLE": "XNAi",
    "SITE_HEADER": "XNAi",
    "SITE_SUBHEADER": "message bus and retention",
    "SITE_URL": "/",
    "SITE_ICON": _static("bus/mark.svg"),
    "SITE_FAVICONS": [{"rel": "icon", "type": "image/svg+xml", "href": _static("bus/mark.svg")}],
    "STYLES": [
        _static("bus/console.css"),
        _static("bus/console/overview.css"),
        _static("bus/console/bus.css"),
        _static("bus/console/lists.css"),
        _static("bus/console/live.css"),
        _static("bus/console/preview.css"),
        _static("bus/console/trash.css"),
        _static("bus/console/areas.css"),
        _static("bus/console/uploads.css"),
    ],
    "COLORS": {"primary": _PRIMARY},
    "BORDER_RADIUS": "6px",
    "SHOW_HISTORY": False,
    "SHOW_VIEW_ON_SITE": False,
    "LOGIN": {"image": _static("bus/login.svg")},
    "DASHBOARD_CALLBACK": "xnai_site.overview.overview",
    "SIDEBAR": {"show_search": True, "show_all_applications": False, "navigation": _NAVIGATION},
    "TABS": _TABS,
}
