"""Completions as sequences of blocks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from mistral_jax.chat.output.formats import OutputFormat
from mistral_jax.chat.output.grammar import ToolSpec
from serving.api.responses.framing import CallFacts
from serving.api.responses.parsed.blocks import Added, Blocks, Closed, Opened, Step
from serving.api.service.asked import Prompt, ReportedScalings, ToolUse, UsageInStream
from serving.engine.messages import Event, TokenScalings
from tests.serving.api.controllers.test_tools import THINK, format_of
from tests.serving.fakes import CARD, token_logprob


def blocks_of(output: OutputFormat | None = None, *, reported: ReportedScalings | None = None) -> Blocks:
    facts = CallFacts(
        call_id="x",
        card=CARD,
        model_id="m",
        prompts=[Prompt((1, 2))],
        n=1,
        usage=UsageInStream(),
        logprobs=0,
        reported=reported,
    )
    return Blocks(facts, ToolUse(output=output or OutputFormat(), callable=(ToolSpec("now", None),)))


def told(steps: Sequence[Step]) -> list[tuple[str, int, str]]:
    """The kind of each step, its block, and what it adds."""
    names = {Opened: "open", Added: "add", Closed: "close"}
    return [
        (names[type(step)], step.block.index, step.text if isinstance(step, Added) else step.block.kind)
        for step in steps
    ]


def run(blocks: Blocks, *texts: str, reason: str = "stop", stop: str | None = None) -> list[tuple[str, int, str]]:
    steps: list[Step] = []
    for count, text in enumerate(texts, 1):
        steps += blocks.take(Event(request_id="x", text=text, completion_tokens=count))
    last = Event(request_id="x", completion_tokens=len(texts) + 1, finish_reason=reason, stop_reason=stop)  # type: ignore[arg-type]
    return told([*steps, *blocks.take(last)])


def test_blocks_come_one_after_the_other() -> None:
    blocks = blocks_of(format_of("hermes", THINK))
    steps = run(blocks, "<think>Hm", "</think>", "So: ", '<tool_call>{"name": "now", "arguments": {}}</tool_call>')
    assert steps == [
        ("open", 0, "reasoning"),
        ("add", 0, "Hm"),
        ("close", 0, "reasoning"),
        ("open", 1, "text"),
        ("add", 1, "So:"),
        ("close", 1, "text"),
        ("open", 2, "call"),
        ("add", 2, "{}"),
        ("close", 2, "call"),
    ]
    assert blocks.ending == "tool_calls"
    assert [(block.text, block.cut) for block in blocks.all] == [("Hm", False), ("So:", False), ("{}", False)]
    assert blocks.usage().completion_tokens_details.reasoning_tokens == 2
    assert blocks.usage().total_tokens == 2 + 5


@pytest.mark.parametrize(
    ("texts", "reason", "expected"),
    [
        ((), "stop", [("open", 0, "text"), ("close", 0, "text")]),
        ((), "length", []),
        (
            ("<think>Hm</think>",),
            "stop",
            [
                ("open", 0, "reasoning"),
                ("add", 0, "Hm"),
                ("close", 0, "reasoning"),
                ("open", 1, "text"),
                ("close", 1, "text"),
            ],
        ),
        (("<think>Hm",), "length", [("open", 0, "reasoning"), ("add", 0, "Hm"), ("close", 0, "reasoning")]),
    ],
)
def test_a_completion_that_says_nothing(
    texts: tuple[str, ...], reason: str, expected: list[tuple[str, int, str]]
) -> None:
    assert run(blocks_of(format_of("hermes", THINK)), *texts, reason=reason) == expected


def test_what_is_cut_off() -> None:
    for texts, reason, stop, cut in (
        (("abc",), "length", None, True),
        (("abc",), "stop", "d", False),
        (('<tool_call>{"name": "now", "arguments": {"a',), "stop", "d", True),
    ):
        blocks = blocks_of(format_of("hermes"))
        run(blocks, *texts, reason=reason, stop=stop)
        assert (blocks.all[-1].cut, blocks.stop_string) == (cut, stop)


def test_log_probabilities_come_with_the_text() -> None:
    blocks = blocks_of(format_of(None, THINK))
    steps: list[Step] = []
    for character in "<think>a</think>Öx":
        logprobs = tuple(token_logprob(byte, 0) for byte in character.encode())
        steps += blocks.take(Event(request_id="x", text=character, logprobs=logprobs))
    entries = [entry.raw for step in steps if isinstance(step, Added) for entry in step.logprobs]
    assert b"".join(entries).decode() == "Öx"


def test_adapter_weights_are_those_of_the_whole_completion() -> None:
    reported = ReportedScalings(detail="summary", adapters=("a", "b"), modules=("*",))
    blocks = blocks_of(reported=reported)
    for text, weights in (("x", [0.25, 0.75]), ("y", [0.75, 0.25])):
        scalings = (TokenScalings(text=text, weights=np.array(weights, np.float32)),)
        blocks.take(Event(request_id="x", text=text, scalings=scalings))
    report = blocks.xlora()
    assert report
    assert (report.adapters, report.scalings) == (["a", "b"], [0.5, 0.5])
