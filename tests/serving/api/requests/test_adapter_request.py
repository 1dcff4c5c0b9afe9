"""What requests say of adapters, through the API, on an engine that is a fake: which choice arrives there, and what is
refused."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from mistral_jax.adapters.choice import BASE, AdapterChoice
from serving.api.service.served_models import ServedModels, plain_models, with_aliases
from serving.engine.messages import Request, WantedScalings
from tests.serving.api.service.test_served_models import info, models
from tests.serving.fakes import FakeEngine, fake_service
from tests.serving.harness import CHAT, MESSAGES, TEXT, running

pytestmark = pytest.mark.anyio

MIXED = AdapterChoice(xlora=True)


async def ask(body: dict[str, Any], served: ServedModels | None = None, **settings: Any) -> tuple[Any, list[Request]]:
    """The answer of /v1/chat/completions, and what the engine got."""
    engine = FakeEngine("ok")
    async with running(service=fake_service(engine, models=served or models()), **settings) as client:
        response = await client.post(CHAT, json={"messages": MESSAGES, **body})
    return response, engine.submitted


@pytest.mark.parametrize(
    ("body", "model", "choice", "keys"),
    [
        ({}, "lab/mixture", MIXED, ()),
        ({"model": "base"}, "lab/base", BASE, ()),
        ({"adapter": "base"}, "lab/base", BASE, ()),
        ({"adapter": "lab/base"}, "lab/base", BASE, ()),
        ({"model": "poet"}, "poet", AdapterChoice(weights=((0, 1.0),)), ("poet",)),
        ({"adapter": "cook"}, "cook", AdapterChoice(weights=((1, 1.0),)), ("cook",)),
        ({"model": "cook", "adapter": "cook"}, "cook", AdapterChoice(weights=((1, 1.0),)), ("cook",)),
        ({"model": "base", "adapter": "cook"}, "cook", AdapterChoice(weights=((1, 1.0),)), ("cook",)),
        ({"model": "cook", "adapters": {"cook": 1}}, "cook", AdapterChoice(weights=((1, 1.0),)), ("cook",)),
        (
            {"adapters": {"extra": -0.5, "poet": 2}},
            "lab/mixture",
            AdapterChoice(weights=((0, 2.0), (2, -0.5))),
            ("extra", "poet"),
        ),
        ({"model": "base", "adapters": {"poet": 0}}, "lab/base", AdapterChoice(weights=((0, 0.0),)), ("poet",)),
        ({"xlora": {}}, "lab/mixture", MIXED, ()),
        ({"xlora": {"non_granular_index": 4}}, "lab/mixture", AdapterChoice(xlora=True, freeze_after=4), ()),
        ({"adapter": None, "adapters": None, "xlora": None}, "lab/mixture", MIXED, ()),
    ],
)
async def test_what_is_asked_for_arrives(
    body: dict[str, Any], model: str, choice: AdapterChoice, keys: tuple[str, ...]
) -> None:
    response, requests = await ask(body)
    assert response.json()["model"] == model
    assert [(request.choice, request.adapters, request.scalings) for request in requests] == [(choice, keys, None)]


async def test_every_answer_of_a_call_uses_the_same_adapters() -> None:
    _, requests = await ask({"model": "poet", "n": 3})
    assert {request.choice for request in requests} == {AdapterChoice(weights=((0, 1.0),))}
    assert len(requests) == 3


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({}, (0, 1)),
        ({"model": "base"}, (0, 1)),
        ({"model": "cook"}, (0, 1)),
        ({"adapters": {"extra": 1, "poet": 1}}, (0, 1, 2)),
    ],
)
async def test_weights_are_told_of_the_experts_and_of_what_is_used_besides(
    body: dict[str, Any], told: tuple[int, ...]
) -> None:
    _, (request,) = await ask({**body, "xlora": {"scalings": "tokens"}})
    assert request.scalings == WantedScalings(detail="tokens", adapters=told)


async def test_the_servers_own_index_holds_where_a_request_says_nothing() -> None:
    _, (request,) = await ask({}, models(freeze_after=2))
    assert request.choice.freeze_after == 2
    _, (request,) = await ask({"xlora": {"non_granular_index": 5}}, models(freeze_after=2))
    assert request.choice.freeze_after == 5


ONLY_LORAS = models(mixture_id=None)
PLAIN = plain_models("lab/base")


@pytest.mark.parametrize(
    ("served", "body", "message"),
    [
        (PLAIN, {"adapter": "poet"}, "there is no adapter 'poet'; this server has no adapters"),
        (PLAIN, {"adapters": {"poet": 1}}, "1 weights; this server has no adapters"),
        (PLAIN, {"xlora": {"scalings": "summary"}}, "no X-LoRA mixture"),
        (ONLY_LORAS, {"xlora": {"scalings": "summary"}}, "no X-LoRA mixture"),
        (ONLY_LORAS, {"xlora": {"non_granular_index": 1}}, "no X-LoRA mixture is asked for"),
        (models(can_freeze=False), {"xlora": {"non_granular_index": 1}}, "--no-xlora-kv-cache"),
        (models(), {"xlora": {"non_granular_index": 257}}, "from 1 to 256"),
        (models(), {"adapter": "lab/mixture"}, "there is no adapter 'lab/mixture'; expected one of poet, cook, extra"),
        (models(), {"adapters": {"poet": float("1e99")}}, "from -100 to 100"),
        (models(), {"adapters": {"base": 1}}, "there is no adapter 'base'"),
        (
            models(base_id="demo", mixture_id=None, adapter_prefix="demo-", adapters=[info("a", 0), info("b", 1)]),
            {"adapters": {"a": 1, "demo-a": 1}},
            "'a' is given twice",
        ),
    ],
)
async def test_what_cannot_be_is_refused(served: ServedModels, body: dict[str, Any], message: str) -> None:
    response, requests = await ask(body, served)
    assert response.status_code == 400, response.text
    assert message in response.json()["error"]["message"]
    assert requests == []


async def test_adapters_of_a_server_without_a_folder_for_them_are_fixed() -> None:
    async with running(service=fake_service(models=models())) as client:
        for path in ("load", "unload"):
            response = await client.post(f"/v1/{path}_lora_adapter", json={"lora_name": "poet"})
            assert response.status_code == 403
            assert "--lora-folder" in response.json()["error"]["message"]
        listed = (await client.get("/v1/lora_adapters")).json()
    assert [adapter["name"] for adapter in listed["data"]] == ["poet", "cook", "extra"]


async def test_what_is_ready_is_named_by_what_answers(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mistral_jax"):
        async with running(service=fake_service(models=models())) as client:
            await client.get("/health")
            while not any("ready" in record.getMessage() for record in caplog.records):
                await asyncio.sleep(0.01)
    (line,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("ready: ")]
    assert line.startswith("ready: lab/mixture takes requests (and 4 more: GET /v1/models), after ")


async def test_models_are_listed_and_found_by_every_name() -> None:
    async with running(service=fake_service(models=models())) as client:
        listed = (await client.get("/v1/models")).json()["data"]
        assert [model["id"] for model in listed] == [
            "lab/mixture",
            "lab/base",
            "poet",
            "cook",
            "extra",
        ]  # the default first
        for model in listed:
            for name in (model["id"], *model["aliases"]):
                assert (await client.get(f"/v1/models/{name}")).json() == model
        missing = await client.get("/v1/models/nothing")
    assert missing.status_code == 404
    assert "lab/mixture (also known as default)" in missing.json()["error"]["message"]


async def test_metrics_count_answers_by_model_and_adapter() -> None:
    engine = FakeEngine("ok")
    engine.shares = (0.25, 0.75, 0.0)
    async with running(service=fake_service(engine, models=models())) as client:
        for body in ({}, {"model": "poet", "n": 2}, {"adapters": {"cook": 0.5}}, {"model": "base"}):
            assert (await client.post(TEXT, json={"prompt": "x", **body})).status_code == 200
        assert (await client.post(TEXT, json={"prompt": "x", "model": "nobody"})).status_code == 404
        lines = (await client.get("/metrics")).text.splitlines()
    assert {line for line in lines if line.startswith("mistral_jax_requests_total")} == {
        'mistral_jax_requests_total{adapter="mixture",model="lab/mixture"} 1.0',
        'mistral_jax_requests_total{adapter="poet",model="poet"} 2.0',
        'mistral_jax_requests_total{adapter="weights",model="lab/mixture"} 1.0',
        'mistral_jax_requests_total{adapter="",model="lab/base"} 1.0',
    }
    assert 'mistral_jax_adapter_share{adapter="cook"} 0.75' in lines
    assert not any("extra" in line for line in lines)
    assert "mistral_jax_ready 1.0" in lines


async def test_metrics_are_there_while_the_model_loads_and_need_a_key_like_the_rest() -> None:
    from serving.engine.messages import EngineState

    async with running(FakeEngine(state=EngineState.LOADING), api_keys=("secret",)) as client:
        assert (await client.get("/metrics")).status_code == 401
        text = (await client.get("/metrics", headers={"Authorization": "Bearer secret"})).text
    assert "mistral_jax_ready 0.0" in text.splitlines()


async def test_aliases_are_served_and_listed() -> None:
    served = with_aliases(models(), ["gpt-4o", "*"])
    for name in ("gpt-4o", "whatever/it-is"):
        response, requests = await ask({"model": name}, served)
        assert response.json()["model"] == "lab/mixture"
        assert requests[0].choice == MIXED
    async with running(service=fake_service(models=served)) as client:
        assert (await client.get("/v1/models")).json()["data"][0]["aliases"] == ["default", "gpt-4o", "*"]
        assert (await client.get("/v1/models/gpt-4o")).json()["id"] == "lab/mixture"
        assert (await client.get("/v1/models/what/ever")).json()["id"] == "lab/mixture"


@pytest.mark.parametrize(
    ("body", "choice"),
    [
        ({"lora": [{"id": 2, "scale": 1}]}, AdapterChoice(weights=((2, 1.0),))),
        ({"lora": [{"id": 2, "scale": -0.5}, {"id": 0, "scale": 2}]}, AdapterChoice(weights=((0, 2.0), (2, -0.5)))),
        ({"lora": []}, MIXED),
        ({"lora": [{"id": 0, "scale": 0}]}, BASE),
        ({"lora": [{"id": 0, "scale": 1}], "model": "poet"}, AdapterChoice(weights=((0, 1.0),))),
    ],
)
async def test_adapters_may_be_named_by_number(body: dict[str, Any], choice: AdapterChoice) -> None:
    response, requests = await ask(body)
    assert response.status_code == 200, response.text
    assert requests[0].choice == choice


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"lora": [{"id": 9, "scale": 1}]}, "there is no adapter 9; GET /lora-adapters lists 0, 1, 2"),
        ({"lora": [{"id": 0, "scale": 1}, {"id": 0, "scale": 2}]}, "'poet' is given twice"),
        ({"lora": [{"id": 0, "scale": 1e9}]}, "expected a number from -100 to 100"),
        ({"lora": [{"id": 0, "scale": 1}], "adapter": "poet"}, "not together"),
        ({"lora": [{"id": 0, "scale": 1}], "adapters": {"poet": 1}}, "not together"),
        ({"lora": [{"id": 1, "scale": 1}], "model": "poet"}, "model names an adapter already"),
        ({"lora": [{"id": 0}]}, "missing required field `scale`"),
    ],
)
async def test_numbers_that_cannot_be_are_refused(body: dict[str, Any], told: str) -> None:
    response, requests = await ask(body)
    assert response.status_code == 400
    assert told in response.json()["error"]["message"]
    assert requests == []
