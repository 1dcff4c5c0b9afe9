"""POST /completion: llama.cpp's fields and shapes, whole and streamed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from mistral_jax.adapters.choice import BASE, AdapterChoice
from serving.api.service.served_models import ServedModels
from serving.engine.messages import Request
from tests.mistral_jax.tokenizer.tokenizer_corpus import tokenizer
from tests.serving.api.service.test_served_models import models
from tests.serving.fakes import BOS, CARD, EOS, OFFSET, FakeEngine, FakeTokenizer, fake_service
from tests.serving.harness import running

pytestmark = pytest.mark.anyio

A, B = 97 + OFFSET, 98 + OFFSET


async def ask(
    body: dict[str, Any], engine: FakeEngine | None = None, *, served: ServedModels | None = None, **settings: Any
) -> Any:
    async with running(service=fake_service(engine or FakeEngine("Hello"), models=served), **settings) as client:
        return await client.post("/completion", json=body)


async def submitted(body: dict[str, Any], **options: Any) -> list[Request]:
    engine = FakeEngine("ok")
    response = await ask({"prompt": "a", **body}, engine, **options)
    assert response.status_code == 200, response.text
    return engine.submitted


def events(text: str) -> list[dict[str, Any]]:
    blocks = text.split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") for block in blocks)
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


async def test_a_completion_has_llama_cpps_shape() -> None:
    body = (await ask({"prompt": "Once", "n_predict": 3, "seed": 7})).json()
    timings, settings = body.pop("timings"), body.pop("generation_settings")
    assert body == {
        "index": 0,
        "content": "Hel",
        "tokens": [],
        "id_slot": -1,
        "stop": True,
        "model": "acme/tiny-mistral",
        "tokens_predicted": 3,
        "tokens_evaluated": 5,
        "prompt": "<s>Once",
        "has_new_line": False,
        "truncated": False,
        "stop_type": "limit",
        "stopping_word": "",
        "tokens_cached": 7,
    }
    assert (timings["prompt_n"], timings["predicted_n"], timings["cache_n"]) == (5, 3, 0)
    assert (settings["n_predict"], settings["seed"], settings["temperature"], settings["top_k"]) == (3, 7, 0.25, 7)
    assert (settings["stream"], settings["stop"]) == (False, [])


@pytest.mark.parametrize(
    ("body", "content", "stop_type", "word"),
    [
        ({}, "Hello", "eos", ""),
        ({"n_predict": 2}, "He", "limit", ""),
        ({"stop": ["l", ""]}, "He", "word", "l"),
        ({"stop": "o"}, "Hell", "word", "o"),
        ({"n_predict": 0}, "", "limit", ""),
        ({"n_predict": -1}, "Hello", "eos", ""),
    ],
)
async def test_why_a_completion_ended(body: dict[str, Any], content: str, stop_type: str, word: str) -> None:
    whole = (await ask({"prompt": "a", **body})).json()
    assert (whole["content"], whole["stop_type"], whole["stopping_word"]) == (content, stop_type, word)


async def test_a_stream_has_parts_of_the_text_and_ends_with_the_rest() -> None:
    response = await ask({"prompt": "Once", "stream": True, "stop": ["o"]})
    assert response.headers["content-type"].startswith("text/event-stream")
    *parts, last = events(response.text)
    assert "".join(part["content"] for part in parts) == "Hell"
    assert [part["tokens"] for part in parts[:4]] == [[byte + OFFSET] for byte in b"Hell"]
    assert all((part["stop"], part["index"], part["tokens_evaluated"]) == (False, 0, 5) for part in parts)
    assert all(part.keys() == parts[0].keys() for part in parts)
    assert (last["stop"], last["content"], last["tokens"]) == (True, "", [])
    assert (last["stop_type"], last["stopping_word"]) == ("word", "o")
    assert last["tokens_predicted"] == 5
    assert last["timings"]["predicted_n"] == 5
    assert last["generation_settings"]["stream"] is True


async def test_streamed_equals_unstreamed() -> None:
    body = {"prompt": ["a", "bc"], "seed": 3, "n_probs": 2, "n_cmpl": 2, "return_tokens": True}
    whole = (await ask(body, FakeEngine("Hello, wörld! 🙂"))).json()
    streamed = events((await ask({**body, "stream": True}, FakeEngine("Hello, wörld! 🙂"))).text)
    assert [each["index"] for each in whole] == [0, 1, 2, 3]
    for each in whole:
        own = [part for part in streamed if part["index"] == each["index"]]
        assert "".join(part["content"] for part in own) == each["content"]
        assert [token for part in own for token in part["tokens"]] == each["tokens"]
        told = [entry for part in own for entry in part.get("completion_probabilities", [])]
        assert told == each["completion_probabilities"]
        for name in ("stop_type", "tokens_predicted", "tokens_evaluated", "prompt", "has_new_line"):
            assert own[-1][name] == each[name]


async def test_probabilities_have_the_requested_number_of_alternatives() -> None:
    whole = (await ask({"prompt": "a", "n_probs": 2, "n_predict": 1})).json()
    [entry] = whole["completion_probabilities"]
    assert (entry["id"], entry["token"], entry["bytes"], entry["logprob"]) == (72 + OFFSET, "H", [72], -0.5)
    assert [top["token"] for top in entry["top_logprobs"]] == ["A", "B"]
    assert set(entry["top_logprobs"][0]) == {"id", "token", "bytes", "logprob"}


async def test_ids_without_probabilities() -> None:
    whole = (await ask({"prompt": "a", "return_tokens": True})).json()
    assert whole["tokens"] == [*FakeTokenizer().encode("Hello"), EOS]
    assert "completion_probabilities" not in whole


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", [(BOS, A)]),
        ("<s>a", [(BOS, A)]),
        ("a</s>", [(BOS, A, 2)]),
        ("", [(BOS,)]),
        ([A, B], [(A, B)]),
        ([A, "b", B], [(A, B, B)]),
        (["a", B], [(BOS, A, B)]),
        (["a"], [(BOS, A)]),
        (["a", "b"], [(BOS, A), (BOS, B)]),
        ([[A], "b"], [(A,), (BOS, B)]),
        ([[A, "b"], ["a", B]], [(A, B), (BOS, A, B)]),
    ],
)
async def test_prompt_forms(prompt: Any, prompts: list[tuple[int, ...]]) -> None:
    assert [request.prompt for request in await submitted({"prompt": prompt})] == prompts


async def test_control_tokens_are_read_unless_the_request_says_no() -> None:
    v3 = tokenizer("v3")
    service = replace(fake_service(), tokenizer=v3, card=replace(CARD, vocab_size=v3.vocab_size))
    for parse, expected in ((None, [1, 3, *v3.encode("hi"), 4]), (False, [1, *v3.encode("[INST]hi[/INST]")])):
        engine = FakeEngine("ok")
        async with running(service=replace(service, engine=engine)) as client:
            body = {"prompt": "[INST]hi[/INST]", "parse_special": parse}
            assert (await client.post("/completion", json=body)).status_code == 200
        assert list(engine.submitted[0].prompt) == expected
        assert engine.submitted[0].at_start is False


async def test_sampling_parameters_arrive_under_our_names() -> None:
    [request] = await submitted(
        {
            "temperature": 0.5,
            "top_k": 3,
            "top_p": 0.5,
            "min_p": 0.25,
            "repeat_penalty": 1.5,
            "repeat_last_n": 64,
            "presence_penalty": 0.5,
            "frequency_penalty": -0.5,
            "seed": 9,
            "ignore_eos": True,
            "logit_bias": [[5, 1], ["ab", -0.5], [A, 0.25], [6, False]],
            "typical_p": 0.75,
            "top_n_sigma": 2,
            "xtc_probability": 0.5,
            "xtc_threshold": 0.25,
            "dry_multiplier": 1,
            "dry_base": 2,
            "dry_allowed_length": 3,
            "dry_penalty_last_n": 30,
            "dry_sequence_breakers": ["x"],
        }
    )
    params = request.params
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (0.5, 3, 0.5, 0.25)
    assert (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) == (1.5, 0.5, -0.5)
    assert (params.seed, params.ignore_eos) == (9, True)
    assert params.logit_bias == {5: 1.0, A: -0.25, B: -0.5, 6: -100.0}
    assert params.logprobs is None
    assert (params.typical_p, params.top_n_sigma) == (0.75, 2)
    assert (params.xtc_probability, params.xtc_threshold) == (0.5, 0.25)
    assert (params.dry_multiplier, params.dry_base, params.dry_allowed_length) == (1, 2, 3)
    assert (params.dry_penalty_last_n, params.dry_sequence_breakers) == (30, ("x",))


@pytest.mark.parametrize("seed", [-1, 2**32 - 1, None])
async def test_seeds_that_mean_a_random_one(seed: int | None) -> None:
    first, second = [(await submitted({"seed": seed}))[0].params.seed for _ in range(2)]
    assert first != second


async def test_a_bias_may_be_an_object_and_looking_back_on_nothing_turns_penalties_off() -> None:
    [request] = await submitted(
        {"logit_bias": {"5": 2, "a": False}, "repeat_last_n": 0, "repeat_penalty": 1.5, "presence_penalty": 1}
    )
    assert request.params.logit_bias == {5: 2.0, A: -100.0}
    assert (request.params.repetition_penalty, request.params.presence_penalty) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("body", "param", "told"),
    [
        ({"prompt": []}, "prompt", "empty list"),
        ({"prompt": [[A], B]}, "prompt", "cannot be mixed"),
        ({"prompt": [10**6]}, "prompt", "outside the vocabulary"),
        ({"prompt": "x" * 300}, "prompt", "maximum context length is 256"),
        ({"prompt": ["x" * 200, A, "x" * 100]}, "prompt", "maximum context length is 256"),
        ({"prompt": {"prompt_string": "a"}}, "prompt", "xpected"),
        ({"n_predict": -5}, "n_predict", "n_predict is -5"),
        ({"repeat_penalty": 0}, "repeat_penalty", "repeat_penalty is 0"),
        ({"n_probs": 21}, "n_probs", "n_probs is 21"),
        ({"n_probs": -1}, "n_probs", "n_probs is -1"),
        ({"n_cmpl": 0}, "n_cmpl", "n_cmpl is 0"),
        ({"repeat_last_n": 128, "repeat_penalty": 1.1}, "repeat_last_n", "--repeat-last-n"),
        ({"logit_bias": [[5, True]]}, "logit_bias", "true"),
        ({"logit_bias": [[10**6, 1]]}, "logit_bias", "1000000"),
        ({"logit_bias": [["x" * 5000, 1]]}, "logit_bias", "characters"),
        ({"samplers": ["temperature", "mirostat"]}, "samplers", "is not known"),
        ({"samplers": ["top_p", "temperature"], "top_p": 0.5}, "samplers", "in this order"),
        ({"grammar": "root ::= ("}, "grammar", "grammar"),
        ({"json_schema": {"type": "strange"}}, "json_schema", "json_schema"),
        ({"grammar": "root ::= [a-z]", "json_schema": {}}, "grammar", "both ask for a format"),
        ({"typical_p": 0}, "typical_p", "typical_p is 0"),
        ({"dry_multiplier": -1}, "dry_multiplier", "dry_multiplier is -1"),
        ({"grammar_lazy": True}, "grammar_lazy", "not supported"),
        ({"mirostat": 2}, "mirostat", "not supported"),
        ({"post_sampling_probs": True}, "post_sampling_probs", "not supported"),
    ],
)
async def test_what_the_server_cannot_do_is_refused_by_llama_cpps_name(
    body: dict[str, Any], param: str, told: str
) -> None:
    engine = FakeEngine()
    response = await ask({"prompt": "a", **body}, engine)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert told in error["message"]
    assert engine.submitted == []


@pytest.mark.parametrize(
    "body",
    [
        {"cache_prompt": True, "id_slot": 3, "n_keep": -1},
        {"mirostat": 0, "mirostat_tau": 5, "typical_p": 1.0, "dry_multiplier": 0, "xtc_probability": 0, "min_keep": 0},
        {"samplers": ["penalties", "temperature", "top_k", "top_p", "min_p"], "top_n_sigma": -1},
        {"samplers": ["penalties", "dry", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"], "temperature": 1},
        {"repeat_last_n": 128, "repeat_penalty": 1},
        {"grammar": "", "json_schema": None, "image_data": [], "t_max_predict_ms": 0, "lora": []},
    ],
)
async def test_what_has_no_effect_is_accepted(body: dict[str, Any]) -> None:
    response = await ask({"prompt": "a", **body})
    assert response.status_code == 200, response.text
    assert "x-ignored-fields" not in response.headers


async def test_fields_of_the_response_can_be_chosen() -> None:
    fields = ["content", "timings/predicted_n", "generation_settings/seed", "nothing", "content/x"]
    body = {"prompt": "a", "seed": 4, "response_fields": fields}
    expected = {"content": "Hello", "timings/predicted_n": 6, "generation_settings/seed": 4}
    assert (await ask(body)).json() == expected
    *_, last = events((await ask({**body, "stream": True})).text)
    assert last == {**expected, "content": ""}
    several = await ask({**body, "prompt": ["a", "b"]})
    assert several.json() == [expected, expected]


async def test_progress_and_times_in_a_stream() -> None:
    body = {"prompt": "x" * 40, "stream": True, "return_progress": True, "timings_per_token": True}
    parts = events((await ask(body)).text)
    told = [part["prompt_progress"]["processed"] for part in parts if "prompt_progress" in part]
    assert told == [16, 32, 40, 41]
    assert [part["timings"]["predicted_n"] for part in parts if part["content"]] == [1, 2, 3, 4, 5]


async def test_adapters_by_number() -> None:
    [request] = await submitted({"lora": [{"id": 1, "scale": 0.5}, {"id": 0, "scale": 0}]}, served=models())
    assert request.choice == AdapterChoice(weights=((1, 0.5),))
    assert request.adapters == ("cook",)
    [request] = await submitted({"lora": [{"id": 1, "scale": 0}]}, served=models())
    assert request.choice == BASE
    [request] = await submitted({}, served=models())
    assert request.choice.xlora


async def test_an_error_after_the_headers_is_the_last_event() -> None:
    response = await ask({"prompt": "a", "stream": True}, FakeEngine("long text", fail_after=2))
    assert events(response.text)[-1]["error"]["code"] == "generation_failed"
    assert "[DONE]" not in response.text


async def test_it_needs_a_key_as_all_others_do() -> None:
    assert (await ask({"prompt": "a"}, api_keys=("key",))).status_code == 401


async def test_the_plural_is_openais_shape() -> None:
    async with running(FakeEngine("ok")) as client:
        body = (await client.post("/completions", json={"prompt": "a"})).json()
    assert body["object"] == "text_completion"
