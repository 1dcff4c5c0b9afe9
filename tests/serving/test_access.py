"""API keys, allowed hosts and web origins: refused unless allowed, on every route."""

from __future__ import annotations

import pytest

from serving.access import allowed_names
from tests.serving.fakes import FakeEngine
from tests.serving.harness import CHAT, MESSAGES, running

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
            response = await client.get(path, headers=headers)
            assert response.status_code in (401, 404), path
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
        for path in ("/health", "/docs", "/openapi.json", "/"):
            assert (await client.get(path)).status_code == 200
        assert "tiny-mistral" not in (await client.get("/")).text
        assert (await client.options("/v1/models")).status_code == 204


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
        other = await client.get("/health", headers={"Origin": "https://evil.example"})
        assert other.headers.get("access-control-allow-origin") != "https://evil.example"
