"""Errors name fields of the body that a client sent."""

from __future__ import annotations

import pytest

from serving.api.errors import ContextLengthError, InvalidRequestError
from serving.api.requests.bodies.renaming import Renames

RENAMES = Renames(
    {
        "messages": "input",
        "stop": "stop_sequences",
        "tools[].function.parameters": "tools[].input_schema",
        "tools[].function": "tools[]",
        "n": "n_cmpl",
    }
)


@pytest.mark.parametrize(
    ("param", "own"),
    [
        ("messages", "input"),
        ("stop", "stop_sequences"),
        ("tools[12].function.name", "tools[12].name"),
        ("tools[0].function.parameters", "tools[0].input_schema"),
        ("tools[0].type", "tools[0].type"),
        ("tools", "tools"),
        ("n", "n_cmpl"),
        ("name", "name"),
        ("stop_token_ids", "stop_token_ids"),
        (None, None),
    ],
)
def test_the_field_of_an_error(param: str | None, own: str | None) -> None:
    error = InvalidRequestError(f"{param}: expected something else", param=param)
    RENAMES.apply(error)
    assert (error.param, error.message) == (own, f"{own}: expected something else")


def test_every_mention_in_the_message_is_renamed_and_nothing_else() -> None:
    error = ContextLengthError(param="messages", prompt_tokens=5, context=4)
    RENAMES.apply(error)
    assert "(5 in the input," in error.message
    assert "reduce the length of the input," in error.message
    assert "messages" not in error.message
    error = InvalidRequestError("messages: messages[2].x, old.messages and messagesque stay", param="messages")
    RENAMES.apply(error)
    assert error.message == "input: messages[2].x, old.messages and messagesque stay"
