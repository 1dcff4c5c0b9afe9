"""POST /v1/completions: the forms of a prompt, echo, several prompts, legacy log-probabilities."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from tests.serving.fakes import OFFSET, FakeEngine, FakeTokenizer, fake_service, prompt_text
from tests.serving.harness import TEXT, running, usage_of

pytestmark = pytest.mark.anyio


async def complete(engine: FakeEngine | None = None, *, server: dict[str, Any] | None = None, **body: Any) -> Any:
    async with running(engine, **(server or {})) as client:
        return await client.post(TEXT, json=body)


async def test_answer_has_openai_shape() -> None:
    body = (await complete(FakeEngine(" upon a time"), prompt="Once", max_tokens=5)).json()
    assert body.pop("id").startswith("cmpl-")
    assert isinstance(body.pop("created"), int)
    assert body.pop("timings")["prompt_n"] == body["usage"]["prompt_tokens"]
    assert body == {
        "object": "text_completion",
        "model": "acme/tiny-mistral",
        "system_fingerprint": "b1-fake",
        "choices": [{"index": 0, "text": " upon", "logprobs": None, "finish_reason": "length"}],
        "usage": usage_of(5, 5),
    }


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("hé", [(1, *(byte + OFFSET for byte in "hé".encode()))]),
        ("", [(1,)]),
        (["a", "b"], [(1, 100), (1, 101)]),
        ([5, 6, 7], [(5, 6, 7)]),
        ([[5, 6], [7]], [(5, 6), (7,)]),
    ],
)
async def test_prompt_forms(prompt: Any, prompts: list[tuple[int, ...]]) -> None:
    engine = FakeEngine()
    assert (await complete(engine, prompt=prompt)).status_code == 200
    assert [request.prompt for request in engine.submitted] == prompts


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "empty"),
        ([[]], "empty"),
        (["a", 1], "mixed"),
        ([[1], "a"], "mixed"),
        ([[1], 2], "mixed"),
        ([300], "outside the vocabulary"),
        ([-1], "outside the vocabulary"),
        ([1.5], "Expected"),
        (["a"] * 200, "200 prompts"),
        (None, "Expected"),
    ],
)
async def test_prompts_that_cannot_be_used(prompt: Any, message: str) -> None:
    response = await complete(prompt=prompt)
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]
    assert response.json()["error"]["param"].startswith("prompt")


async def test_a_missing_prompt_is_named() -> None:
    response = await complete()
    assert response.status_code == 400
    assert "`prompt`" in response.json()["error"]["message"]


async def test_choices_are_ordered_prompt_by_prompt() -> None:
    engine = FakeEngine(lambda request: f"{prompt_text(request)}{request.params.seed}")
    body = (await complete(engine, prompt=["a", "b"], n=2, seed=1)).json()
    texts = [choice["text"] for choice in body["choices"]]
    assert [text[0] for text in texts] == ["a", "a", "b", "b"]
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    # Each prompt gives what it would give alone: the same seeds for both.
    assert texts[0][1:] == texts[2][1:] == "1"
    assert texts[1][1:] == texts[3][1:] != "1"
    assert body["usage"]["prompt_tokens"] == 4


async def test_more_answers_than_can_ever_wait_are_refused_as_such() -> None:
    response = await complete(server={"max_queue": 4}, prompt=["a", "b", "c"], n=2)
    assert response.status_code == 400
    assert "--max-queue" in response.json()["error"]["message"]


@pytest.mark.parametrize(("prompt", "echoed"), [("Once", "Once"), ([100, 101], "ab"), (["x", "y"], "x")])
async def test_echo(prompt: Any, echoed: str) -> None:
    body = (await complete(FakeEngine("!"), prompt=prompt, echo=True)).json()
    assert body["choices"][0]["text"] == echoed + "!"


async def test_legacy_logprobs() -> None:
    choice = (await complete(FakeEngine("aö🙂b"), prompt="x", logprobs=2)).json()["choices"][0]
    logprobs = choice["logprobs"]
    assert set(logprobs) == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    assert len({len(column) for column in logprobs.values()}) == 1
    assert logprobs["tokens"] == ["a", *"��", *"����", "b"]
    assert logprobs["text_offset"] == [0, 1, 1, 2, 2, 2, 2, 3]
    assert all(a <= b for a, b in itertools.pairwise(logprobs["text_offset"]))
    assert logprobs["top_logprobs"][0] == {"A": -1.0, "B": -2.0, "a": -0.5}


async def test_zero_logprobs_tell_the_chosen_token_only() -> None:
    choice = (await complete(FakeEngine("ab"), prompt="x", logprobs=0)).json()["choices"][0]
    assert choice["logprobs"]["top_logprobs"] == [{"a": -0.5}, {"b": -0.5}]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"best_of": 9}, "best_of"),
        ({"best_of": 0}, "best_of"),
        ({"best_of": 2, "n": 3}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"suffix": "x", "echo": True}, "suffix"),
    ],
)
async def test_wrong_values_are_refused_by_name(body: dict[str, Any], param: str) -> None:
    response = await complete(prompt="a", **body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


async def test_best_of_n_is_let_through() -> None:
    assert (await complete(prompt="a", best_of=1)).status_code == 200
    assert (await complete(prompt="a", best_of=2, n=2, suffix="")).status_code == 200
    assert (await complete(prompt="a", best_of=1, stream=True)).status_code == 200


async def test_the_best_are_returned_with_the_best_first() -> None:
    """Question marks make a text less likely."""
    engine = FakeEngine(lambda request: prompt_text(request) + "?" * (3, 0, 2, 1)[int(request.request_id[-1]) % 4])
    answer = (await complete(engine, prompt=["a", "b"], best_of=4, n=2, max_tokens=9)).json()
    assert [choice["text"] for choice in answer["choices"]] == ["a", "a?", "b", "b?"]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["choices"][0]["logprobs"] is None
    # All that was generated counts: two prompts, each with texts of 4, 1, 3 and 2 bytes and an end.
    assert answer["usage"]["completion_tokens"] == 2 * (10 + 4)
    assert answer["usage"]["prompt_tokens"] == 4
    assert {request.params.logprobs for request in engine.submitted} == {0}


async def test_a_suffix_makes_a_prompt_of_both_texts() -> None:
    class Coder(FakeTokenizer):
        control_tokens = {**FakeTokenizer.control_tokens, "[SUFFIX]": 1, "[PREFIX]": 2}  # noqa: RUF012

    engine = FakeEngine("x")
    service = replace(fake_service(engine), tokenizer=Coder())
    async with running(service=service) as client:
        response = await client.post(TEXT, json={"prompt": ["ab", "c"], "suffix": "yz"})
        assert response.status_code == 200
        ids = FakeTokenizer().encode
        expected = [(1, 1, *ids("yz"), 2, *ids("ab")), (1, 1, *ids("yz"), 2, *ids("c"))]
        assert [request.prompt for request in engine.submitted] == expected
        refused = await client.post(TEXT, json={"prompt": [5, 6], "suffix": "yz"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "suffix")


@pytest.mark.parametrize(
    ("prompt", "at_start"),
    [
        ("Once", [False]),
        ("", [True]),
        ([100, 101], [False]),
        ([[100, 2], [2, 100]], [True, False]),
        ("a" * 300, [False]),
    ],
)
async def test_an_answer_continues_its_prompt_unless_that_ends_with_a_control_token(
    prompt: Any, at_start: list[bool]
) -> None:
    """What begins a text loses the space that a sentencepiece vocabulary puts before it; what continues one keeps
    it."""
    engine = FakeEngine()
    assert (await complete(engine, server={"truncate_sequence": True}, prompt=prompt)).status_code == 200
    assert [request.at_start for request in engine.submitted] == at_start


@pytest.mark.parametrize(
    "key", ["000000000000999", "0" * 12 + "9" * 5000, "01", "259", "-1", "1.0", " 1", "٣", "", "1_0"]
)
async def test_keys_of_logit_bias_that_are_no_token_ids_are_refused(key: str) -> None:
    engine = FakeEngine()
    response = await complete(engine, prompt="a", logit_bias={key: 1})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "logit_bias")
    assert not engine.submitted
