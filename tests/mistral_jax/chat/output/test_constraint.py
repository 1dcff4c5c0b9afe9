"""Completions that are free until a call begins, and held to the grammar of calls from there on."""

from __future__ import annotations

import json
import random

import jsonschema
import numpy as np
import pytest

from mistral_jax.chat.output.constraint import TriggeredConstraint, TriggeredGrammar
from mistral_jax.chat.output.deltas import CallArguments, CallBegin, ContentText
from mistral_jax.chat.output.formats import OutputFormat, tool_format
from mistral_jax.chat.output.grammar import ToolSpec, tool_call_grammar
from mistral_jax.chat.output.parser import OutputParser
from mistral_jax.grammar.compiler import GrammarCompiler
from mistral_jax.grammar.grammar import Grammar
from mistral_jax.tokenizer.base import Tokenizer
from tests.mistral_jax.tokenizer.tokenizer_corpus import tokenizer

ADD = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "how": {"enum": ["plain", "rounded"]}},
    "required": ["a", "how"],
    "additionalProperties": False,
}
TOOLS = (ToolSpec("add", ADD), ToolSpec("now"))
FORMS = (("v1", "hermes"), ("v3", "mistral-v3"), ("240911", "mistral-v3"))


def shared(name: str, form: str) -> tuple[Tokenizer, OutputFormat, TriggeredGrammar]:
    made = tokenizer(name)
    output = OutputFormat(tools=tool_format(form, made.control_tokens))
    calls = tool_call_grammar(output, TOOLS, leading_space=made.strips_leading_space)
    assert made.eos_id is not None
    compiler = GrammarCompiler(made, vocab_size=made.vocab_size, eos_ids=[made.eos_id])
    parts = {name: Grammar.json_schema(schema) for name, schema in calls.arguments}
    triggered = TriggeredGrammar(
        calls.trigger,
        compiler.compile(Grammar.trusted(calls.after_trigger, parts)),
        token_bytes=made.token_bytes,
        vocab_size=made.vocab_size,
        eos_ids=[made.eos_id],
    )
    return made, output, triggered


def allowed(constraint: TriggeredConstraint, size: int) -> list[int]:
    mask = np.empty((-(-size // 32),), np.int32)
    constraint.fill(mask)
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")[:size]).tolist()


def trigger_tokens(made: Tokenizer, form: str) -> list[int]:
    if form == "hermes":
        return made.encode("<tool_call>", at_start=False)
    return [made.control_tokens["[TOOL_CALLS]"]]


def finish(constraint: TriggeredConstraint, made: Tokenizer, seed: int) -> list[int]:
    """Random tokens under the mask, up to the end."""
    rng, tokens = random.Random(seed), list[int]()
    while not tokens or tokens[-1] != made.eos_id:
        assert len(tokens) < 300
        choices = allowed(constraint, made.vocab_size)
        tokens.append(made.eos_id if made.eos_id in choices else rng.choice(choices))  # type: ignore[arg-type]
        constraint.push(tokens[-1])
    return tokens


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_text_is_free_and_a_call_that_begins_is_valid(name: str, form: str) -> None:
    made, output, triggered = shared(name, form)
    for seed in range(5):
        constraint = triggered.start(at_start=True)
        tokens = [*made.encode("Let me see: "), *trigger_tokens(made, form)]
        for token in tokens:
            assert constraint.forced() == ()
            assert len(allowed(constraint, made.vocab_size)) == made.vocab_size
            constraint.push(token)
        assert made.eos_id not in allowed(constraint, made.vocab_size)
        tokens += finish(constraint, made, seed)
        assert constraint.complete
        parser = OutputParser(output, tools=["add", "now"])
        deltas = []
        for token in tokens[:-1]:
            data = made.token_bytes(token)
            deltas += parser.push(data.decode("latin-1") if data else token)
        deltas += parser.finish()
        begun = [delta for delta in deltas if isinstance(delta, CallBegin)]
        assert "".join(delta.text for delta in deltas if isinstance(delta, ContentText)).strip() == "Let me see:"
        assert begun
        for call in begun:
            text = "".join(d.text for d in deltas if isinstance(d, CallArguments) and d.index == call.index)
            schema = ADD if call.name == "add" else {"type": "object", "maxProperties": 0}
            jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_a_completion_without_a_call_stays_free_to_its_end(name: str, form: str) -> None:
    made, _, triggered = shared(name, form)
    constraint = triggered.start(at_start=True)
    for token in made.encode("No call here, not even <tool_ cal>."):
        constraint.push(token)
        assert len(allowed(constraint, made.vocab_size)) == made.vocab_size
    assert not constraint.complete
    assert made.eos_id is not None
    constraint.push(made.eos_id)
    assert constraint.complete


@pytest.mark.parametrize(("last", "is_call"), [(b">\n", True), (b"></", False)])
def test_a_token_with_more_than_the_trigger_begins_the_call_if_it_fits_and_leaves_the_rest_free_if_not(
    last: bytes, is_call: bool
) -> None:
    made, _, triggered = shared("240911", "hermes")
    constraint = triggered.start(at_start=True)
    whole = next(i for i in range(made.vocab_size) if made.token_bytes(i) == last)
    for token in [*made.encode("<tool_call"), whole]:
        constraint.push(token)
    assert (len(allowed(constraint, made.vocab_size)) < made.vocab_size) is is_call
