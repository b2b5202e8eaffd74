"""Rights in the console: keys are changed, tokens are taken back, and only an admin may."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from bus.access import revocation
from bus.access.keys import check_api_key, create_api_key
from bus.models import ApiKey, TokenRevocation
from xnai_site.roles import ensure_roles

pytestmark = [pytest.mark.django_db, pytest.mark.sqlite_only]


def client_of(role: str) -> Client:
    person = User.objects.create(username=role, is_staff=True)
    person.groups.add(ensure_roles()[role])
    client = Client()
    client.force_login(person)
    return client


def do(client: Client, change: str, model: str, pk: int, **answers: str) -> str:
    """Confirm a change of one row; return the page that follows."""
    url = reverse(f"admin:bus_{model}_do", args=[change])
    return client.post(url, {"ids": str(pk), **answers}, follow=True).content.decode()


def test_an_admin_changes_the_rights_of_a_key() -> None:
    admin = client_of("admin")
    row, key = create_api_key("importer", scopes=["publish"])
    form = {"scopes": "publish:task", "topics": "task:*", "expires_at_0": "", "expires_at_1": ""}
    assert "Changed: importer." in do(admin, "change_rights", "apikey", row.pk, **form)
    identity = check_api_key(key).identity
    assert (identity.scopes, identity.topic_patterns) == (frozenset({"publish:task"}), ("task:*",))
    refused = do(admin, "change_rights", "apikey", row.pk, **{**form, "topics": "no pattern"})
    assert "not a pattern of topics" in refused
    assert ApiKey.objects.get().topics == ["task:*"]


def test_a_key_that_fits_nothing_is_refused_on_the_form() -> None:
    shown = client_of("admin").post(reverse("admin:bus_apikey_add"), {"name": "k", "agent_id": "a b"})
    assert "not an agent id" in shown.content.decode()
    assert not ApiKey.objects.exists()


def test_an_admin_takes_tokens_back_and_accepts_them_again() -> None:
    admin = client_of("admin")
    added = reverse("admin:bus_tokenrevocation_add")
    both = admin.post(added, {"user_id": "42", "agent_id": "a7"})
    assert "Name one: a token, a user or an agent." in both.content.decode()
    admin.post(added, {"user_id": "42", "note": "lost a laptop"})
    row = TokenRevocation.objects.get()
    assert (row.user_id, row.note) == ("42", "lost a laptop")
    assert "42" in revocation.current().users
    page = admin.get(reverse("admin:bus_tokenrevocation_changelist")).content.decode()
    assert "all of this user until then" in page
    assert "Accepted again: 42." in do(admin, "accept", "tokenrevocation", row.pk)
    assert revocation.current().users == {}


@pytest.mark.parametrize("role", ["viewer", "operator"])
def test_nobody_else_takes_tokens_back(role: str) -> None:
    row = revocation.revoke(user_id="43")
    client = client_of(role)
    do(client, "accept", "tokenrevocation", row.pk)
    assert client.post(reverse("admin:bus_tokenrevocation_add"), {"user_id": "42"}).status_code == 403
    assert client.get(reverse("admin:bus_tokenrevocation_changelist")).status_code == 200
    assert TokenRevocation.objects.get() == row
