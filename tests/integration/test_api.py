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
    with httpx.Client(base_url=f"{site.web[0].url}/api/", headers={"X-API-Key": key}, timeout=60) as client:
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
        httpx.post(f"{url}/publish", json={"channel": "a:1", "data": 1}, headers=headers, timeout=60),
        httpx.get(f"{url}/topics", headers=headers, timeout=60),
        httpx.get(f"{url}/topics/api:1/events", headers=headers, timeout=60),
        httpx.get(f"{url}/connections", headers=headers, timeout=60),
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
    answer = httpx.get(f"{site.web[0].url}/api/connections", headers={"X-API-Key": key}, timeout=60)
    assert (answer.status_code, answer.json()) == (200, [])


def test_the_documentation_comes_from_this_site_alone(http: httpx.Client) -> None:
    page = http.get("docs")
    assert page.status_code == 200
    assert "//cdn" not in page.text
    assert "https://" not in page.text
    schema = http.get("openapi.json").json()
    assert "/api/publish" in schema["paths"]
    for path in schema["paths"].values():
        for operation in path.values():
            for status, answer in operation["responses"].items():
                shown = answer["content"]["application/json"]
                assert {"example", "examples"} & shown.keys(), (operation["operationId"], status)
            assert operation["security"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ({"data": 1, "b64data": "MQ=="}, 107),
        ({"b64data": "not base64"}, 107),
        ({"b64data": "AAECAw=="}, 107),
        ({"data": 1, "tags": {"end": "completed"}}, 107),
        ({"data": 1, "skip_history": True}, 108),
        ({"data": 1, "delta": True}, 108),
        ({"data": 1, "version": 3}, 108),
        ({"data": 1, "version_epoch": "v"}, 108),
        ({"data": 1, "idempotency_key": "k" * 201}, 107),
        ({}, 107),
    ],
)
def test_a_field_that_cannot_be_honoured_is_refused(
    http: httpx.Client, words: dict[str, Any], code: int
) -> None:
    assert publish(http, channel="api:refused", **words)["error"]["code"] == code
    assert http.get("topics/api:refused/events").json()["last_offset"] == 0


def test_a_field_that_asks_for_nothing_is_no_offence(http: httpx.Client) -> None:
    idle = {"skip_history": False, "delta": False, "version": 0, "version_epoch": "", "idempotency_key": ""}
    assert publish(http, channel="api:idle", data=None, b64data="", **idle)["result"]["offset"] == 1


@pytest.mark.parametrize("words", [{"color": "red"}, {"delta": "yes"}, {"tags": {"a": 1}}, {"version": "1"}])
def test_a_field_that_does_not_exist_or_fit_is_400(http: httpx.Client, words: dict[str, Any]) -> None:
    answer = http.post("publish", json={"channel": "api:1", "data": 1, **words})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, 107)


def test_header_and_field_may_not_name_different_keys(http: httpx.Client) -> None:
    body = {"channel": "api:keys", "data": 1, "idempotency_key": "a"}
    assert http.post("publish", json=body, headers={"Idempotency-Key": "b"}).json()["error"]["code"] == 107
    assert http.post("publish", json=body, headers={"Idempotency-Key": "a"}).json()["result"]["offset"] == 1


def test_a_key_also_comes_as_authorization(site: Site, key: str) -> None:
    url = f"{site.web[0].url}/api/history"
    for kind in ("apikey", "ApiKey", "Bearer"):
        answer = httpx.post(
            url, json={"channel": "api:1"}, headers={"Authorization": f"{kind} {key}"}, timeout=60
        )
        assert answer.json()["result"]["publications"] == []


def test_a_batch_has_bounds_and_answers_what_it_can(http: httpx.Client) -> None:
    def batch(*commands: Any, **headers: str) -> httpx.Response:
        return http.post("batch", json={"commands": commands}, headers=headers)

    good = {"publish": {"channel": "api:batch", "data": 1}}
    mixed = [
        good,
        {"publish": {"channel": "api:batch"}},
        {"publish": 7},
        {"batch": {"commands": []}},
        {"block_user": {"user": "a"}},
        {"publish": {}, "history": {}},
        {"publish": {"channel": "api:batch", "data": 1, "x": 1}},
        good,
    ]
    replies = batch(*mixed).json()["replies"]
    told = [reply.get("error", {}).get("code") or reply["publish"]["offset"] for reply in replies]
    assert told == [1, 107, 107, 104, 108, 107, 107, 2]
    assert batch().json() == {"replies": []}
    assert batch(*[good] * 101).json()["error"]["code"] == 106
    assert batch(good, **{"Idempotency-Key": "k"}).json()["error"]["code"] == 107


def test_a_command_that_nobody_knows_is_404_with_104(site: Site, http: httpx.Client) -> None:
    answer = http.post("dance", json={})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, 104)
    assert httpx.post(f"{site.web[0].url}/api/dance", json={}, timeout=60).status_code == 401


def test_a_key_with_patterns_reaches_nothing_outside_of_them(site: Site) -> None:
    given = "scopes=['publish','manage:topics','manage:connections','read:connections'], topics=['api:*']"
    made = site.python(
        f"from bus.access.keys import create_api_key as make; print(make('narrow', {given})[1])"
    )
    with httpx.Client(base_url=f"{site.web[0].url}/api/", headers={"X-API-Key": made}, timeout=60) as narrow:
        for command, words in [
            ("publish", {"data": 1}),
            ("history", {}),
            ("history_remove", {}),
            ("presence", {}),
            ("unsubscribe", {"user": "a"}),
            ("subscribe", {"user": "a"}),
        ]:
            inside = narrow.post(command, json={"channel": "api:narrow", **words}).json()
            outside = narrow.post(command, json={"channel": "room:wide", **words}).json()
            assert "result" in inside, (command, inside)
            assert outside["error"]["code"] == 103, command
