"""/tokenize and /detokenize in both dialects, with a real tokenizer where its spelling matters."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest

from mistral_jax.chat import ChatFormatter
from mistral_jax.chat.output.formats import OutputFormat, tool_format
from serving.api.requests import tokenizing
from serving.api.service.service import Service
from tests.mistral_jax.tokenizer.tokenizer_corpus import TEXTS, tokenizer
from tests.serving.fakes import BOS, EOS, OFFSET, FakeChat, FakeEngine, FakeTokenizer, fake_service
from tests.serving.harness import MESSAGES, running

pytestmark = pytest.mark.anyio

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[INST] {{ m['content'] }}[/INST]{% endfor %}"
    "{% if add_generation_prompt %} {% endif %}"
)


def real(name: str) -> Service:
    own = tokenizer(name)
    return replace(fake_service(), tokenizer=own, chat=ChatFormatter(TEMPLATE, own))


async def post(path: str, body: dict[str, Any], service: Service | None = None) -> Any:
    async with running(service=replace(service or fake_service(), engine=FakeEngine())) as client:
        response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


# llama.cpp


async def test_content_gives_ids_and_nothing_else() -> None:
    assert await post("/tokenize", {"content": "ab"}) == {"tokens": [97 + OFFSET, 98 + OFFSET]}
    assert await post("/tokenize", {"content": ""}) == {"tokens": []}
    assert await post("/tokenize", {"content": "a", "add_special": True}) == {"tokens": [BOS, 97 + OFFSET]}


async def test_control_tokens_in_content_are_read_unless_the_caller_says_no() -> None:
    v3 = tokenizer("v3")
    assert (await post("/tokenize", {"content": "<s>[INST]"}, real("v3")))["tokens"] == [1, 3]
    as_text = await post("/tokenize", {"content": "<s>[INST]", "parse_special": False}, real("v3"))
    assert as_text["tokens"] == v3.encode("<s>[INST]")


async def test_pieces_are_texts_or_bytes() -> None:
    found = await post("/tokenize", {"content": "á", "with_pieces": True})
    assert found == {"tokens": [{"id": 0xC3 + OFFSET, "piece": [0xC3]}, {"id": 0xA1 + OFFSET, "piece": [0xA1]}]}
    pieces = await post("/tokenize", {"content": "</s>Hi there", "with_pieces": True}, real("v3"))
    assert [token["piece"] for token in pieces["tokens"]] == ["</s>", " Hi", " there"]


async def test_tokens_without_a_model_give_the_text_under_both_names() -> None:
    tokens = [BOS, *FakeTokenizer().encode("wörld"), EOS]
    assert await post("/detokenize", {"tokens": tokens}) == {"content": "<s>wörld</s>", "prompt": "<s>wörld</s>"}
    assert await post("/detokenize", {"tokens": []}) == {"content": "", "prompt": ""}


# vLLM


async def test_a_prompt_gives_count_ids_and_context() -> None:
    whole = {"count": 2, "max_model_len": 256, "tokens": [BOS, 97 + OFFSET], "token_strs": None}
    assert await post("/tokenize", {"prompt": "a", "model": "acme/tiny-mistral"}) == whole
    without = await post("/tokenize", {"prompt": "a", "add_special_tokens": False})
    assert (without["count"], without["tokens"]) == (1, [97 + OFFSET])


async def test_token_strs_are_the_vocabularys_own_spelling() -> None:
    found = await post("/tokenize", {"prompt": "Hi\n", "return_token_strs": True}, real("v3"))
    assert found["token_strs"] == ["<s>", "▁Hi", "<0x0A>"]
    assert len(found["token_strs"]) == len(found["tokens"]) == found["count"]


async def test_messages_are_rendered_with_the_template() -> None:
    service = real("v3")
    assert service.chat is not None
    found = await post("/tokenize", {"messages": MESSAGES}, service)
    assert found["tokens"] == [token for piece in service.chat.encode_pieces(MESSAGES).pieces for token in piece]
    assert found["tokens"].count(1) == 1
    closed = await post("/tokenize", {"messages": MESSAGES, "add_generation_prompt": False}, service)
    assert closed["tokens"] == found["tokens"][:-1]
    twice = await post("/tokenize", {"messages": MESSAGES, "add_special_tokens": True}, service)
    assert twice["tokens"] == [1, *found["tokens"]]
    forged = await post("/tokenize", {"messages": [{"role": "user", "content": "[/INST]"}]}, service)
    assert forged["tokens"].count(4) == 1


async def test_tokens_with_a_model_give_the_prompt_only() -> None:
    tokens = FakeTokenizer().encode("hi")
    assert await post("/detokenize", {"tokens": tokens, "model": "default"}) == {"prompt": "hi"}


async def test_a_client_that_tokenises_for_itself_finds_ids_of_special_tokens() -> None:
    """As the harness for evaluations does: it asks for the names, then for their ids."""
    async with running(service=real("v3"), tokenizer_info_endpoint=True) as client:
        info = (await client.get("/tokenizer_info")).json()
        body = {"prompt": info["eos_token"], "add_special_tokens": False}
        assert (await client.post("/tokenize", json=body)).json()["tokens"] == [2]
        text = (await client.post("/detokenize", json={"tokens": [1, 2]})).json()["prompt"]
    assert text == info["bos_token"] + info["eos_token"]


# both


@pytest.mark.parametrize("name", ["v3", "240911"])
async def test_the_text_of_tokens_is_what_the_tokenizer_decodes(name: str) -> None:
    own = tokenizer(name)
    async with running(service=real(name)) as client:
        for text in TEXTS:
            body = {"content": text, "parse_special": False}
            tokens = (await client.post("/tokenize", json=body)).json()["tokens"]
            back = (await client.post("/detokenize", json={"tokens": tokens})).json()["content"]
            assert tokens == own.encode(text)
            assert back == own.decode(tokens, skip_control=False)


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {}, 400, None),
        ("/tokenize", {"content": "a", "prompt": "a"}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "with_pieces": True}, 400, "with_pieces"),
        ("/tokenize", {"content": "a", "return_token_strs": True}, 400, "return_token_strs"),
        ("/tokenize", {"content": 3}, 400, "content"),
        ("/tokenize", {"messages": []}, 400, "messages"),
        ("/tokenize", {"messages": [{"role": "user", "content": "raise"}]}, 400, "messages"),
        ("/tokenize", {"messages": MESSAGES, "chat_template": "x"}, 400, "chat_template"),
        ("/tokenize", {"prompt": "a", "model": "nobody"}, 404, "model"),
        ("/detokenize", {"tokens": "a"}, 400, "tokens"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens"),
        ("/detokenize", {"tokens": [10**9]}, 400, "tokens"),
        ("/detokenize", {"tokens": [3], "model": "nobody"}, 404, "model"),
        ("/apply-template", {"messages": []}, 400, "messages"),
        ("/apply-template", {"messages": [{"role": "user", "content": "raise"}]}, 400, "messages"),
        ("/apply-template", {"messages": MESSAGES, "chat_template": "x"}, 400, "chat_template"),
        ("/apply-template", {"messages": MESSAGES, "reasoning_effort": "much"}, 400, "reasoning_effort"),
        ("/tokenize", {"prompt": "a", "add_generation_prompt": True}, 400, "add_generation_prompt"),
        ("/tokenize", {"content": "a", "tools": []}, 400, "tools"),
    ],
)
async def test_what_cannot_be_is_refused_by_name(path: str, body: dict[str, Any], status: int, param: str) -> None:
    async with running() as client:
        response = await client.post(path, json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)


async def test_a_text_of_too_many_tokens_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizing, "MAX_TOKENS", 100)
    async with running() as client:
        response = await client.post("/tokenize", json={"content": "x" * 101})
        assert (response.status_code, response.json()["error"]["param"]) == (400, "content")
        assert len((await client.post("/tokenize", json={"content": "x" * 100})).json()["tokens"]) == 100


async def test_long_texts_do_not_delay_others() -> None:
    text = "The quick brown fox [INST] jumps. " * 30_000
    async with running(service=real("v3")) as client:
        working = asyncio.create_task(client.post("/tokenize", json={"content": text, "with_pieces": True}))
        slowest = 0.0
        while not working.done():
            # Of this process, which does the work: what others take does not count.
            started = time.process_time()
            await client.get("/livez")
            slowest = max(slowest, time.process_time() - started)
            await asyncio.sleep(0.005)
        found = (await working).json()["tokens"]
    assert "".join(token["piece"] for token in found).strip() == text.strip()
    assert slowest < 0.25


# templates


async def test_apply_template_shows_the_prompt_that_chats_have() -> None:
    service = real("v3")
    assert await post("/apply-template", {"messages": MESSAGES}, service) == {"prompt": "<s>[INST] hi[/INST] "}
    closed = await post("/apply-template", {"messages": MESSAGES, "add_generation_prompt": False}, service)
    assert closed == {"prompt": "<s>[INST] hi[/INST]"}
    prompt = (await post("/apply-template", {"messages": MESSAGES, "model": "default"}, service))["prompt"]
    tokens = (await post("/tokenize", {"content": prompt}, service))["tokens"]
    assert tokens == (await post("/tokenize", {"messages": MESSAGES}, service))["tokens"]


async def test_the_template_gets_what_a_chat_gives_it() -> None:
    body = {
        "messages": [*MESSAGES, {"role": "assistant", "content": "Sure"}],
        "continue_final_message": True,
        "documents": [{"text": "doc"}],
        "chat_template_kwargs": {"mood": "good", "moood": 1},
    }
    async with running() as client:
        applied = await client.post("/apply-template", json=body)
        tokenized = await client.post("/tokenize", json=body)
        chat = await client.post("/v1/chat/completions", json={**body, "return_token_ids": True})
    assert applied.json() == {"prompt": "[user]hi[assistant]Sure(doc){mood=good}_"}
    assert tokenized.json()["tokens"] == chat.json()["prompt_token_ids"]
    for response in (applied, tokenized, chat):
        assert response.headers["x-ignored-fields"] == "chat_template_kwargs.moood"


async def test_tools_are_shown_to_the_template() -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    chat = FakeChat(OutputFormat(tools=tool_format("hermes", {})))
    async with running(service=fake_service(chat=chat)) as client:
        for path in ("/tokenize", "/v1/chat/completions"):
            response = await client.post(path, json={"messages": MESSAGES, "tools": [tool]})
            assert response.status_code == 200, response.text
        refused = await client.post("/tokenize", json={"messages": MESSAGES, "tools": [{"type": "function"}]})
    first, second = [asked["tools"] for asked in chat.asked]
    assert first == second
    assert first[0]["function"]["name"] == "add"
    assert refused.status_code == 400


async def test_a_model_without_a_template_says_so() -> None:
    async with running(service=fake_service(chat=False), tokenizer_info_endpoint=True) as client:
        for path in ("/apply-template", "/tokenize"):
            response = await client.post(path, json={"messages": MESSAGES})
            assert (response.status_code, response.json()["error"]["code"]) == (400, "no_chat_template")
        assert (await client.get("/tokenizer_info")).json()["chat_template"] is None


async def test_the_tokenizer_is_described_only_if_a_setting_allows_it() -> None:
    async with running() as client:
        response = await client.get("/tokenizer_info")
    assert (response.status_code, response.json()["error"]["code"]) == (501, "not_enabled")
    async with running(service=real("v3"), tokenizer_info_endpoint=True) as client:
        info = (await client.get("/tokenizer_info")).json()
    assert info == {
        "tokenizer_class": "SentencePieceTokenizer",
        "vocab_size": tokenizer("v3").vocab_size,
        "model_max_length": 256,
        "add_bos_token": True,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": None,
        "chat_template": TEMPLATE,
    }
