"""Sampling parameters as plain data; imports no JAX."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

MAX_TOP_LOGPROBS = 20
"""Maximum number of alternatives that a step reports besides the chosen token (OpenAI's limit)."""

MAX_STOP_CHARACTERS = 16384
"""Maximum characters of all stop strings together, whose matcher takes a few hundred bytes for each; and of other lists
of texts."""


MAX_BANNED = 256
"""Maximum number of sequences of several tokens that a completion must not contain."""

MAX_BANNED_LENGTH = 16
"""Maximum tokens of such a sequence."""

MAX_STOP_TOKENS = 1024
"""Maximum number of `stop_token_ids`."""

LONGEST_REPETITION = 50
"""Maximum of `dry_allowed_length`; DRY follows repetitions up to this length."""

DRY_BREAKERS = ("\n", ":", '"', "*")
"""Default of `dry_sequence_breakers`."""


SAMPLERS = ("penalties", "dry", "temperature", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc")
"""What changes or truncates the distribution, in the order in which it is applied, by llama.cpp's names."""


class SamplingParamsError(ValueError):
    """A sampling parameter is out of range; `param` is its name."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRules:
    """What the texts and ends of a request mean in token ids; `mistral_jax.text.token_rules` makes them."""

    ends: tuple[int, ...] = ()
    """Tokens that end a completion: none of the first `min_tokens` may be one."""
    banned: tuple[int, ...] = ()
    """Tokens that the completion must not contain."""
    banned_sequences: tuple[tuple[int, ...], ...] = ()
    """Sequences of several tokens that it must not contain."""
    breakers: tuple[int, ...] = ()
    """Tokens over which no repetition continues."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How a sequence is sampled and when it ends. Every field is applied; none is a hint.

    The order of operations on the logits of a step: repetition penalty, presence and frequency penalties, `logit_bias`
    and `allowed_token_ids`, DRY, `bad_words` and `min_tokens`, the mask of a constraint (see `mistral_jax.grammar`).
    Then (unless greedy) temperature, `top_n_sigma`, `top_k`, `typical_p`, `top_p`, `min_p`, XTC, and one draw.
    `typical_p`, `top_p`, `min_p` and XTC are applied to the probabilities of the tokens that are left before them.

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
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end generation as an end-of-sequence token does, also with `ignore_eos`."""
    min_tokens: int = 0
    """Number of tokens before which no end-of-sequence token and none of `stop_token_ids` is chosen, and no stop string
    ends the completion."""
    include_stop_str_in_output: bool = False
    """Return the stop string, or the text of the token that ends the completion, as part of it."""
    skip_special_tokens: bool = True
    """False: control tokens of the completion appear in its text, by their names."""
    allowed_token_ids: tuple[int, ...] | None = None
    """The only tokens that may be chosen; a completion ends by itself only if they contain an ending one."""
    bad_words: tuple[str, ...] = ()
    """Words that the completion must not contain, each in the tokens of its two spellings: with and without a space
    before it. The last token of a word is banned where the others were just generated. Needs `rules`."""
    typical_p: float = 1.0
    """Keep the tokens whose surprise is nearest to the distribution's entropy, until their probabilities reach this
    sum. (0, 1]; 1 keeps all."""
    top_n_sigma: float = 0.0
    """Keep the tokens whose logits are at most this many standard deviations below the largest. [0, 100]; 0 keeps
    all."""
    xtc_probability: float = 0.0
    """Probability with which XTC applies to a token: it excludes all tokens with at least `xtc_threshold` but the least
    likely of them. Drawn by (seed, position), from a stream of its own. [0, 1]."""
    xtc_threshold: float = 0.1
    """[0, 1]; above 0.5 XTC has no effect."""
    dry_multiplier: float = 0.0
    """DRY: a token that would continue a repetition of n tokens is penalised by
    `dry_multiplier * dry_base ** (n - dry_allowed_length)`, for n of at least `dry_allowed_length`. [0, 100]; 0: off.
    If it is on, `rules` is needed."""
    dry_base: float = 1.75
    """[1, 10]."""
    dry_allowed_length: int = 2
    """[1, 50]. A repetition of more than 50 tokens counts as one of 50."""
    dry_penalty_last_n: int = -1
    """Tokens that DRY looks back on, prompt included; -1: all; 0: none."""
    dry_sequence_breakers: tuple[str, ...] = DRY_BREAKERS
    """No repetition continues over a token whose text contains one of these."""
    rules: TokenRules | None = None
    """Set by `mistral_jax.text.token_rules.with_token_rules`; needed by parameters that a tokenizer must explain."""

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
        self._check_shaping()
        self._check_ends()

    def _check_shaping(self) -> None:
        _in_range("typical_p", self.typical_p, 0.0, 1.0, low_open=True)
        _in_range("top_n_sigma", self.top_n_sigma, 0.0, 100.0)
        _in_range("xtc_probability", self.xtc_probability, 0.0, 1.0)
        _in_range("xtc_threshold", self.xtc_threshold, 0.0, 1.0)
        _in_range("dry_multiplier", self.dry_multiplier, 0.0, 100.0)
        _in_range("dry_base", self.dry_base, 1.0, 10.0)
        _in_range("dry_allowed_length", self.dry_allowed_length, 1, LONGEST_REPETITION)
        _in_range("dry_penalty_last_n", self.dry_penalty_last_n, -1, 2**31 - 1)
        _texts("dry_sequence_breakers", self.dry_sequence_breakers, "would end every repetition")

    def _check_ends(self) -> None:
        _texts("stop", self.stop, "would end every completion at once")
        _texts("bad_words", self.bad_words, "is in every completion")
        _in_range("min_tokens", self.min_tokens, 0, 2**31 - 1)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise SamplingParamsError(
                "min_tokens", f"min_tokens is {self.min_tokens}; expected at most max_tokens, {self.max_tokens}"
            )
        if len(self.stop_token_ids) > MAX_STOP_TOKENS:
            raise SamplingParamsError(
                "stop_token_ids",
                f"stop_token_ids: {len(self.stop_token_ids)} tokens; expected at most {MAX_STOP_TOKENS}",
            )
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise SamplingParamsError("allowed_token_ids", "allowed_token_ids: expected at least one token")
        for param in ("stop_token_ids", "allowed_token_ids"):
            if any(token < 0 for token in getattr(self, param) or ()):
                raise SamplingParamsError(param, f"{param}: a token id is negative")

    def for_sequence(self, *, max_tokens: int, seed: int) -> SamplingParams:
        """A copy with a limit and a seed, both within their ranges. Not validated again, so that a call may have many
        sequences with thousands of biases."""
        own = copy.copy(self)
        object.__setattr__(own, "max_tokens", max_tokens)
        object.__setattr__(own, "seed", seed)
        return own

    @property
    def uses_dry(self) -> bool:
        return self.dry_multiplier > 0.0 and self.dry_penalty_last_n != 0

    @property
    def needs_rules(self) -> bool:
        """Whether `rules` must be set before the sequence is admitted."""
        return self.uses_dry or bool(self.bad_words) or self.min_tokens > 0

    @property
    def excludes_tokens(self) -> bool:
        """Whether some tokens must not be chosen, whatever their logits."""
        return self.allowed_token_ids is not None or bool(self.bad_words) or self.min_tokens > 0

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is taken without drawing."""
        return self.temperature == 0.0 or self.top_k == 1


def _in_range(param: str, value: float, low: float, high: float, *, low_open: bool = False) -> None:
    if not low <= value <= high or (low_open and value == low):  # also for NaN
        left, shown = "(" if low_open else "[", str(value)
        shown = shown if len(shown) <= 40 else f"{shown[:40]}..."
        raise SamplingParamsError(param, f"{param} is {shown}; expected a number in {left}{low}, {high}]")


def _texts(param: str, texts: Sequence[str], why: str) -> None:
    """Check that no text is empty, and that all together are not too long."""
    if any(not text for text in texts):
        raise SamplingParamsError(param, f"{param}: an empty string {why}; leave it out")
    if (length := sum(map(len, texts))) > MAX_STOP_CHARACTERS:
        raise SamplingParamsError(param, f"{param}: {length} characters in all; expected at most {MAX_STOP_CHARACTERS}")


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
