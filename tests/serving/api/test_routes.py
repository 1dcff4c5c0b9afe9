"""One endpoint, several spellings of its path: with and without /v1, with more slashes than needed."""

from __future__ import annotations

import logging
import re

import pytest

from serving.api.endpoints import ENDPOINTS
from tests.serving.fakes import FakeEngine
from tests.serving.harness import MESSAGES, URL, running

pytestmark = pytest.mark.anyio

SPELLINGS = ("/v1/models", "/models", "//v1/models", "/v1//models", "/v1/models/", "//models/")


@pytest.mark.parametrize("path", SPELLINGS)
async def test_each_spelling_of_a_path_is_the_same_endpoint(path: str) -> None:
    async with running() as client:
        assert (await client.get(URL + path)).json() == (await client.get("/v1/models")).json()


@pytest.mark.parametrize("path", ["/chat/completions", "//chat/completions", "/v1/chat/completions/"])
async def test_a_completion_from_each_spelling(path: str) -> None:
    engine = FakeEngine("Hello")
    async with running(engine) as client:
        response = await client.post(URL + path, json={"messages": MESSAGES})
    assert response.json()["choices"][0]["message"]["content"] == "Hello"
    assert len(engine.submitted) == 1


async def test_path_parameters_are_the_same_without_the_version() -> None:
    async with running() as client:
        assert (await client.get("/models/acme/tiny-mistral")).json()["id"] == "acme/tiny-mistral"
        assert (await client.get("/models/nobody")).status_code == 404


@pytest.mark.parametrize("path", ["/v2/models", "/v1/v1/models", "/V1/models", "/v1models", "/completions/"])
async def test_other_spellings_are_not_served(path: str) -> None:
    async with running() as client:
        assert (await client.get(path)).status_code in (404, 405)


async def test_every_spelling_of_every_path_needs_a_key_unless_the_endpoint_is_public() -> None:
    async with running(api_keys=("key",)) as client:
        for endpoint in ENDPOINTS:
            for path in endpoint.paths:
                concrete = re.sub(r"\{\w+:\w+\}", "acme", path)
                for spelt in (concrete, "/" + concrete, concrete + "/", concrete.replace("/", "//")):
                    status = (await client.request(endpoint.method, URL + spelt)).status_code
                    assert (status == 401) is not endpoint.public, spelt


async def test_no_two_endpoints_share_a_path_and_a_method() -> None:
    served = [(endpoint.method, path) for endpoint in ENDPOINTS for path in endpoint.paths]
    assert len(served) == len(set(served))


async def test_the_log_is_quiet_about_every_spelling_of_a_polled_path(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="mistral_jax.access")
    async with running() as client:
        for endpoint in ENDPOINTS:
            for path in endpoint.paths if endpoint.quiet else ():
                await client.get(path)
                await client.get(path + "/")
        assert caplog.records == []
        await client.get("/models")
        assert "/models 200" in caplog.text
