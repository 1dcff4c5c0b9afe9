"""The data that teaches calls and JSON: the same from the same seed, right, readable by the chat template, and apart
from what the evaluation asks."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from demo.tools.corpus import NO_TOOL, Record, records
from demo.tools.evaluate import cases, encoded, markdown
from demo.tools.extraction import extraction
from demo.tools.functions import CALCULATOR, CALLED, CONVERTER, offer, offer_other
from demo.tools.questions import task
from mistral_jax.chat import ChatFormatter
from mistral_jax.chat.output.grammar import TOOL_NAME
from mistral_jax.hub.files import DEMO_FOLDER
from mistral_jax.tokenizer import load_tokenizer
from mistral_jax.training.chat_data import ChatEncoder


def some(count: int = 600, seed: int = 5) -> list[Record]:
    return list(itertools.islice(records(seed), count))


def calls_of(record: Record) -> Iterator[tuple[str, dict[str, Any]]]:
    for message in record["messages"]:
        for call in message.get("tool_calls") or ():
            yield call["function"]["name"], json.loads(call["function"]["arguments"])


def test_the_same_seed_gives_the_same_conversations() -> None:
    assert some(60) == some(60)
    assert some(60, seed=4) != some(60)


def test_calls_have_the_parameters_that_the_tool_describes() -> None:
    called = 0
    for record in some():
        tools = {tool["function"]["name"]: tool["function"]["parameters"] for tool in record.get("tools", ())}
        for name, arguments in calls_of(record):
            called += 1
            assert set(arguments) == set(tools[name]["required"])
            kinds = {key: schema["type"] for key, schema in tools[name]["properties"].items()}
            for key, value in arguments.items():
                assert isinstance(value, str) if kinds[key] == "string" else isinstance(value, int | float)
    assert called > 300


def test_tools_have_names_that_the_api_takes_and_each_its_own() -> None:
    rng = random.Random(3)
    for new, purpose in itertools.product((False, True), CALLED):
        assert TOOL_NAME.fullmatch(offer(rng, purpose, new_names=new).name)
    for _ in range(50):
        assert TOOL_NAME.fullmatch(offer_other(rng).name)
    for record in some():
        names = [tool["function"]["name"] for tool in record.get("tools", ())]
        assert len(names) == len(set(names))


def test_sums_and_conversions_are_right() -> None:
    rng = random.Random(9)
    for held_out in (True, False):
        for _ in range(400):
            made = task(rng, CALCULATOR, held_out=held_out)
            (arguments,) = made.calls
            if made.answer.startswith("The tool failed"):
                continue
            said, _, result = made.answer.removesuffix(".").rpartition(" = ")
            assert said == arguments["expression"]
            assert float(result) == pytest.approx(eval(said), rel=1e-4, abs=1e-5)
    made = {(2.0, "km", "m"): 2000.0, (10.0, "Celsius", "Fahrenheit"): 50.0, (3.0, "feet", "inches"): 36.0}
    seen: dict[tuple[float, str, str], float] = {}
    for _ in range(60_000):
        one = task(rng, CONVERTER, held_out=False)
        (arguments,) = one.calls
        if " = " in one.answer:
            key = (float(arguments["value"]), arguments["start"], arguments["end"])
            seen[key] = float(one.answer.split(" = ")[1].split()[0])
    found = {key: seen[key] for key in made if key in seen}
    assert found
    assert found == {key: made[key] for key in found}


def test_results_that_the_model_says_come_from_the_tool() -> None:
    rng = random.Random(4)
    for purpose in CALLED:
        for _ in range(200):
            made = task(rng, purpose, held_out=False)
            if " = " in made.answer:
                assert made.answer.split(" = ")[1].split()[0].removesuffix(".") in made.results[0]
            assert len(made.results) == len(made.calls)


@pytest.mark.parametrize("purpose", CALLED)
def test_no_call_of_the_evaluation_is_trained_on(purpose: str) -> None:
    rng = random.Random(6)
    kept = {str(call) for _ in range(1500) for call in task(rng, purpose, held_out=True).calls}
    trained = {str(call) for _ in range(6000) for call in task(rng, purpose, held_out=False).calls}
    assert len(kept) > 50
    assert not kept & trained


def test_no_name_or_wording_of_the_evaluation_is_trained_on() -> None:
    rng = random.Random(7)
    for purpose in CALLED:
        kept = {offer(rng, purpose, new_names=True).name for _ in range(50)}
        assert not kept & {offer(rng, purpose).name for _ in range(300)}
    kept = {extraction(rng, held_out=True, new_template=True).question for _ in range(300)}
    assert not kept & {extraction(rng, held_out=False).question for _ in range(5000)}


def test_json_is_what_the_schema_asks_for() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    rng = random.Random(8)
    for held_out, new in itertools.product((True, False), repeat=2):
        for _ in range(100):
            made = extraction(rng, held_out=held_out, new_template=new)
            value = json.loads(made.answer)
            jsonschema.validate(value, dict(made.schema))
            assert list(value) == list(made.schema["properties"])
            assert all(str(item) in made.question for item in value.values())


def test_some_questions_need_no_tool_or_one_that_is_not_offered() -> None:
    found = [record for record in some() if "tools" in record]
    assert 0.5 < len(found) / 600 < 0.8
    assert any(not list(calls_of(record)) for record in found)
    assert NO_TOOL in [message["content"] for record in found for message in record["messages"]]


def formatter() -> ChatFormatter:
    settings = json.loads((DEMO_FOLDER / "tokenizer_config.json").read_text("utf-8"))
    return ChatFormatter(settings["chat_template"], load_tokenizer(DEMO_FOLDER))


def test_the_model_has_to_say_calls_and_answers_only() -> None:
    chat = formatter()
    tokenizer = load_tokenizer(DEMO_FOLDER)
    encoder = ChatEncoder(tokenizer, chat, [2])
    for record in some(60):
        (example,) = encoder.encode(record)
        said = tokenizer.decode([int(token) for token in example.tokens[example.counted]])
        for message in record["messages"]:
            if message["role"] == "tool":
                assert f"<tool_response>\n{message['content']}" not in said
            if message["role"] == "assistant" and message["content"]:
                assert message["content"] in said
        assert said.count("<tool_call>") == len(list(calls_of(record)))


def test_the_evaluation_is_the_same_every_time() -> None:
    once = cases(limit=4)
    assert once == cases(limit=4)
    rows = [case.row for case in once]
    assert {rows.count(row) for row in rows} == {4}
    tokenizer = load_tokenizer(DEMO_FOLDER)
    encoder = ChatEncoder(tokenizer, formatter(), [2])
    for case in once:
        example = encoded(case, encoder)
        reply = tokenizer.decode([int(token) for token in example.tokens[example.counted]])
        assert reply.startswith("<tool_call>\n{") if case.is_call else case.messages[-1]["content"] in reply


def test_the_table_leaves_out_what_has_no_grammar() -> None:
    table = {"calls": {"X-LoRA": 0.985, "held": 1.0}, "answers": {"X-LoRA": 0.75}}
    assert markdown(table, ["X-LoRA", "held"]).splitlines()[2:] == ["| calls | 98.5 | 100.0 |", "| answers | 75.0 |  |"]
