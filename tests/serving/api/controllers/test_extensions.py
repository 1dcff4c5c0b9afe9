"""Fields of other servers on both endpoints: scores of prompts, ids, ends, template variables, priorities."""

from __future__ import annotations

from typing import Any

import pytest

from serving.engine.messages import Event, Work
from tests.serving.fakes import CARD, EOS, OFFSET, FakeEngine, FakeTokenizer, prompt_text
from tests.serving.harness import CHAT, MESSAGES, TEXT, events_of, running

pytestmark = pytest.mark.anyio

BODIES = {CHAT: {"messages": MESSAGES}, TEXT: {"prompt": "hi"}}
both = pytest.mark.parametrize("path", [CHAT, TEXT])


async def post(
    path: str, engine: FakeEngine | None = None, *, server: dict[str, Any] | None = None, **body: Any
) -> Any:
    async with running(engine, **(server or {})) as client:
        return await client.post(path, json={**BODIES[path], **body})


def ids(text: str) -> list[int]:
    return FakeTokenizer().encode(text)


async def test_prompt_logprobs_of_a_chat_are_at_the_top_and_of_texts_in_each_choice() -> None:
    engine = FakeEngine("x")
    chat = (await post(CHAT, engine, prompt_logprobs=1, n=2)).json()
    text = (await post(TEXT, FakeEngine("x"), prompt=["ab", "c"], prompt_logprobs=0, n=2)).json()
    first, second, *others = chat["prompt_logprobs"]
    opening = ids("[")[0]
    assert first is None
    assert second == {
        str(opening): {"logprob": -float(opening), "rank": opening, "decoded_token": "["},
        str(OFFSET): {"logprob": -0.25, "rank": 1, "decoded_token": "A"},
    }
    assert len(others) == len("user]hi")
    assert "prompt_logprobs" not in chat["choices"][0]
    # One pass is enough.
    assert [request.work for request in engine.submitted] == [Work.SCORE, Work.GENERATE]
    told = [[list(entry or {}) for entry in choice["prompt_logprobs"]] for choice in text["choices"]]
    assert told == [[[], ["100"], ["101"]]] * 2 + [[[], ["102"]]] * 2
    assert chat["choices"][0]["logprobs"] is None


async def test_prompt_logprobs_beside_echoed_ones_and_those_of_the_completion() -> None:
    body = {"prompt": "ab", "echo": True, "logprobs": 1, "prompt_logprobs": 3, "max_tokens": 1}
    choice = (await post(TEXT, FakeEngine("x"), **body)).json()["choices"][0]
    assert choice["logprobs"]["tokens"] == ["b''", "a", "b", "x"]
    assert [len(entry or {}) for entry in choice["logprobs"]["top_logprobs"]] == [0, 2, 2, 2]
    assert [len(entry or {}) for entry in choice["prompt_logprobs"]] == [0, 4, 4]


@both
@pytest.mark.parametrize(
    "body", [{"prompt_logprobs": 21}, {"prompt_logprobs": -1}, {"prompt_logprobs": 0, "stream": True}]
)
async def test_prompt_logprobs_that_cannot_be_told(path: str, body: dict[str, Any]) -> None:
    response = await post(path, **body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "prompt_logprobs")


@both
async def test_token_ids_are_those_of_the_prompt_and_of_all_that_was_generated(path: str) -> None:
    generated = [*ids("aö"), EOS]
    asked = {"return_token_ids": True, "stop": ["zz"]}
    whole = (await post(path, FakeEngine("aö"), **asked)).json()
    prompt = [1, *ids("[user]hi" if path == CHAT else "hi")]
    [choice] = whole["choices"]
    assert choice["token_ids"] == generated
    assert (whole if path == CHAT else choice)["prompt_token_ids"] == prompt
    chunks = events_of((await post(path, FakeEngine("aö"), stream=True, **asked)).text)
    first, *others = chunks
    assert (first if path == CHAT else first["choices"][0])["prompt_token_ids"] == prompt
    assert not any("prompt_token_ids" in (chunk if path == CHAT else chunk["choices"][0]) for chunk in others)
    streamed = [token for chunk in chunks for part in chunk["choices"] for token in part.get("token_ids", [])]
    assert streamed == generated
    plain = (await post(path, FakeEngine("aö"))).json()
    assert "token_ids" not in plain["choices"][0]
    assert "prompt_token_ids" not in (plain if path == CHAT else plain["choices"][0])


