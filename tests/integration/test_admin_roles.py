"""The three roles: what each may do, and that they are made the same however often."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import Group, Permission, User
from django.test import Client
from django.urls import reverse

from tests.integration.console_rows import people
from xnai_site.permission_field import PermissionField
from xnai_site.roles import ROLES, changes, ensure_roles

pytestmark = pytest.mark.django_db


def granted(role: str) -> set[str]:
    found = Group.objects.get(name=role).permissions.select_related("content_type")
    return {f"{entry.content_type.app_label}.{entry.codename}" for entry in found}


def test_each_role_has_what_the_one_before_it_has():
    ensure_roles()
    viewer, operator, boss = (granted(role) for role in ROLES)
    assert viewer < operator < boss


def test_a_viewer_may_look_and_verify_and_nothing_else():
    ensure_roles()
    others = {name for name in granted("viewer") if not name.split(".")[1].startswith("view_")}
    assert others == {"cleanup.verify_auditentry"}


def test_an_operator_works_but_decides_neither_policies_nor_people():
    ensure_roles()
    may = granted("operator")
    assert {
        "cleanup.approve_cleanuprun",
        "cleanup.purge_cleanupitem",
        "bus.disconnect_activeconnection",
    } <= may
    assert not {"cleanup.change_retentionpolicy", "cleanup.add_stagingarea", "bus.add_apikey"} & may
    assert not [name for name in may if name.startswith("auth.")]


def test_every_change_belongs_to_a_role():
    ensure_roles()
    for _page, change in changes():
        assert change.permission in granted(change.role), change.name


def test_nobody_may_write_what_only_the_system_writes():
    ensure_roles()
    for name in granted("admin"):
        app, _, verb = name.replace("_", ".", 1).partition(".")
        if app in ("bus", "cleanup") and verb.startswith(("delete", "change.cleanup", "change.event")):
            pytest.fail(f"admin has {name}")


def test_ensure_roles_again_changes_nothing_and_keeps_what_was_added():
    ensure_roles()
    extra = Permission.objects.get(codename="add_logentry")
    Group.objects.get(name="viewer").permissions.add(extra)
    before = {role: granted(role) for role in ROLES}
    permissions = Permission.objects.count()
    ensure_roles()
    assert {role: granted(role) for role in ROLES} == before
    assert Permission.objects.count() == permissions


def test_the_role_admin_is_no_way_to_become_a_superuser():
    boss = people()["admin"]
    root = User.objects.create_superuser("root")
    client = Client()
    client.force_login(boss)
    own = reverse("admin:auth_user_change", args=[boss.pk])
    form = {"username": "admin", "is_active": "on", "is_staff": "on", "is_superuser": "on"}
    client.post(own, {**form, "groups": [Group.objects.get(name="admin").pk]})
    boss.refresh_from_db()
    assert not boss.is_superuser
    for name in ("auth_user_change", "auth_user_delete", "auth_user_password_change"):
        reply = client.post(reverse(f"admin:{name}", args=[root.pk]), {"password1": "x", "password2": "x"})
        assert reply.status_code == 403, name


def test_the_form_of_a_role_lists_what_roles_are_made_of_and_saving_it_unchanged_changes_nothing():
    ensure_roles()
    extra = Permission.objects.get(codename="add_logentry")
    operator = Group.objects.get(name="operator")
    operator.permissions.add(extra)
    before = {role: granted(role) for role in ROLES}
    choices = {key.value: label for _, rows in PermissionField().choices for key, label in rows}
    held = set(Permission.objects.filter(group__isnull=False).values_list("pk", flat=True))
    assert set(choices) >= held
    assert choices[Permission.objects.get(codename="disconnect_agent").pk] == "Disconnect"
    assert Permission.objects.get(codename="change_auditentry").pk not in choices
    client = Client()
    client.force_login(people()["admin"])
    form = {"name": "operator", "permissions": [row.pk for row in operator.permissions.all()]}
    reply = client.post(reverse("admin:auth_group_change", args=[operator.pk]), form)
    assert reply.status_code == 302
    assert {role: granted(role) for role in ROLES} == before
