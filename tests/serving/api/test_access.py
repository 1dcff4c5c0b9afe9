"""API keys, allowed hosts and web origins: refused unless allowed, on every route."""

from __future__ import annotations

import pytest

from serving.api.access import allowed_names
from tests.serving.fakes import FakeEngine
from tests.serving.harness import CHAT, MESSAGES, URL, running

pytestmark = pytest.mark.anyio

BODY = {"messages": MESSAGES}


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer key-one"},
        {"Authorization": "bearer key-two"},
        {"X-Api-Key": "key-two"},
    ],
)
async def test_each_key_in_each_form_is_taken(headers: dict[str, str]) -> None:
    async with running(api_keys=("key-one", "key-two")) as client:
        assert (await client.post(CHAT, json=BODY, headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer key"},
        {"Authorization": "Bearer key-one2"},
        {"Authorization": "key-one"},
        {"Authorization": "Basic key-one"},
        {"X-Api-Key": "KEY-ONE"},
    ],
)
async def test_without_a_valid_key_nothing_is_served(headers: dict[str, str]) -> None:
    engine = FakeEngine()
    async with running(engine, api_keys=("key-one",)) as client:
        for path in ("/v1/models", "/v1/models/acme/tiny-mistral", "//v1/models", "/v1/models/", "/v1//models"):
            response = await client.get(URL + path, headers=headers)
            assert response.status_code == 401, path
            assert "tiny-mistral" not in response.text
        response = await client.post(CHAT, json=BODY, headers=headers)
    assert response.status_code == 401
    assert response.json()["error"]["type"] == "authentication_error"
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.headers["x-request-id"]
    assert engine.submitted == []


async def test_health_docs_and_index_are_public() -> None:
    async with running(api_keys=("key",)) as client:
        for path in ("/health", "/docs", "/openapi.json", "/", "/health/", "/docs?x=1", "/%64ocs"):
            assert (await client.get(path)).status_code == 200, path
        assert (await client.head("/health")).status_code == 200
        assert "tiny-mistral" not in (await client.get("/")).text


PATHS = (
    "/nope",
    "/v1",
    "/v1/models",
    "/v1/models/",
    "/health/x",
    "/healthy",
    "/docs/../v1/models",
    "/%2e/metrics",
    "/metrics",
)


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "ODD"])
async def test_without_a_key_every_address_and_method_is_answered_alike(method: str) -> None:
    """What there is, and what it takes, is told to those with a key only."""
    async with running(api_keys=("key",)) as client:
        paths = PATHS if method in ("GET", "HEAD") else (*PATHS, "/health", "/docs", "/", CHAT)
        responses = [await client.request(method, path) for path in paths]
        assert {response.status_code for response in responses} == {401}
        assert len({response.content for response in responses}) == 1
        assert all("allow" not in response.headers and response.headers["x-request-id"] for response in responses)
        keyed = await client.request(method, "/nope", headers={"X-Api-Key": "key"})
        assert keyed.status_code in (404, 405)


@pytest.mark.parametrize("path", ["/nope", "/health", "/v1/models", CHAT])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE", "OPTIONS"])
async def test_the_host_is_asked_before_anything_else(method: str, path: str) -> None:
    async with running(api_keys=("key",)) as client:
        for headers in ({"Host": "evil.example"}, {"Host": "evil.example", "X-Api-Key": "key"}):
            response = await client.request(method, path, headers=headers)
            assert response.status_code == 403
            assert response.headers["content-type"] == "application/json"