async def test_tokens_are_named_by_their_ids() -> None:
    a = ids("a")[0]
    chat = (await post(CHAT, FakeEngine("a"), logprobs=True, top_logprobs=1, return_tokens_as_token_ids=True)).json()
    [token] = chat["choices"][0]["logprobs"]["content"]
    assert (token["token"], token["bytes"]) == (f"token_id:{a}", [97])
    assert token["top_logprobs"][0]["token"] == f"token_id:{OFFSET}"
    body = {"prompt": "a", "echo": True, "logprobs": 0, "return_tokens_as_token_ids": True, "prompt_logprobs": 0}
    choice = (await post(TEXT, FakeEngine("a"), **body)).json()["choices"][0]
    assert choice["logprobs"]["tokens"] == ["token_id:1", f"token_id:{a}", f"token_id:{a}"]
    assert choice["logprobs"]["top_logprobs"] == [None, {f"token_id:{a}": -float(a)}, {f"token_id:{a}": -0.5}]
    assert choice["logprobs"]["text_offset"] == [0, 0, 1]
    assert choice["prompt_logprobs"][1][str(a)]["decoded_token"] == "a"


@both
async def test_the_stop_string_is_told(path: str) -> None:
    whole = (await post(path, FakeEngine("one two"), stop="tw")).json()
    assert whole["choices"][0]["stop_reason"] == "tw"
    chunks = events_of((await post(path, FakeEngine("one two"), stop="tw", stream=True)).text)
    assert chunks[-1]["choices"][0]["stop_reason"] == "tw"
    assert "stop_reason" not in (await post(path, FakeEngine("one"))).json()["choices"][0]


@both
async def test_parameters_arrive(path: str) -> None:
    engine = FakeEngine()
    given = {
        "min_tokens": 2,
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "typical_p": 0.9,
        "top_n_sigma": 2.0,
        "xtc_probability": 0.5,
        "xtc_threshold": 0.2,
        "dry_multiplier": 0.8,
        "dry_base": 1.5,
        "dry_allowed_length": 3,
        "dry_penalty_last_n": 64,
    }
    lists = {"stop_token_ids": [9, 7, 9], "bad_words": ["ab"], "dry_sequence_breakers": ["\n"]}
    response = await post(path, engine, **given, **lists, allowed_token_ids=[8, 2], priority=-3)
    assert response.status_code == 200, response.text
    [request] = engine.submitted
    for name, value in given.items():
        assert getattr(request.params, name) == value
    assert (request.params.stop_token_ids, request.params.allowed_token_ids) == ((7, 9), (2, 8))
    rules = request.params.rules
    assert rules is not None
    assert (rules.ends, rules.breakers) == ((EOS, 7, 9), tuple(ids("\n")))
    assert set(rules.banned_sequences) == {tuple(ids("ab"))}
    assert request.priority == -3


