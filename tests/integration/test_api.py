"""The HTTP API over a real server: publishing in Centrifugo's shapes, and reading."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cent
import httpx
import pytest

from tests.harness import Site


@pytest.fixture(scope="module")
def key(site: Site) -> str:
    return site.api_key("publish", "publish:agent")


@pytest.fixture(scope="module")
def http(site: Site, key: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{site.web[0].url}/api/", headers={"X-API-Key": key}, timeout=10) as client:
        yield client


def publish(http: httpx.Client, **body: Any) -> dict[str, Any]:
    answer = http.post("publish", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_publish_is_answered_with_its_place(site: Site, http: httpx.Client) -> None:
    first = publish(http, channel="api:1", data={"first": 1})["result"]
    second = publish(http, channel="api:1", data={"second": 2})["result"]
    assert (first["offset"], second["offset"]) == (1, 2)
    assert first["epoch"] == second["epoch"]
    (payload,) = site.sql("SELECT payload FROM bus_event WHERE payload LIKE %s", '%"second"%')
    assert payload == ('{"second":2}',)


@pytest.mark.parametrize("where", ["header", "body"])
def test_a_publish_with_a_key_has_one_effect(http: httpx.Client, where: str) -> None:
    body: dict[str, Any] = {"channel": f"api:once-{where}", "data": 1}
    headers = {"Idempotency-Key": "k1"} if where == "header" else {}
    body |= {} if where == "header" else {"idempotency_key": "k1"}
    places = [http.post("publish", json=body, headers=headers).json()["result"] for _ in range(3)]
    assert [place["offset"] for place in places] == [1, 1, 1]


def test_the_stock_server_sdk_publishes(site: Site, key: str) -> None:
    client = cent.Client(f"{site.web[0].url}/api", key)
    result = client.publish(cent.PublishRequest(channel="api:cent", data={"x": 1}, tags={"kind": "test"}))
    assert result.offset == 1
    with pytest.raises(cent.CentApiResponseError) as refusal:
        client.publish(cent.PublishRequest(channel="cleanup:audit", data={}))
    assert refusal.value.code == 103


def test_what_the_bus_refuses_is_an_error_with_its_code(http: httpx.Client) -> None:
    assert publish(http, channel="not a topic", data=1)["error"]["code"] == 107
    assert publish(http, channel="cleanup:audit", data=1)["error"] == {
        "code": 103,
        "message": "permission denied",
    }


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "[]",
        '{"channel":"a:1"',
        '{"data":1}',
        '{"channel":7,"data":1}',
        '{"channel":"a:1","data":NaN}',
        '{"channel":"a:1","data":1,"data":2}',
        '{"channel":"a:1","data":"\\ud800"}',
        "[" * 2_000,
    ],
)
def test_a_malformed_body_is_400_with_a_reason(http: httpx.Client, body: str) -> None:
    answer = http.post("publish", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"] == 107


@pytest.mark.parametrize(
    "headers", [{}, {"X-API-Key": "xk_nonsense_x"}, {"X-API-Key": ""}, {"Cookie": "sessionid=x"}]
)
def test_nobody_publishes_or_reads_without_a_key(site: Site, headers: dict[str, str]) -> None:
    url = f"{site.web[0].url}/api"
    for answer in (
        httpx.post(f"{url}/publish", json={"channel": "a:1", "data": 1}, headers=headers),
        httpx.get(f"{url}/topics", headers=headers),
        httpx.get(f"{url}/topics/api:1/events", headers=headers),
        httpx.get(f"{url}/connections", headers=headers),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, 101)


def test_topics_and_events_can_be_read(http: httpx.Client) -> None:
    for number in range(1, 6):
        publish(http, channel="api:read", data={"n": number})
    listed = {topic["topic"]: topic for topic in http.get("topics", params={"limit": 1000}).json()}
    assert listed["api:read"]["last_offset"] == 5
    assert not any(name.startswith("cleanup:") for name in listed)
    newest = http.get("topics/api:read/events", params={"limit": 2}).json()
    assert [event["offset"] for event in newest["events"]] == [4, 5]
    later = http.get("topics/api:read/events", params={"since": 3}).json()
    assert [event["data"] for event in later["events"]] == [{"n": 4}, {"n": 5}]
    wrong = http.get("topics/api:read/events", params={"since": 3, "epoch": "another"})
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, 112)
    assert http.get("topics/cleanup:audit/events").status_code == 403


def test_connections_are_for_staff_and_keys_that_may_see_them(site: Site, http: httpx.Client) -> None:
    assert http.get("connections").status_code == 403
    key = site.api_key("read:connections")
    answer = httpx.get(f"{site.web[0].url}/api/connections", headers={"X-API-Key": key})
    assert (answer.status_code, answer.json()) == (200, [])


def test_the_documentation_comes_from_this_site_alone(http: httpx.Client) -> None:
    page = http.get("docs")
    assert page.status_code == 200
    assert "//cdn" not in page.text
    assert "https://" not in page.text
    schema = http.get("openapi.json").json()
    assert "/api/publish" in schema["paths"]
