"""GET /props and GET /slots: what llama.cpp's clients read, without the texts of others."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

import pytest

from serving.api.service.served_models import plain_models
from serving.engine.messages import EngineState
from tests.serving.fakes import CARD, FakeChat, FakeEngine, fake_service
from tests.serving.harness import CHAT, running

pytestmark = pytest.mark.anyio


async def test_props_tell_the_context_the_tokens_and_the_template() -> None:
    async with running(max_seqs=5) as client:
        props = (await client.get("/props")).json()
    assert (props["total_slots"], props["n_ctx"], props["n_vocab"]) == (5, 256, CARD.vocab_size)
    assert props["default_generation_settings"]["n_ctx"] == 256
    assert props["chat_template"] == FakeChat.template
    assert (props["bos_token"], props["eos_token"]) == ("b''", "b''")  # as the fake vocabulary writes both
    assert (props["model_alias"], props["build_info"]) == ("acme/tiny-mistral", "b1-fake")
    assert props["modalities"] == {"vision": False, "audio": False}
    assert props["endpoint_slots"] is False


async def test_props_have_the_settings_of_a_request_that_sets_nothing() -> None:
    async with running(max_tokens=7) as client:
        params = (await client.get("/props")).json()["default_generation_settings"]["params"]
    assert (params["temperature"], params["top_k"], params["top_p"]) == (0.25, 7, 1.0)
    assert (params["n_predict"], params["seed"], params["repeat_last_n"]) == (7, -1, 64)


async def test_props_show_no_paths_and_need_a_key() -> None:
    service = fake_service(models=replace(plain_models("mine"), base=replace(plain_models("mine").base, root="mine")))
    async with running(service=service, api_keys=("key",)) as client:
        assert (await client.get("/props")).status_code == 401
        response = await client.get("/props", headers={"X-Api-Key": "key"})
    assert response.json()["model_path"] == "mine"


async def test_props_of_a_model_without_a_template() -> None:
    async with running(service=fake_service(chat=False)) as client:
        assert (await client.get("/props")).json()["chat_template"] == ""


async def test_slots_are_off_by_default() -> None:
    async with running() as client:
        response = await client.get("/slots")
    assert (response.status_code, response.json()["error"]["code"]) == (501, "not_enabled")
    assert "--slots-endpoint" in response.json()["error"]["message"]


async def test_slots_show_what_runs_and_no_text() -> None:
    gate = threading.Event()
    engine = FakeEngine("secret reply", slots=2, gate=gate)
    async with running(engine, slots_endpoint=True) as client:
        idle = (await client.get("/slots")).json()
        assert [(slot["id"], slot["is_processing"]) for slot in idle] == [(0, False), (1, False)]
        assert (await client.get("/slots?fail_on_no_slot=1")).status_code == 200
        body = {"messages": [{"role": "user", "content": "my prompt"}], "stop": "my stop", "max_tokens": 5, "n": 2}
        asking = asyncio.create_task(client.post(CHAT, json=body))
        while engine.live < 2:
            await asyncio.sleep(0.001)
        response = await client.get("/slots")
        full = await client.get("/slots?fail_on_no_slot=1")
        gate.set()
        await asking
    slot = response.json()[0]
    assert slot["is_processing"] is True
    assert slot["n_prompt_tokens"] == slot["n_prompt_tokens_processed"] == 16
    assert slot["next_token"] == {"has_next_token": True, "n_remain": 5, "n_decoded": 0}
    assert slot["params"]["n_predict"] == 5
    assert "secret" not in response.text
    assert "my prompt" not in response.text
    assert "my stop" not in response.text
    assert (full.status_code, full.json()["error"]["code"]) == (503, "no_free_slot")


async def test_slots_of_a_model_that_loads_are_unavailable() -> None:
    async with running(FakeEngine(state=EngineState.LOADING), slots_endpoint=True) as client:
        assert (await client.get("/slots")).status_code == 503
        assert (await client.get("/props")).status_code == 200  # the model is described before its weights are there