@both
@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"stop_token_ids": [CARD.vocab_size]}, "stop_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"allowed_token_ids": [5] * (CARD.vocab_size + 1)}, "allowed_token_ids"),
        ({"allowed_token_ids": [EOS], "min_tokens": 1}, "allowed_token_ids"),
        ({"min_tokens": 3, "max_tokens": 2}, "min_tokens"),
        ({"bad_words": [""]}, "bad_words"),
        ({"bad_words": ["x" * 17]}, "bad_words"),
        ({"dry_multiplier": 1, "dry_sequence_breakers": ["ab"]}, "dry_sequence_breakers"),
        ({"dry_base": 0.5}, "dry_base"),
        ({"typical_p": 0}, "typical_p"),
        ({"samplers": ["top_p"], "top_p": 0.5}, "samplers"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": CARD.max_model_len + 1}, "truncate_prompt_tokens"),
        ({"priority": 2**31}, "priority"),
    ],
)
async def test_wrong_values_are_refused_by_name(path: str, body: dict[str, Any], param: str) -> None:
    engine = FakeEngine()
    response = await post(path, engine, **body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert engine.submitted == []


@both
async def test_a_prompt_keeps_its_last_tokens(path: str) -> None:
    text = "x" * 400 + "end"
    long = {"messages": [{"role": "user", "content": text}]} if path == CHAT else {"prompt": text}

    async def kept(**body: Any) -> tuple[int, ...]:
        engine = FakeEngine()
        response = await post(path, engine, **long, **body)
        [request] = engine.submitted
        assert response.json()["usage"]["prompt_tokens"] == len(request.prompt)
        return request.prompt

    assert await kept(truncate_prompt_tokens=5) == (1, *ids("xend"))
    assert await kept(truncate_prompt_tokens=1) == tuple(ids("d"))
    assert len(await kept(truncate_prompt_tokens=-1, max_tokens=50)) == CARD.max_model_len - 50
    # It keeps what was asked for, which leaves no room for a completion.
    refused = await post(path, **long, truncate_prompt_tokens=CARD.max_model_len)
    assert refused.json()["error"]["code"] == "context_length_exceeded"


async def test_what_the_template_is_given() -> None:
    talk = [*MESSAGES, {"role": "assistant", "content": "Well"}]
    told = {
        "[user]hi[assistant]Well": {},
        "[user]hi[assistant]Well|": {"add_generation_prompt": False},
        "[user]hi[assistant]Well_": {"continue_final_message": True},
        "[user]hi[assistant]Well(x){mood=good}": {
            "documents": [{"text": "x"}],
            "chat_template_kwargs": {"mood": "good"},
            "add_generation_prompt": True,
        },
    }
    for expected, body in told.items():
        engine = FakeEngine(prompt_text)
        response = await post(CHAT, engine, messages=talk, **body)
        assert response.json()["choices"][0]["message"]["content"] == expected
        # What continues a text keeps its space.
        assert engine.submitted[0].at_start is (not expected.endswith(("_", "|")))


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        *(
            ({"chat_template_kwargs": {name: 1}}, "chat_template_kwargs")
            for name in ("chat_template", "tokenize", "tools", "documents", "messages", "return_dict", "_x", "a b")
        ),
        *(
            ({"chat_template_kwargs": {name: True}}, "chat_template_kwargs")
            for name in ("add_generation_prompt", "continue_final_message", "bos_token", "range", "padding")
        ),
        ({"chat_template_kwargs": {"mood": "x" * 16_384}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"mood": [1] * 128}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"mood": [[[[[[[[1]]]]]]]]}}, "chat_template_kwargs"),
        ({"documents": ["x"]}, "documents[0]"),
    ],
)
async def test_what_a_template_is_not_given(body: dict[str, Any], param: str) -> None:
    engine = FakeEngine()
    response = await post(CHAT, engine, **body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert engine.submitted == []


async def test_variables_that_nothing_reads_are_reported_as_unknown_fields_are() -> None:
    body = {"chat_template_kwargs": {"mood": "x", "enable_thinking": False, "y\n": 1}}
    refused = await post(CHAT, **body)
    assert refused.status_code == 400
    body["chat_template_kwargs"].pop("y\n")
    response = await post(CHAT, tempreature=1, **body)
    assert response.status_code == 200
    told = "tempreature;nearest=temperature, chat_template_kwargs.enable_thinking"
    assert response.headers["x-ignored-fields"] == told
    strict = await post(CHAT, server={"strict_fields": True}, **body)
    assert strict.json()["error"]["param"] == "chat_template_kwargs.enable_thinking"


async def test_a_request_that_leaves_no_token_is_the_clients_fault() -> None:
    class Excluding(FakeEngine):
        def _step(self, live: Any) -> Any:
            del self._live[live.request.request_id]
            return [Event(request_id=live.request.request_id, finish_reason="error", error="no token", refused=True)]

    response = await post(CHAT, Excluding())
    assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_request_error")