CROSS = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "empty"}


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},  # a page from a file, or in a frame with a sandbox
        {"Origin": "http://localhost:3000"},  # another server of this machine
        {"Origin": "http://localhost.evil.example:1234"},
        {"Origin": "file://"},
        {"Origin": "http://[::1"},
        {"Origin": "chrome-extension://abc"},
        CROSS,
        CROSS | {"Sec-Fetch-Site": "same-site"},
        CROSS | {"Origin": "https://evil.example"},
        {"Sec-Fetch-Site": "same-origin", "Origin": "https://evil.example"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},  # a form
    ],
)
async def test_pages_of_other_origins_can_make_a_browser_do_nothing_here(headers: dict[str, str]) -> None:
    engine = FakeEngine()
    async with running(engine) as client:
        for path in (CHAT, "/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
            response = await client.post(path, json=BODY, headers=headers)
            assert (response.status_code, response.json()["error"]["code"]) == (403, "origin_not_allowed"), path
            assert "--allowed-origin" in response.json()["error"]["message"]
            assert "access-control-allow-origin" not in response.headers
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
        assert (await client.options(CHAT, headers=headers | asked)).status_code == 403
    assert engine.submitted == []


@pytest.mark.parametrize(
    "headers",
    [
        {},  # curl and libraries
        {"Sec-Fetch-Mode": "cors"},  # fetch of Node.js
        {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"},  # an address that was typed
        {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors", "Origin": "http://localhost:1234"},
        {"Origin": "HTTP://LOCALHOST:1234"},
    ],
)
async def test_own_pages_and_clients_that_are_no_browsers_are_served(headers: dict[str, str]) -> None:
    async with running() as client:
        assert (await client.post(CHAT, json=BODY, headers=headers)).status_code == 200


async def test_own_pages_are_known_behind_a_proxy_and_without_a_port() -> None:
    async with running(allowed_hosts=("llm.example",)) as client:
        own = {"Host": "llm.example", "Origin": "https://llm.example", "Sec-Fetch-Site": "same-origin"}
        assert (await client.post(CHAT, json=BODY, headers=own)).status_code == 200
        assert (await client.post(CHAT, json=BODY, headers=own | {"Host": "llm.example:443"})).status_code == 200
        other = own | {"Origin": "https://llm.example:8443"}
        assert (await client.post(CHAT, json=BODY, headers=other)).status_code == 403


async def test_a_link_from_another_site_may_be_followed_and_not_framed() -> None:
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    async with running() as client:
        assert (await client.get("/docs", headers=link)).status_code == 200
        assert (await client.get("/docs", headers=link | {"Sec-Fetch-Dest": "iframe"})).status_code == 403
        image = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
        assert (await client.get("/metrics", headers=image)).status_code == 403


@pytest.mark.parametrize("allowed", ["https://chat.example", "*"])
async def test_allowed_origins_are_served_whatever_the_site(allowed: str) -> None:
    async with running(allowed_origins=(allowed,)) as client:
        headers = CROSS | {"Sec-Fetch-Mode": "cors", "Origin": "https://chat.example"}
        assert (await client.post(CHAT, json=BODY, headers=headers)).status_code == 200
        other = await client.post(CHAT, json=BODY, headers={"Origin": "null"})
        assert other.status_code == (200 if allowed == "*" else 403)


@pytest.mark.parametrize("host", ["localhost", "localhost:1234", "127.0.0.1:9", "[::1]:1234", "LOCALHOST"])
async def test_a_loopback_server_answers_to_its_own_names(host: str) -> None:
    async with running() as client:
        assert (await client.get("/v1/models", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:1234", "localhost.evil.example", "127.0.0.1.nip.io"])
async def test_a_rebound_name_is_refused(host: str) -> None:
    async with running() as client:
        for path in ("/v1/models", "/health", "/docs"):
            response = await client.get(path, headers={"Host": host})
            assert (response.status_code, response.json()["error"]["code"]) == (403, "host_not_allowed")


@pytest.mark.parametrize("host", ["localhost/v1", "localhost?x", "a b", "", "localhost:port", "[::1"])
async def test_malformed_hosts_are_refused(host: str) -> None:
    async with running(api_keys=("key",)) as client:
        response = await client.get("/v1/models", headers={"Host": host})
        assert response.status_code in (400, 403)
        assert response.json()["error"]["message"]


def test_which_names_are_allowed() -> None:
    assert allowed_names("0.0.0.0", ()) is None
    assert allowed_names("127.0.0.1", ("*",)) is None
    assert set(allowed_names("::1", ()) or ()) >= {"localhost", "[::1]"}
    assert allowed_names("0.0.0.0", ("llm.example",)) == ["llm.example", "0.0.0.0"]
    assert "box" not in (allowed_names("localhost", ()) or ())


async def test_an_allowed_host_is_named_by_a_setting() -> None:
    async with running(allowed_hosts=("llm.example",)) as client:
        assert (await client.get("/health", headers={"Host": "llm.example"})).status_code == 200
        assert (await client.get("/health", headers={"Host": "localhost"})).status_code == 403


async def test_no_origin_is_allowed_by_default() -> None:
    async with running() as client:
        response = await client.get("/v1/models", headers={"Origin": "https://evil.example"})
        assert response.status_code == 403
        assert not [name for name in response.headers if name.startswith("access-control")]


async def test_an_allowed_origin_can_call_and_read_errors() -> None:
    async with running(allowed_origins=("https://chat.example",), api_keys=("key",)) as client:
        origin = {"Origin": "https://chat.example"}
        asked = {
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization, content-type",
        }
        preflight = await client.options(CHAT, headers=origin | asked)
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == "https://chat.example"
        refused = await client.post(CHAT, json=BODY, headers=origin)
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://chat.example"
        assert "Origin" in refused.headers["vary"]
        assert "X-Request-Id" in refused.headers["access-control-expose-headers"]
        unasked = await client.options(CHAT, headers=origin)  # not a preflight
        assert unasked.status_code == 401
        other = await client.get("/health", headers={"Origin": "https://evil.example"})
        assert other.status_code == 403
        assert other.headers.get("access-control-allow-origin") != "https://evil.example"
