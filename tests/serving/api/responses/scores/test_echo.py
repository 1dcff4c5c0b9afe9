"""POST /v1/completions with an echoed prompt and its log-probabilities, as evaluation harnesses ask for them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import anyio
import msgspec
import pytest

from serving.api.errors import InvalidRequestError
from serving.api.responses.scores.echo import Echo, echo_prompts
from serving.api.responses.scores.legacy_logprobs import LegacyLogprobs
from serving.api.responses.scores.prompt_scores import MAX_SCORES, check_scores
from serving.api.service.asked import Prompt, Reported
from serving.engine.messages import Work
from tests.serving.fakes import CARD, OFFSET, FakeEngine, FakeTokenizer, prompt_logprob
from tests.serving.harness import CHAT, MESSAGES, TEXT, events_of, running, usage_of

pytestmark = pytest.mark.anyio


async def complete(engine: FakeEngine | None = None, *, server: dict[str, Any] | None = None, **body: Any) -> Any:
    async with running(engine, **(server or {})) as client:
        return await client.post(TEXT, json=body)


def ids(text: str) -> list[int]:
    return FakeTokenizer().encode(text)


async def test_the_prompts_tokens_come_before_the_answers() -> None:
    body = (await complete(FakeEngine("!ü"), prompt="ö🙂b", echo=True, logprobs=1, max_tokens=2)).json()
    [choice] = body["choices"]
    logprobs = choice["logprobs"]
    assert choice["text"] == "ö🙂b!�"
    assert {len(column) for column in logprobs.values()} == {1 + 7 + 2}
    assert logprobs["tokens"] == ["b''", *"��", *"����", "b", "!", "�"]
    assert logprobs["text_offset"] == [0, 0, 0, 1, 1, 1, 1, 2, 3, 4]
    assert logprobs["token_logprobs"] == [None, *(-float(token) for token in ids("ö🙂b")), -0.5, -0.5]
    assert logprobs["top_logprobs"][0] is None
    assert logprobs["top_logprobs"][-3] == {"A": -0.25, "b": -float(ids("b")[0])}
    assert body["usage"] == usage_of(8, 2)


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [("abc", ["abc"]), (["abc", "d"], ["abc", "d"]), ([100, 101], ["ab"]), ([[100], [101, 102]], ["a", "bc"])],
)
@pytest.mark.parametrize("n", [1, 2])
async def test_without_tokens_to_generate_only_the_prompt_is_scored(prompt: Any, texts: list[str], n: int) -> None:
    engine = FakeEngine()
    body = (await complete(engine, prompt=prompt, echo=True, logprobs=0, max_tokens=0, n=n, best_of=n)).json()
    assert [choice["text"] for choice in body["choices"]] == [text for text in texts for _ in range(n)]
    for request, choice in zip(engine.submitted, body["choices"], strict=True):
        first, *others = request.prompt
        assert choice["finish_reason"] == "length"
        assert choice["logprobs"]["token_logprobs"] == [None, *(-float(token) for token in others)]
        # The token itself alone.
        assert choice["logprobs"]["top_logprobs"] == [
            None,
            *({FakeTokenizer().decode([token]): -float(token)} for token in others),
        ]
        assert first in (1, 100, 101)
    assert body["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize("body", [{}, {"echo": True}, {"logprobs": 2}])
async def test_an_answer_of_no_tokens_is_empty(body: dict[str, Any]) -> None:
    engine = FakeEngine()
    answer = (await complete(engine, prompt="abc", max_tokens=0, **body)).json()
    [choice] = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("abc" if "echo" in body else "", "length")
    empty = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    assert choice["logprobs"] == (empty if "logprobs" in body else None)
    assert answer["usage"] == usage_of(4, 0)
    assert engine.submitted[0].work is not Work.SCORE


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_a_chat_answer_of_no_tokens_is_refused(field: str) -> None:
    async with running() as client:
        response = await client.post(CHAT, json={"messages": MESSAGES, field: 0})
    assert (response.status_code, response.json()["error"]["param"]) == (400, field)
    assert "expected at least 1" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        {"logprobs": 2},
        {"logprobs": 0, "max_tokens": 0},
        {"logprobs": 1, "max_tokens": 1, "n": 2},
        {"logprobs": 1, "prompt": [[100], [101, 102, 103, 104, 105]]},
        {"logprobs": 1, "prompt": "", "max_tokens": 0},
        {"max_tokens": 0},
    ],
)
async def test_streamed_equals_unstreamed(body: dict[str, Any]) -> None:
    request = {"prompt": ["one", "zwölf 🙂 long"], "echo": True, "seed": 5, **body}
    async with running(FakeEngine(" Hello, wörld! 🙂 ''")) as client:
        whole = (await client.post(TEXT, json=request)).json()
        stream = {"stream": True, "stream_options": {"include_usage": True}}
        chunks = events_of((await client.post(TEXT, json={**request, **stream})).text)
    assert chunks[-1]["usage"] == whole["usage"]
    for choice in whole["choices"]:
        own = [part for chunk in chunks for part in chunk["choices"] if part["index"] == choice["index"]]
        assert [part["finish_reason"] for part in own if part["finish_reason"]] == [choice["finish_reason"]]
        assert own[-1]["finish_reason"] == choice["finish_reason"]
        assert "".join(part["text"] for part in own) == choice["text"]
        told = [part["logprobs"] for part in own if part["logprobs"]]
        if "logprobs" in body:
            # The prompt comes first, with what is told of it.
            assert told[0]["token_logprobs"] == [None]
            assert own[0]["logprobs"] == told[0]
        for column in choice["logprobs"] or {}:
            assert [item for part in told for item in part[column]] == choice["logprobs"][column]


async def test_a_prompt_may_fill_the_context_where_nothing_is_generated() -> None:
    prompt = [100] * CARD.max_model_len
    whole = await complete(prompt=prompt, echo=True, logprobs=0, max_tokens=0)
    assert len(whole.json()["choices"][0]["logprobs"]["tokens"]) == CARD.max_model_len
    for body in ({"prompt": prompt, "max_tokens": 1}, {"prompt": [*prompt, 100], "max_tokens": 0}):
        response = await complete(echo=True, logprobs=0, **body)
        assert response.json()["error"]["code"] == "context_length_exceeded"


async def test_of_a_prompt_that_was_cut_the_tokens_that_are_left_are_told_where_they_are() -> None:
    text = "x" * 300 + "end"
    body = await complete(
        server={"truncate_sequence": True}, prompt=text, echo=True, logprobs=0, max_tokens=0, stream=False
    )
    [choice] = body.json()["choices"]
    assert choice["text"] == text
    # BOS and the last 255 characters.
    assert choice["logprobs"]["text_offset"] == [48, *range(48, 303)]


def test_more_scores_than_one_request_may_have_are_refused() -> None:
    prompts = [Prompt((1, *[100] * 999), "a" * 999)] * (MAX_SCORES // 21_000 + 1)
    echoed = Reported(prompt_logprobs=20, echoes_logprobs=True)
    check_scores(prompts[:-1], copies=1, reported=echoed)
    with pytest.raises(InvalidRequestError, match=rf"^logprobs: .*one request may ask for {MAX_SCORES}"):
        check_scores(prompts, copies=1, reported=echoed)
    # Objects take more room than lists.
    own = Reported(prompt_logprobs=20, own_prompt_logprobs=20)
    check_scores(prompts[: len(prompts) // 3], copies=1, reported=own)
    with pytest.raises(InvalidRequestError, match=r"^prompt_logprobs: "):
        check_scores(prompts[: len(prompts) // 3], copies=2, reported=own)
    check_scores(prompts, copies=100, reported=Reported())


class SpacedTokenizer(FakeTokenizer):
    """As sentencepiece vocabularies: a text begins with a space that is not part of it."""

    strips_leading_space = True

    def encode(self, text: str, *, at_start: bool = True) -> list[int]:
        return super().encode(" " * at_start + text)


@pytest.mark.parametrize(
    ("tokens", "text", "offsets"),
    [
        ((1, *SpacedTokenizer().encode("hé")), "hé", (0, 0, 0, 1, 1)),
        # Control tokens have no text of their own, wherever they are.
        ((1, 100, 2, 101), "ab", (0, 0, 1, 1)),
        # It ends inside a character.
        ((1, 100, 0xC3 + OFFSET), "a�", (0, 0, 1)),
        # The tokenizer made something else of the text: no place lies beyond it.
        ((1, 100, 101, 102), "a", (0, 0, 1, 1)),
    ],
)
async def test_places_of_tokens(tokens: tuple[int, ...], text: str, offsets: tuple[int, ...]) -> None:
    [echo] = await echo_prompts(
        SpacedTokenizer(), [Prompt(tokens, text)], logprobs=True, limiter=anyio.CapacityLimiter(1)
    )
    assert (echo.text, echo.first, echo.offsets) == (text, "b''", offsets)


def loglikelihood(choice: dict[str, Any], context: int) -> tuple[float, bool]:
    """As the best-known harness computes it: the last entry is the one token that it had to ask for."""
    logprobs: Sequence[float] = choice["logprobs"]["token_logprobs"][context:-1]
    likeliest = choice["logprobs"]["top_logprobs"][context:-1]
    return sum(logprobs), all(one == max(top.values()) for one, top in zip(logprobs, likeliest, strict=True))


async def test_what_an_evaluation_harness_sends() -> None:
    prompts = [[100, 101, 102], [103, 104, 105, 106, 107]]
    harness = {"temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True, "model": "default"}
    body = (await complete(FakeEngine("x"), prompt=prompts, **harness)).json()
    assert [loglikelihood(choice, 2) for choice in body["choices"]] == [(-102.0, False), (-318.0, False)]


def test_nothing_waits_long_while_the_largest_answer_is_put_together() -> None:
    """Twenty alternatives of 100,000 tokens, which come in chunks. Processor time: other programs may run meanwhile."""
    told = LegacyLogprobs(Echo("a" * 100_000, "a", tuple(range(100_000))), 20)
    part = [prompt_logprob(100, 20)] * 64
    longest = 0.0
    for _ in range(MAX_SCORES // 21 // 64):
        start = time.thread_time()
        told.prompt(part)
        longest = max(longest, time.thread_time() - start)
    start = time.thread_time()
    assert len(msgspec.json.encode(told.whole())) > 20_000_000
    assert time.thread_time() - start < 0.5
    assert longest < 0.2
