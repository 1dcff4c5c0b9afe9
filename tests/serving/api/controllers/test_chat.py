"""POST /v1/chat/completions without a stream."""

from __future__ import annotations

from typing import Any

import pytest

from serving.api.requests.sampling_request import derived_seed
from tests.serving.fakes import CARD, MODEL_ID, FakeEngine, fake_service, prompt_text
from tests.serving.harness import CHAT, MESSAGES, running, usage_of

pytestmark = pytest.mark.anyio


async def chat(engine: FakeEngine | None = None, *, server: dict[str, Any] | None = None, **body: Any) -> Any:
    async with running(engine, **(server or {})) as client:
        return await client.post(CHAT, json={"messages": MESSAGES, **body})


async def test_answer_has_openai_shape() -> None:
    body = (await chat(FakeEngine("Hi."))).json()
    assert body.pop("id").startswith("chatcmpl-")
    assert isinstance(body.pop("created"), int)
    assert body.pop("timings")["prompt_n"] == body["usage"]["prompt_tokens"]
    assert body == {
        "object": "chat.completion",
        "model": MODEL_ID,
        "system_fingerprint": "b1-fake",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hi.", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": usage_of(9, 4),
    }


@pytest.mark.parametrize("model", [None, "default", MODEL_ID])
async def test_model_may_be_the_id_an_alias_or_absent(model: str | None) -> None:
    assert (await chat(model=model)).status_code == 200


async def test_another_model_is_a_404_that_lists_what_is_served() -> None:
    response = await chat(model="gpt-4o")
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert MODEL_ID in error["message"]
    assert "default" in error["message"]


async def test_null_means_absent_for_every_optional_field() -> None:
    from serving.api.schemas import ChatCompletionRequest

    nulls = dict.fromkeys(name for name in ChatCompletionRequest.__struct_fields__ if name != "messages")
    refused = dict.fromkeys(("tools", "tool_choice", "response_format", "audio", "modalities", "functions", "user"))
    assert (await chat(**(nulls | refused))).status_code == 200


async def test_unknown_fields_are_accepted() -> None:
    assert (await chat(chat_id="abc", metadata={"a": "b"}, user="me", store=True, x={"y": [1]})).status_code == 200


async def test_sampling_parameters_arrive_and_model_defaults_fill_the_gaps() -> None:
    engine = FakeEngine()
    await chat(
        engine,
        top_p=0.5,
        min_p=0.1,
        repetition_penalty=1.5,
        presence_penalty=1,
        frequency_penalty=-1,
        logit_bias={"5": -100, "6": 2.5},
        seed=-7,
        stop=["a", "b"],
        max_tokens=3,
        ignore_eos=True,
    )
    params = engine.submitted[0].params
    assert (params.temperature, params.top_k) == (0.25, 7)  # from the model's own defaults
    assert (params.top_p, params.min_p, params.repetition_penalty) == (0.5, 0.1, 1.5)
    assert (params.presence_penalty, params.frequency_penalty) == (1, -1)
    assert params.logit_bias == {5: -100, 6: 2.5}
    assert (params.seed, params.stop, params.max_tokens, params.ignore_eos) == (-7, ("a", "b"), 3, True)


async def test_a_given_zero_wins_over_a_model_default() -> None:
    engine = FakeEngine()
    await chat(engine, temperature=0, top_k=-1)
    assert (engine.submitted[0].params.temperature, engine.submitted[0].params.top_k) == (0, 0)


async def test_max_completion_tokens_wins_over_max_tokens() -> None:
    body = (await chat(FakeEngine("abcdef"), max_tokens=5, max_completion_tokens=2)).json()
    assert body["choices"][0]["message"]["content"] == "ab"
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 2


async def test_tokens_are_capped_at_the_room_that_the_prompt_leaves() -> None:
    engine = FakeEngine()
    assert (await chat(engine, max_tokens=100_000)).status_code == 200
    assert (await chat(absent := FakeEngine())).status_code == 200
    limited = FakeEngine()
    await chat(limited, server={"max_tokens": 12})
    room = CARD.max_model_len - 9
    assert engine.submitted[0].params.max_tokens == absent.submitted[0].params.max_tokens == room
    assert limited.submitted[0].params.max_tokens == 12


@pytest.mark.parametrize("limit", [257, 3_000_000_000, 2**63, 10**40])
@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_a_limit_beyond_every_context_is_capped_too(field: str, limit: int) -> None:
    engine = FakeEngine()
    assert (await chat(engine, **{field: limit})).status_code == 200
    assert engine.submitted[0].params.max_tokens == CARD.max_model_len - 9


@pytest.mark.parametrize("top_k", [-1, CARD.vocab_size, 3_000_000_000, 10**40])
async def test_keeping_as_many_tokens_as_there_are_or_more_keeps_all(top_k: int) -> None:
    engine = FakeEngine()
    assert (await chat(engine, top_k=top_k)).status_code == 200
    assert engine.submitted[0].params.top_k == 0


@pytest.mark.parametrize(
    ("body", "field", "key"),
    [
        ({"logit_bias": {"4": 1, "5": None}}, "logit_bias", "['5']"),
        ({"logit_bias": {"x" * 500: "a"}}, "logit_bias", "['" + "x" * 50 + "']"),
        ({"adapters": {"poet": None}}, "adapters", "['poet']"),
        ({"messages": [{"role": "user", "tool_calls": [5]}]}, "messages[0].tool_calls[0]", ""),
    ],
)
async def test_a_wrong_value_in_a_map_names_the_map_and_the_key(body: dict[str, Any], field: str, key: str) -> None:
    response = await chat(**body)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "invalid_type", field)
    assert error["message"].startswith(f"{field}{key}: Expected ")


