"""What the screens of the console are called, and what a list says that has nothing to show."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import pytest
from django.contrib import admin
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from bus import cells
from bus.console import ConsoleAdmin
from cleanup.models import AuditEntry, CleanupRun, Hold, OrphanBatch
from tests.integration import console_rows as given
from xnai_site.console import PLACES

pytestmark = [pytest.mark.django_db, pytest.mark.sqlite_only]

PAGES = [page for page in admin.site._registry.values() if isinstance(page, ConsoleAdmin)]


@pytest.fixture
def client() -> Client:
    found = Client()
    found.force_login(User.objects.create_superuser("root"))
    return found


def shown(client: Client, name: str, *key: object, query: str = "") -> str:
    reply = client.get(reverse(f"admin:{name}", args=key) + query)
    assert reply.status_code == 200
    return " ".join(reply.content.decode().split())


def title(page: str) -> str:
    return unescape(re.search(r"<title>(.*?)</title>", page)[1]).strip()


@pytest.mark.parametrize("label", PLACES)
def test_a_list_is_called_on_its_tab_what_the_menu_calls_it(client: Client, label: str) -> None:
    name = f"{label.replace('.', '_')}_changelist"
    called = [words for words, _ in PLACES[label].lists]
    assert title(shown(client, name)) == " | ".join([*reversed(called), "XNAi"])


def test_a_row_is_called_by_words_and_not_by_a_number(client: Client, tmp_path: Path) -> None:
    given.everything(tmp_path)
    run, hold, entry = (
        CleanupRun.objects.earliest("created_at"),
        Hold.objects.get(),
        AuditEntry.objects.earliest("seq"),
    )
    page = shown(client, "cleanup_cleanuprun_change", run.pk)
    assert re.fullmatch(r"old v1, \d{4}-\d\d-\d\d \d\d:\d\d UTC \| Runs & plans \| XNAi", title(page))
    assert title(shown(client, "cleanup_hold_change", hold.pk)) == "legal/** in staged | Holds | XNAi"
    assert title(shown(client, "cleanup_auditentry_change", entry.pk)) == "Entry 1: area added | Audit | XNAi"
    asking = shown(client, "cleanup_hold_do", "release", query=f"?ids={hold.pk}")
    assert title(asking) == "Release | Holds | XNAi"
    assert "<li>legal/** in staged</li>" in asking


#: Not people, of whom there is always the one that looks, nor orphans, which have a page of another kind.
LISTS = [page for page in PAGES if page.model not in (User, OrphanBatch)]


def test_every_list_has_words_of_its_own_for_when_it_is_empty() -> None:
    assert [str(page) for page in LISTS if page.when_empty == ConsoleAdmin.when_empty] == []


@pytest.mark.parametrize("page", LISTS, ids=str)
def test_an_empty_list_says_why_and_what_to_do_next(client: Client, page: ConsoleAdmin) -> None:
    page.model._default_manager.all().delete()
    text = shown(client, f"{page.opts.app_label}_{page.opts.model_name}_changelist")
    assert f"<p>{cells.with_code(page.when_empty)}</p>" in text
    if page.when_empty_see:
        words, address = page.when_empty_see
        assert f'<a class="x-button" href="{reverse(address)}">{words}</a>' in text
    assert "No results" not in text


def test_a_list_says_when_a_search_or_a_filter_is_in_the_way(client: Client) -> None:
    found = shown(client, "cleanup_cleanupitem_changelist", query="?q=nowhere")
    assert "The search for <strong>nowhere</strong> finds nothing." in found
    assert '<a class="x-button" href="?">Show all</a>' in found
    found = shown(client, "cleanup_cleanuprun_changelist", query="?state__exact=done")
    assert "Filters are on, and nothing here passes them." in found


def test_what_asks_for_the_icon_of_the_site_gets_it(client: Client) -> None:
    assert re.search(r"/bus/mark(\.\w+)?\.svg$", Client().get("/favicon.ico")["Location"])
