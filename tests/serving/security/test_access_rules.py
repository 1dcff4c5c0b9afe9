"""Who may call what: keys, web pages, endpoints for development. More is in `tests.serving.api.test_access`."""

from __future__ import annotations

import ast
import hmac
import json
import re
from typing import Any

import pytest

import serving.api.access
from serving.api.endpoints import ENDPOINTS
from serving.settings.settings import Settings
from tests.serving.fakes import FakeEngine
from tests.serving.harness import CHAT, MESSAGES, URL, running
from tests.serving.security.server_code import modules

pytestmark = pytest.mark.anyio

BODY = {"messages": MESSAGES}
PRIVATE = [endpoint for endpoint in ENDPOINTS if not endpoint.public]


def concrete(path: str) -> str:
    return re.sub(r"\{\w+:\w+\}", "x", path)


async def test_auth_the_time_of_a_comparison_does_not_depend_on_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests of equal length are compared, each with every key, in constant time."""
    compared: list[tuple[bytes, bytes]] = []
    compare = hmac.compare_digest

    def counted(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return compare(a, b)

    monkeypatch.setattr(serving.api.access.hmac, "compare_digest", counted)
    keys = ("first", "second-key", "third" * 30)
    async with running(api_keys=keys) as client:
        for given in (*keys, "f", "firsu", "x" * 5000):
            compared.clear()
            await client.get("/v1/models", headers={"X-Api-Key": given})
            assert len(compared) == len(keys)
            assert {len(digest) for pair in compared for digest in pair} == {32}


def test_auth_keys_are_compared_in_one_place() -> None:
    """And nowhere with `==`."""
    for path, tree in modules().items():
        if path.startswith("serving/api/") and path != "serving/api/access.py":
            source = ast.unparse(tree)
            assert "authorization" not in source.lower(), path
            assert "api_keys" not in source, path


@pytest.mark.parametrize(
    "host", ["localhost/health?", "localhost#/health", "localhost/health", "localhost@x", "localhost:1/../health"]
)
async def test_auth_the_host_header_does_not_change_the_path(host: str) -> None:
    async with running(api_keys=("key",), allowed_hosts=("*",)) as client:
        response = await client.get("/v1/models", headers={"Host": host})
    assert response.status_code in (400, 401)
    assert "tiny-mistral" not in response.text


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/health/../v1/models",
            "/health%2f..%2fv1/models",
            "/health;/../v1/models",
            "/%2e%2e/v1/models",
            "/health/%2e%2e",
        ),
        *(
            "/v1%2fmodels",
            "/health?/v1/models",
            "//health/v1/models",
            "/v1/models%00",
            "/HEALTH",
            "/v1/models?path=/health",
        ),
    ],
)
async def test_auth_odd_spellings_of_paths_open_nothing(path: str) -> None:
    async with running(api_keys=("key",)) as client:
        response = await client.get(URL + path)
    assert "tiny-mistral" not in response.text
    assert response.status_code in (401, 404) or response.json().get("status") == "ok"


async def test_auth_other_names_of_headers_open_nothing() -> None:
    async with running(api_keys=("key",)) as client:
        for name in ("X-Forwarded-For", "X-Original-URL", "X-Rewrite-URL", "X-Forwarded-Host", "Api-Key", "Cookie"):
            for value in ("key", "127.0.0.1", "/health"):
                assert (await client.get("/v1/models", headers={name: value})).status_code == 401


@pytest.mark.parametrize("endpoint", PRIVATE, ids=lambda endpoint: endpoint.operation_id)
async def test_browser_attacks_no_page_of_another_site_reaches_an_endpoint(endpoint: Any) -> None:
    """Neither by a request that a browser sends without asking, nor after a preflight, nor by a name of its own."""
    engine = FakeEngine()
    content = json.dumps(endpoint.example).encode()
    path = concrete(endpoint.path)
    async with running(engine, slots_endpoint=True, tokenizer_info_endpoint=True) as client:

        async def status(headers: dict[str, str]) -> int:
            response = await client.request(endpoint.method, path, content=content, headers=headers)
            assert not [name for name in response.headers if name.startswith("access-control-allow")]
            return response.status_code

        assert await status({"Origin": "https://evil.example"}) == 403
        assert await status({"Origin": "null"}) == 403
        assert await status({"Host": "rebound.example:1234"}) == 403
        assert await status({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}) == 403
        preflight = {"Origin": "https://evil.example", "Access-Control-Request-Method": endpoint.method}
        refused = await client.options(path, headers=preflight)
        assert refused.status_code == 403
        assert "access-control-allow-origin" not in refused.headers
        if endpoint.request is not None:
            for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=a", ""):
                assert await status({"Content-Type": kind}) == 415
    assert engine.submitted == []


async def test_browser_attacks_pages_of_the_server_run_no_scripts_and_load_nothing() -> None:
    async with running() as client:
        page = await client.get("/docs")
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert "<script" not in page.text


def test_browser_attacks_the_server_listens_on_this_machine_only_by_default() -> None:
    assert Settings().host == "127.0.0.1"
    assert Settings().allowed_origins == ()


OF_DEVELOPMENT = (
    *("/collective_rpc", "/sleep", "/wake_up", "/is_sleeping", "/pause", "/resume", "/is_paused", "/scale_elastic_ep"),
    *("/reset_prefix_cache", "/reset_mm_cache", "/server_info", "/start_profile", "/stop_profile", "/debug", "/pprof"),
    *(
        "/invocations",
        "/abort_requests",
        "/abort_request",
        "/update_weights",
        "/update_weights_from_disk",
        "/flush_cache",
    ),
    *("/get_server_info", "/get_model_info", "/generate", "/init_weights_update_group", "/release_memory_occupation"),
    *("/shutdown", "/restart", "/admin", "/console", "/exec", "/eval", "/infill", "/slots/0", "/models/load", "/files"),
    *(
        "/schema",
        "/redoc",
        "/swagger",
        "/rapidoc",
        "/elements",
        "/schema/openapi.json",
        "/static",
        "/.env",
        "/.git/config",
    ),
    *(
        "/api/generate",
        "/api/pull",
        "/api/create",
        "/api/delete",
        "/inference/v1/generate",
        "/load_model",
        "/set_params",
    ),
)


async def test_dev_endpoints_there_are_none() -> None:
    async with running(slots_endpoint=True, tokenizer_info_endpoint=True) as client:
        for path in OF_DEVELOPMENT:
            for prefix in ("", "/v1"):
                for method in ("GET", "POST", "PUT", "DELETE"):
                    response = await client.request(method, prefix + path, json={})
                    assert response.status_code in (404, 405), (method, prefix + path)
        props = await client.post("/props", json={"chat_template": "x"})
        assert props.status_code == 405


async def test_dev_endpoints_those_that_show_more_are_off_by_default() -> None:
    async with running() as client:
        for path in ("/slots", "/tokenizer_info"):
            response = await client.get(path)
            assert (response.status_code, response.json()["error"]["code"]) == (501, "not_enabled")
        for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
            response = await client.post(path, json={"lora_name": "x"})
            assert (response.status_code, response.json()["error"]["code"]) == (403, "adapters_fixed")


async def test_dev_endpoints_no_debug_mode() -> None:
    async with running() as client:
        for path in ("/v1/models?debug=1", "/nope?debug=true", "/?trace=1"):
            assert "Traceback" not in (await client.get(path)).text
        assert (await client.request("TRACE", CHAT)).status_code == 405