async def test_several_choices_have_their_own_seeds_and_their_own_text() -> None:
    engine = FakeEngine(lambda request: f"seed {request.params.seed}")
    body = (await chat(engine, n=3, seed=42)).json()
    texts = [choice["message"]["content"] for choice in body["choices"]]
    assert texts == [f"seed {derived_seed(42, index)}" for index in range(3)]
    assert texts[0] == "seed 42"
    assert len(set(texts)) == 3
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert body["usage"]["prompt_tokens"] == 9
    assert body["usage"]["completion_tokens"] == sum(len(text) + 1 for text in texts)


async def test_without_a_seed_every_choice_gets_a_random_one() -> None:
    engine = FakeEngine()
    await chat(engine, n=4)
    seeds = [request.params.seed for request in engine.submitted]
    assert len(set(seeds)) == 4
    assert all(seed is not None and 0 <= seed < 2**63 for seed in seeds)


async def test_stop_strings_of_any_number_and_form() -> None:
    for stop in ("wö", ["nothing", "wö"], [f"no {i}" for i in range(16)] + ["wö"]):
        choice = (await chat(stop=stop)).json()["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("Hello, ", "stop")


async def test_logprobs() -> None:
    choice = (await chat(FakeEngine("wö"), logprobs=True, top_logprobs=2)).json()["choices"][0]
    content = choice["logprobs"]["content"]
    assert b"".join(bytes(token["bytes"]) for token in content).decode() == choice["message"]["content"]
    assert [token["token"] for token in content] == ["w", "�", "�"]
    assert all(set(token) == {"token", "logprob", "bytes", "top_logprobs"} for token in content)
    assert content[0]["top_logprobs"] == [
        {"token": "A", "logprob": -1.0, "bytes": [65]},
        {"token": "B", "logprob": -2.0, "bytes": [66]},
    ]
    plain = (await chat(FakeEngine("x"), logprobs=True)).json()["choices"][0]["logprobs"]["content"]
    assert plain[0]["top_logprobs"] == []


async def test_messages_are_rendered_as_the_template_expects() -> None:
    engine = FakeEngine(prompt_text)
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None},
    ]
    body = (await chat(engine, messages=messages)).json()
    assert body["choices"][0]["message"]["content"] == "[system]be brief[user]one\ntwo[assistant]"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"seed": 2**63}, "seed"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"stop": ""}, "stop"),
        ({"logit_bias": {"259": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"a": 1, "²": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": "raise"}]}, "messages"),
        ({"max_tokens": "7"}, "max_tokens"),
        ({"messages": [{"role": 5}]}, "messages[0].role"),
    ],
)
async def test_wrong_values_are_refused_by_name(body: dict[str, Any], param: str) -> None:
    engine = FakeEngine()
    response = await chat(engine, **body)
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert error["message"].startswith(param.split(".")[0].split("[")[0])
    assert engine.submitted == []


async def test_a_prompt_that_does_not_fit_is_refused_with_its_size() -> None:
    messages = [{"role": "user", "content": "x" * 400}]
    response = await chat(messages=messages)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
    assert (error["n_prompt_tokens"], error["n_ctx"]) == (407, 256)
    # Clients know the error by these words, and take the numbers from them.
    told = error["message"]
    # Encoding ended where it was certain: there may be more.
    begins = "This model's maximum context length is 256 tokens. However, you requested at least 408 tokens"
    assert told.startswith(begins)
    assert "(at least 407 in the messages, " in told
    assert "Please reduce the length of the messages" in told


@pytest.mark.parametrize(("body", "kept"), [({}, 246), ({"max_tokens": 50}, 206), ({"max_tokens": 9999}, 128)])
async def test_truncation_cuts_from_the_left_and_keeps_bos(body: dict[str, Any], kept: int) -> None:
    engine = FakeEngine()
    messages = [{"role": "user", "content": "x" * 400 + "end"}]
    response = await chat(engine, server={"truncate_sequence": True}, messages=messages, **body)
    assert response.status_code == 200
    prompt = engine.submitted[0].prompt
    assert len(prompt) == kept == response.json()["usage"]["prompt_tokens"]
    assert prompt[0] == 1
    assert prompt_text(engine.submitted[0]).endswith("xend")


async def test_a_model_without_template_says_what_to_do() -> None:
    async with running(service=fake_service(chat=False)) as client:
        response = await client.post(CHAT, json={"messages": MESSAGES})
    assert response.status_code == 400
    assert "--chat-template" in response.json()["error"]["message"]


async def test_an_engine_error_is_a_500_without_paths_and_cancels_the_other_choices() -> None:
    engine = FakeEngine("long text", fail_after=2)
    response = await chat(engine, n=2)
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["code"]) == (500, "server_error", "generation_failed")
    assert "NaN" in error["message"]
    assert "/opt" not in response.text


async def test_the_servers_time_limit() -> None:
    engine = FakeEngine("slow", delay=0.2)
    response = await chat(engine, server={"request_timeout": 0.1})
    assert (response.status_code, response.json()["error"]["code"]) == (504, "request_timeout")
    assert response.headers["x-should-retry"] == "false"
    assert engine.cancelled
