"""The three roles of people, as Django groups: viewer, operator, admin. Each has what the one before it has.

A viewer sees everything and changes nothing; an operator works (disconnect, run, approve, restore, hold,
purge); an admin also decides who and what there is (policies, areas, keys, people). The permissions of the
console's changes are read from the pages themselves, so a new change cannot be forgotten here.
"""

from __future__ import annotations

from collections.abc import Iterator

from django.contrib import admin
from django.contrib.auth.models import Group, Permission
from django.contrib.contenttypes.models import ContentType
from django.db import transaction
from django.db.models import Q

from bus.console import Change, ConsoleAdmin

VIEWER, OPERATOR, ADMIN = "viewer", "operator", "admin"
#: From the weakest to the strongest.
ROLES = (VIEWER, OPERATOR, ADMIN)

#: Apps whose rows a viewer may look at. People and groups are for admins.
_SEEN = ("bus", "cleanup", "django_celery_beat")
#: What an operator may besides the changes: rows made by a form, events published, files sent and fetched.
_OPERATOR_MAY = (
    ("cleanup", "add_hold"),
    ("bus", "publish_topic"),
    ("cleanup", "add_upload"),
    ("cleanup", "download_stagedfile"),
)
#: Of those, what changes nothing and comes with no model, and its name.
_MADE_HERE = {("cleanup", "download_stagedfile"): "Download: staged file"}
#: Rows that an admin makes and changes by forms. The rest is written by the system alone.
_ADMIN_WRITES = {
    "bus": ("add_apikey", "add_tokenrevocation"),
    "cleanup": ("add_stagingarea", "add_retentionpolicy", "change_retentionpolicy", "add_source"),
    "django_celery_beat": ("add_", "change_", "delete_"),
    "auth": ("view_", "add_", "change_", "delete_"),
}


def changes() -> Iterator[tuple[ConsoleAdmin, Change]]:
    """Every change of every page of the console."""
    admin.autodiscover()
    for page in admin.site._registry.values():
        if isinstance(page, ConsoleAdmin):
            for change in page.changes.values():
                yield page, change


def in_roles() -> Q:
    """The permissions that some role has by its definition."""
    found = Q(content_type__app_label__in=_SEEN, codename__startswith="view_")
    named = [*_OPERATOR_MAY, *(tuple(change.permission.split(".")) for _, change in changes())]
    for app, codename in named:
        found |= Q(content_type__app_label=app, codename=codename)
    for app, prefixes in _ADMIN_WRITES.items():
        for prefix in prefixes:
            found |= Q(content_type__app_label=app, codename__startswith=prefix)
    return found


@transaction.atomic
def ensure_roles() -> dict[str, Group]:
    """Make the three groups, and give them exactly the permissions of their roles. Idempotent.

    What somebody has added to a group beside that stays.
    """
    known = _known()
    granted: dict[str, list[Permission]] = {role: [] for role in ROLES}
    granted[VIEWER] += [
        entry for (app, codename), entry in known.items() if app in _SEEN and codename.startswith("view_")
    ]
    for place in _OPERATOR_MAY:
        granted[OPERATOR].append(known.get(place) or _made(*place, _MADE_HERE[place]))
    for name, prefixes in _ADMIN_WRITES.items():
        granted[ADMIN] += [
            entry for (app, codename), entry in known.items() if app == name and codename.startswith(prefixes)
        ]
    for page, change in changes():
        app, _, codename = change.permission.partition(".")
        # It belongs to a page and not to a model's migration.
        title = f"{change.label}: {page.opts.verbose_name}"
        granted[change.role].append(known.get((app, codename)) or _made(app, codename, title))
    return _give(granted)


def _known() -> dict[tuple[str, str], Permission]:
    """All permissions that there are, by app and codename."""
    rows = Permission.objects.select_related("content_type")
    return {(row.content_type.app_label, row.codename): row for row in rows}


def _made(app: str, codename: str, name: str) -> Permission:
    permission, _ = Permission.objects.get_or_create(
        content_type=ContentType.objects.get(app_label=app, model=codename.rpartition("_")[2]),
        codename=codename,
        defaults={"name": name},
    )
    return permission


def _give(granted: dict[str, list[Permission]]) -> dict[str, Group]:
    groups, so_far = {}, list[Permission]()
    for role in ROLES:
        so_far += granted[role]
        groups[role], _ = Group.objects.get_or_create(name=role)
        groups[role].permissions.add(*so_far)
    return groups
