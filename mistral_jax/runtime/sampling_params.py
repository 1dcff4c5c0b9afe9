"""Sampling parameters as plain data; imports no JAX."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

MAX_TOP_LOGPROBS = 20
"""Maximum number of alternatives that a step reports besides the chosen token (OpenAI's limit)."""

MAX_STOP_CHARACTERS = 16384
"""Maximum characters of all stop strings together: the matcher takes a few hundred bytes for each character."""


class SamplingParamsError(ValueError):
    """A sampling parameter is out of range; `param` is its name."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How a sequence is sampled and when it ends. Every field is applied; none is a hint.

    The order of operations on the logits of a step: repetition penalty, presence and frequency penalties, `logit_bias`,
    the mask of a constraint (see `mistral_jax.grammar`), then (unless greedy) temperature, `top_k`, `top_p`, `min_p`,
    and one draw.

    Raises:
      SamplingParamsError: a value is out of its range.
    """

    max_tokens: int | None = None
    """Maximum tokens to generate; None: as many as fit in the context; 0: none, for scoring a prompt."""
    temperature: float = 1.0
    """0 takes the most likely token (exact argmax); otherwise logits are divided by it. [0, 2] as in OpenAI's API."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all. Tokens tied with the k-th are kept."""
    top_p: float = 1.0
    """Keep the smallest set of tokens whose probabilities reach this sum. (0, 1]."""
    min_p: float = 0.0
    """Keep tokens at least this fraction as likely as the most likely one. [0, 1]."""
    repetition_penalty: float = 1.0
    """Positive logits of tokens seen in the last `repeat_last_n` tokens (prompt included) are divided by it, negative
    ones multiplied. (0, 10]."""
    presence_penalty: float = 0.0
    """Subtracted once from the logit of every token generated so far. [-2, 2]."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for each time it was generated. [-2, 2]."""
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])
    """Added to the logits of these token ids. [-100, 100] each; the ids are checked against the vocabulary at
    admission."""
    seed: int | None = None
    """Randomness is a function of (seed, position) alone. None: a fresh seed is drawn for the request."""
    stop: tuple[str, ...] = ()
    """Generation ends before the first of these strings; the string itself is not returned."""
    logprobs: int | None = None
    """None: no log-probabilities. k: the chosen token's, and those of the k most likely tokens. [0, 20]. They are taken
    from the model's own distribution, before penalties, bias, temperature and truncation."""
    ignore_eos: bool = False
    """Do not end at an end-of-sequence token (benchmarks)."""

    def __post_init__(self) -> None:
        _in_range("temperature", self.temperature, 0.0, 2.0)
        _in_range("top_p", self.top_p, 0.0, 1.0, low_open=True)
        _in_range("min_p", self.min_p, 0.0, 1.0)
        _in_range("repetition_penalty", self.repetition_penalty, 0.0, 10.0, low_open=True)
        _in_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _in_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _in_range("top_k", self.top_k, 0, 2**31 - 1)
        if self.max_tokens is not None:
            _in_range("max_tokens", self.max_tokens, 0, 2**31 - 1)
        if self.seed is not None:
            _in_range("seed", self.seed, -(2**63), 2**63 - 1)
        if self.logprobs is not None:
            _in_range("top_logprobs", self.logprobs, 0, MAX_TOP_LOGPROBS)
        for token, bias in self.logit_bias.items():
            if token < 0:
                raise SamplingParamsError("logit_bias", f"logit_bias: token id {token} is negative")
            _in_range("logit_bias", bias, -100.0, 100.0)
        if any(not text for text in self.stop):
            raise SamplingParamsError("stop", "stop: an empty string would end every completion at once; leave it out")
        if (length := sum(map(len, self.stop))) > MAX_STOP_CHARACTERS:
            raise SamplingParamsError(
                "stop", f"stop: {length} characters in all; expected at most {MAX_STOP_CHARACTERS}"
            )

    def for_sequence(self, *, max_tokens: int, seed: int) -> SamplingParams:
        """A copy with a limit and a seed, both within their ranges. Not validated again, so that a call may have many
        sequences with thousands of biases."""
        own = copy.copy(self)
        object.__setattr__(own, "max_tokens", max_tokens)
        object.__setattr__(own, "seed", seed)
        return own

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is taken without drawing."""
        return self.temperature == 0.0 or self.top_k == 1


def _in_range(param: str, value: float, low: float, high: float, *, low_open: bool = False) -> None:
    if math.isnan(value) or value > high or value < low or (low_open and value == low):
        left = "(" if low_open else "["
        raise SamplingParamsError(param, f"{param} is {value}; expected a number in {left}{low}, {high}]")


SAMPLING_DEFAULT_FIELDS = frozenset(f.name for f in fields(SamplingParams)) & {
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
}
"""The fields for which a model's `generation_config.json` may give defaults."""


def completion_limit(max_tokens: int | None, *, prompt_tokens: int, length: int) -> int:
    """Maximum tokens to sample after a prompt: `max_tokens`, capped at the room that the prompt leaves.

    Args:
      max_tokens: None: as many as there is room for.
      length: maximum tokens of prompt and completion together.
    """
    room = length - prompt_tokens
    return room if max_tokens is None else min(max_tokens, room)
