"""The echoed prompt at the start of a completion: its text, and the offset of each of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import anyio
import anyio.to_thread

from mistral_jax.text.detokenizer import IncrementalDetokenizer, shown_token
from mistral_jax.tokenizer.base import Tokenizer
from serving.api.service.asked import Prompt


@dataclass(frozen=True, slots=True)
class Echo:
    """The echoed prompt."""

    text: str = ""
    first: str = ""
    """The prompt's first token, which has no log-probability."""
    offsets: tuple[int, ...] = ()
    """Offsets of the prompt's tokens in `text`, in characters; empty if their log-probabilities are not returned."""


async def echo_prompts(
    tokenizer: Tokenizer, prompts: Sequence[Prompt], *, logprobs: bool, limiter: anyio.CapacityLimiter
) -> list[Echo]:
    """The echo of each prompt; with `logprobs`, token offsets are computed, off the event loop."""
    if not logprobs:
        return [Echo(prompt.text) for prompt in prompts]
    return await anyio.to_thread.run_sync(_echoes, tokenizer, prompts, limiter=limiter)


def _echoes(tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> list[Echo]:
    return [_echo(tokenizer, prompt) for prompt in prompts]


def _echo(tokenizer: Tokenizer, prompt: Prompt) -> Echo:
    """A token that begins inside a character has the offset of that character.

    If the tokenizer changes the text (by normalising it, say), offsets refer to the changed text.
    """
    detokenizer = IncrementalDetokenizer(tokenizer, at_start=not prompt.cut)
    lengths = [len(detokenizer.push(token)) for token in prompt.tokens]
    # The tokens of a prompt truncated from the left are the end of its text, except a BOS token, which has no text.
    place = max(0, len(prompt.text) - sum(lengths)) if prompt.cut else 0
    offsets: list[int] = []
    for length in lengths:
        offsets.append(min(place, len(prompt.text)))
        place += length
    return Echo(prompt.text, shown_token(tokenizer, prompt.tokens[0])[1], tuple(offsets))
