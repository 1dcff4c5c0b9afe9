"""`mistral-jax chat`: the lines that begin with a slash, and what is kept of a conversation."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from mistral_jax.runtime.sampling.params import SamplingParams
from serving.commands.chat import _Conversation


class FakeModel:
    """Answers in two pieces, or raises what it is given."""

    description = SimpleNamespace(defaults={"temperature": 0.5})
    adapters = ("poet", "cook")

    def __init__(self) -> None:
        self.asked: list[tuple[list[dict[str, Any]], SamplingParams]] = []
        self.used: list[tuple[str | None, int | None]] = []
        self.error: Exception | None = None

    def stream_chat(
        self, messages: list[dict[str, Any]], params: SamplingParams, *, adapter: str | None, freeze_after: int | None
    ) -> Iterator[str]:
        self.asked.append(([*messages], params))
        self.used.append((adapter, freeze_after))
        if self.error is not None:
            raise self.error
        yield from ("Hel", "lo")


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture
def conversation(model: FakeModel) -> _Conversation:
    return _Conversation(model, system="Be brief.", max_tokens=7)  # type: ignore[arg-type]


def test_answers_are_printed_and_kept(
    conversation: _Conversation, model: FakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    conversation.reply("hi")
    conversation.reply("again")
    assert capsys.readouterr().out.split() == ["Hello", "Hello"]
    messages, params = model.asked[1]
    assert [m["content"] for m in messages] == ["Be brief.", "hi", "Hello", "again"]
    assert (params.temperature, params.max_tokens) == (0.5, 7)


def test_a_message_that_failed_is_not_kept(
    conversation: _Conversation, model: FakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    conversation.reply("hi")
    for error in (ValueError("the prompt has 99 tokens"), FloatingPointError("not numbers")):
        model.error = error
        conversation.reply("long")
        assert f"({error}; /clear starts over)" in capsys.readouterr().out
    model.error = None
    conversation.reply("short")
    assert [m["content"] for m in model.asked[-1][0]] == ["Be brief.", "hi", "Hello", "short"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/set top_k 5", "(top_k = 5)"),
        ("/set top_k x", "top_k is 'x'; expected an integer"),
        ("/set temperature hot", "temperature is 'hot'; expected a number"),
        ("/set temperature 9", "temperature is 9.0; expected a number in [0.0, 2.0]"),
        ("/set colour red", "expected /set NAME VALUE with one of temperature"),
        ("/clear", "(a new conversation)"),
        ("/what", "/help"),
    ],
)
def test_commands(conversation: _Conversation, line: str, said: str) -> None:
    assert (conversation.command(line) or "").startswith(said)


def test_leaving_and_changed_settings(conversation: _Conversation, model: FakeModel) -> None:
    assert conversation.command("/exit") is None
    conversation.command("/set temperature 9")
    conversation.command("/set seed 3")
    conversation.command("/system Sing.")
    conversation.reply("x")
    messages, params = model.asked[0]
    assert (messages[0]["content"], params.temperature, params.seed) == ("Sing.", 0.5, 3)


def test_an_adapter_answers_until_another_does(model: FakeModel) -> None:
    conversation = _Conversation(model, system=None, max_tokens=7, freeze_after=3)  # type: ignore[arg-type]
    for line in ("", "/adapter cook", "/adapter base", "/adapter"):
        if line:
            conversation.command(line)
        conversation.reply("hi")
    # The weights of a mixture can be kept; those of an adapter are fixed anyway.
    assert model.used == [(None, 3), ("cook", None), ("base", None), (None, 3)]
    assert "there is no adapter 'nobody'; adapters: poet, cook" in str(conversation.command("/adapter nobody"))
    conversation.reply("hi")
    assert model.used[-1] == (None, 3)
