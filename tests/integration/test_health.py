"""What machines ask the site: alive, ready, all of it, the figures; and the content security policy."""

from __future__ import annotations

import asyncio

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth import get_user_model
from django.db import DatabaseError, connections
from django.test import AsyncClient, Client
from prometheus_client.parser import text_string_to_metric_families

from xnai_site import checkup, health

LOCAL = {"REMOTE_ADDR": "127.0.0.1"}
ELSEWHERE = {"REMOTE_ADDR": "203.0.113.7"}


@pytest.mark.parametrize("path", ["/healthz/live", "/healthz/ready", "/metrics"])
@pytest.mark.django_db
def test_machines_are_answered_under_any_host_name_and_without_tls(client: Client, settings, path: str):
    settings.ALLOWED_HOSTS = ["xnai.example"]
    settings.SECURE_SSL_REDIRECT = True
    assert client.get(path, headers={"host": "10.1.2.3:8000"}, **LOCAL).status_code == 200


def test_live_asks_nothing_of_the_database(client: Client):
    # Without the database mark any query would fail the test.
    assert client.get("/healthz/live").json() == {"status": "ok"}


@pytest.mark.django_db
def test_ready_when_database_and_migrations_are_there(client: Client):
    answer = client.get("/healthz/ready")
    assert (answer.status_code, answer.json()["missing"]) == (200, [])


@pytest.mark.django_db
def test_not_ready_while_a_migration_is_missing(client: Client, monkeypatch: pytest.MonkeyPatch):
    from django.db import connection
    from django.db.migrations.loader import MigrationLoader
    from django.db.migrations.recorder import MigrationRecorder

    monkeypatch.setattr(health, "_migrated", False)
    (newest,) = MigrationLoader(connection).graph.leaf_nodes("bus")
    MigrationRecorder(connection).record_unapplied(*newest)
    answer = client.get("/healthz/ready")
    assert (answer.status_code, answer.json()["missing"]) == (503, ["migrations"])
    assert checkup.migrations().mend == "Run `manage.py migrate`."


@pytest.mark.django_db
def test_not_ready_without_a_database_and_no_detail_is_told(client: Client, monkeypatch: pytest.MonkeyPatch):
    from django.db import connection

    def refuse(*_: object, **__: object) -> None:
        raise DatabaseError("password of the database: hunter2")

    with connection.execute_wrapper(refuse):
        answer = client.get("/healthz/ready")
    assert answer.status_code == 503
    assert "database" in answer.json()["missing"]
    assert b"hunter2" not in answer.content


@pytest.mark.django_db
def test_metrics_are_for_this_machine_alone_without_a_token(client: Client, settings):
    settings.METRICS_TOKEN = ""
    assert client.get("/metrics", **LOCAL).status_code == 200
    assert client.get("/metrics", **ELSEWHERE).status_code == 403


@pytest.mark.django_db
def test_a_proxied_request_is_not_from_this_machine(client: Client, settings):
    settings.METRICS_TOKEN = ""
    assert client.get("/metrics", headers={"x-forwarded-for": "127.0.0.1"}, **LOCAL).status_code == 403


@pytest.mark.django_db
def test_metrics_are_for_everybody_with_the_token_and_nobody_without(client: Client, settings):
    settings.METRICS_TOKEN = "a-token"
    with_token = {"authorization": "Bearer a-token"}
    assert client.get("/metrics", headers=with_token, **ELSEWHERE).status_code == 200
    assert client.get("/metrics", headers={"authorization": "Bearer another"}, **LOCAL).status_code == 403
    assert client.get("/metrics", **LOCAL).status_code == 403


@pytest.mark.django_db
def test_metrics_can_be_parsed_and_hold_the_figures_of_both_apps(client: Client, settings):
    settings.METRICS_TOKEN = ""
    text = client.get("/metrics", **LOCAL).content.decode()
    names = {family.name for family in text_string_to_metric_families(text)}
    assert {"active_websocket_connections", "staging_files_deleted"} <= names


@pytest.mark.django_db
def test_the_counters_of_all_processes_are_added_up(client: Client, settings, tmp_path):
    import subprocess
    import sys

    from tests.servers import environment

    count = "from prometheus_client import Counter; Counter('xnai_probe', 'x').inc(2)"
    for _ in range(2):
        variables = environment(PROMETHEUS_MULTIPROC_DIR=str(tmp_path))
        subprocess.run([sys.executable, "-c", count], env=variables, check=True)
    settings.METRICS_DIR = str(tmp_path)
    settings.METRICS_TOKEN = ""
    assert b"xnai_probe_total 4.0" in client.get("/metrics", **LOCAL).content


@pytest.mark.django_db
def test_the_full_report_is_for_staff(client: Client):
    assert client.get("/healthz/full", **ELSEWHERE).status_code == 403
    client.force_login(get_user_model().objects.create_user("visitor"))
    assert client.get("/healthz/full", **ELSEWHERE).status_code == 403


@pytest.mark.django_db
def test_the_full_report_names_every_check_and_what_to_do(client: Client):
    client.force_login(get_user_model().objects.create_superuser("chief"))
    answer = client.get("/healthz/full", **ELSEWHERE)
    findings = {entry["name"]: entry for entry in answer.json()["findings"]}
    assert {"database", "migrations", "redis", "worker", "beat", "staging", "disk"} <= set(findings)
    assert answer.status_code == 503  # no beat has ever run here
    assert findings["beat"]["state"] == "failed"
    assert "celery -A xnai_site beat" in findings["beat"]["mend"]
    assert findings["redis"]["state"] == "ok"


@pytest.mark.django_db(transaction=True)
async def test_probes_are_answered_under_asgi_too():
    client = AsyncClient()
    answers = await asyncio.gather(*(client.get(path) for path in ("/healthz/live", "/healthz/ready")))
    # Views ran in a thread of their own, whose connection would keep the test database from being dropped.
    await sync_to_async(connections.close_all)()
    assert [answer.status_code for answer in answers] == [200, 200]


@pytest.mark.django_db
def test_only_the_console_may_evaluate_expressions(client: Client):
    assert "'unsafe-eval'" in client.get("/admin/login/")["Content-Security-Policy"]
    elsewhere = client.get("/healthz/full", **ELSEWHERE)["Content-Security-Policy"]
    assert "'unsafe-eval'" not in elsewhere
    assert "script-src 'self'" in elsewhere


def test_a_password_in_an_error_is_not_shown():
    error = ConnectionError("cannot reach postgresql://xnai:hunter2@db/xnai\nmore")
    assert checkup.first_line(error) == "cannot reach postgresql://…@db/xnai"
