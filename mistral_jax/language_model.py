"""The door for notebooks: a loaded model with its tokenizer, in plain calls.

    import mistral_jax
    model = mistral_jax.load("demo")
    print(model.chat("What is a KV cache?"))
    for text in model.stream("Once upon a time"):
        print(text, end="")

Everything underneath is open too: `model.runner` holds the jitted programs and `model.module` the Flax module.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from mistral_jax.answer import AnswerStream
from mistral_jax.checkpoint import Progress, choose_dtype, load_weights, open_weights, stored_dtype
from mistral_jax.config import ConfigError
from mistral_jax.description import ModelDescription, describe
from mistral_jax.detokenizer import begins_text
from mistral_jax.device import Device
from mistral_jax.generate import Prompt, generate
from mistral_jax.hub import find_model
from mistral_jax.mistral import Mistral
from mistral_jax.quant.native import native
from mistral_jax.quant.plan import Quantization
from mistral_jax.quant.summary import summarize
from mistral_jax.runner import DEFAULT_CHUNKS, Runner
from mistral_jax.sampling import Sampled
from mistral_jax.sampling_params import SamplingParams

logger = logging.getLogger("mistral_jax")

DEFAULT_LENGTH = 4096
"""Length of a sequence where the caller does not say: long enough for a conversation, small enough to allocate."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A finished answer."""

    text: str
    tokens: tuple[Sampled, ...]
    """With log-probabilities if `SamplingParams.logprobs` asked for them; the end-of-sequence token is not among them."""
    finish_reason: str
    """stop, length or error"""
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, kw_only=True)
class TextLogprobs:
    """How likely a model finds a text, token by token."""

    tokens: tuple[int, ...]
    texts: tuple[str, ...]
    logprobs: np.ndarray
    """float32 [T]: natural log-probability of each token after those before it; NaN for the first."""

    @property
    def perplexity(self) -> float:
        return float(np.exp(-np.nanmean(self.logprobs)))


def load_module(
    description: ModelDescription,
    *,
    dtype: str = "auto",
    quant: Quantization = "auto",
    device: Device | None = None,
    progress: Progress | None = None,
) -> Mistral:
    """Fetch the weights where they are missing, and load them to the device.

    Args:
      dtype: see `mistral_jax.checkpoint.choose_dtype`.
      quant: see `mistral_jax.quant.plan.Quantization`.
      device: None: JAX's default device.
    """
    source = open_weights(description.config, description.files.fetch_weights())
    target = device or jax.devices()[0]
    chosen = choose_dtype(dtype, stored_dtype(source), target.platform)
    module = load_weights(description.config, source, dtype=chosen, quant=quant, device=target, progress=progress)
    held = summarize(module)
    if target.platform == "cpu" and native.KINDS & held.bytes_by_form.keys() and not native.available():
        logger.warning(
            "decoding from packed weights is some ten times slower without a C++ compiler; install one, or unpack the weights "
            "while loading (--quant none; %.1f GiB)",
            held.weights * chosen.itemsize / 2**30,
        )
    return module


def load(
    name: str | Path = "demo",
    *,
    dtype: str = "auto",
    quant: Quantization = "auto",
    device: Device | None = None,
    slots: int = 8,
    length: int | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    weight_files: Sequence[str] = (),
    tokenizer: str | None = None,
    chat_template: str | None = None,
    progress: bool = True,
) -> LanguageModel:
    """Load a model: the bundled "demo", a folder, a GGUF file, a safetensors file, or a Hub id.

    Args:
      slots: sequences that are generated at the same time.
      length: most tokens of prompt and answer together; None: the model's own, at most `DEFAULT_LENGTH`.
      tokenizer: Hub id or folder whose tokenizer and chat template are used instead of the model's own.
      Others: see `find_model`, `describe` and `load_module`.
    """
    files = find_model(str(name), revision=revision, token=token, weight_files=weight_files, tokenizer_id=tokenizer)
    description = describe(files, chat_template=chat_template)
    with tqdm(desc="loading weights", unit="B", unit_scale=True, disable=not progress, leave=False) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        module = load_module(description, dtype=dtype, quant=quant, device=device, progress=show)
    return LanguageModel(description, module, slots=slots, length=length)


class LanguageModel:
    """A model ready to generate. Not thread-safe: for several callers use the server.

    Attributes:
      module: the Flax module.
      runner: the jitted programs; see `mistral_jax.runner` for how to drive them by hand.
      tokenizer, chat_formatter, config, description.
    """

    def __init__(
        self,
        description: ModelDescription,
        module: Mistral,
        *,
        slots: int,
        length: int | None,
        chunks: Sequence[int] = DEFAULT_CHUNKS,
        repeat_last_n: int = 64,
    ) -> None:
        """Args: see `load`, and `mistral_jax.runner.Runner` for `chunks` and `repeat_last_n`."""
        self.description = description
        self.config = description.config
        self.tokenizer = description.tokenizer
        self.chat_formatter = description.chat
        self.module = module
        self.runner = Runner(
            module,
            slots=slots,
            length=length or min(self.config.max_position_embeddings, DEFAULT_LENGTH),
            chunks=chunks,
            repeat_last_n=repeat_last_n,
        )

    def encode(self, text: str) -> list[int]:
        """Token ids of a raw prompt, with BOS where the model wants one."""
        bos = [self.tokenizer.bos_id] if self.tokenizer.add_bos and self.tokenizer.bos_id is not None else []
        return bos + self.tokenizer.encode(text)

    @overload
    def generate(
        self, prompt: str | Sequence[int], params: SamplingParams | None = None, **settings: Any
    ) -> Generation: ...

    @overload
    def generate(
        self, prompt: list[str], params: SamplingParams | None = None, **settings: Any
    ) -> list[Generation]: ...

    def generate(
        self, prompt: str | Sequence[int] | list[str], params: SamplingParams | None = None, **settings: Any
    ) -> Generation | list[Generation]:
        """Continue a raw prompt, or many at once.

        Args:
          prompt: a text, its token ids, or a list of texts (which run together, as many at a time as there are slots).
          params: how to sample; without it, the model's defaults.
          settings: single fields of `SamplingParams` to change, such as `temperature=0.7, max_tokens=50`.
        Returns: a `Generation`; a list of them for a list of texts.
        """
        chosen = self._params(params, settings)
        if isinstance(prompt, list) and all(isinstance(p, str) for p in prompt):
            return self._run([self._raw(self.encode(str(p))) for p in prompt], chosen)
        tokens = self.encode(prompt) if isinstance(prompt, str) else [int(t) for t in prompt]  # pyright: ignore[reportArgumentType]
        return self._run([self._raw(tokens)], chosen)[0]

    def stream(
        self, prompt: str | Sequence[int], params: SamplingParams | None = None, **settings: Any
    ) -> Iterator[str]:
        """As `generate`, piece by piece."""
        tokens, at_start = self._raw(self.encode(prompt) if isinstance(prompt, str) else list(prompt))
        yield from self._stream(tokens, self._params(params, settings), at_start=at_start)

    def chat(self, messages: str | list[dict[str, Any]], params: SamplingParams | None = None, **settings: Any) -> str:
        """Answer a conversation: a single user message, or OpenAI-style messages."""
        return "".join(self.stream_chat(messages, params, **settings))

    def stream_chat(
        self, messages: str | list[dict[str, Any]], params: SamplingParams | None = None, **settings: Any
    ) -> Iterator[str]:
        """As `chat`, piece by piece."""
        yield from self._stream(self._encode_chat(messages), self._params(params, settings), at_start=True)

    def logits(self, text: str | Sequence[int]) -> jax.Array:
        """The model's logits after each token of a text: float32 [T, V], from one pass without a cache."""
        tokens = self.encode(text) if isinstance(text, str) else list(text)
        # Padded to a power of two, so that few lengths are compiled; causal attention does not see what follows.
        size = max(16, 1 << (len(tokens) - 1).bit_length())
        padded = np.zeros((1, size), np.int32)
        padded[0, : len(tokens)] = tokens
        return self._full_pass(padded)[: len(tokens)]

    def logprobs(self, text: str | Sequence[int]) -> TextLogprobs:
        """Log-probability of each token of a text, given those before it."""
        tokens = self.encode(text) if isinstance(text, str) else list(text)
        table = np.asarray(jax.nn.log_softmax(self.logits(tokens), axis=-1))
        chosen = table[np.arange(len(tokens) - 1), tokens[1:]]
        return TextLogprobs(
            tokens=tuple(tokens),
            texts=tuple(self.tokenizer.token_text(t) for t in tokens),
            logprobs=np.concatenate([[np.nan], chosen]).astype(np.float32),
        )

    @cached_property
    def _full_pass(self) -> Any:
        split = self.runner.split
        program = jax.jit(lambda weights, tokens: _whole_text_logits(split.merge(weights), tokens))
        return lambda tokens: program(split.weights, tokens)

    def _raw(self, tokens: list[int]) -> tuple[list[int], bool]:
        """A raw prompt, and whether its answer begins a text of its own."""
        return tokens, bool(tokens) and begins_text(self.tokenizer, tokens)

    def _encode_chat(self, messages: str | list[dict[str, Any]]) -> list[int]:
        if self.chat_formatter is None:
            raise ConfigError("this model has no chat template; use generate, or load it with chat_template=…")
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        return self.chat_formatter.encode(messages)

    def _params(self, params: SamplingParams | None, settings: dict[str, Any]) -> SamplingParams:
        chosen = SamplingParams(**self.description.defaults) if params is None else params
        chosen = replace(chosen, **settings)
        too_large = [token for token in chosen.logit_bias if token >= self.config.vocab_size]
        if too_large:
            raise ValueError(f"logit_bias names token {too_large[0]}; the vocabulary has {self.config.vocab_size}")
        return chosen

    def _prompt(self, tokens: Sequence[int], params: SamplingParams, *, at_start: bool) -> Prompt:
        seed = secrets.randbits(63) if params.seed is None else params.seed
        room = self.runner.length - len(tokens)
        if not tokens or room < 1:
            raise ValueError(
                f"the prompt has {len(tokens)} tokens; expected 1 to {self.runner.length - 1} (see `length` of load)"
            )
        most = room if params.max_tokens is None else min(params.max_tokens, room)
        answer = AnswerStream(
            self.tokenizer, params, eos_ids=self.description.eos_ids, max_tokens=most, at_start=at_start
        )
        return Prompt(tokens=tuple(tokens), params=replace(params, seed=seed), answer=answer)

    def _stream(self, tokens: Sequence[int], params: SamplingParams, *, at_start: bool) -> Iterator[str]:
        prompt = self._prompt(tokens, params, at_start=at_start)
        for _, piece, *_ in generate(self.runner, self.runner.new_state(), [prompt]):
            if piece.text:
                yield piece.text
            if piece.finish_reason == "error":
                raise FloatingPointError("the model produced values that are not numbers; its weights may be damaged")

    def _run(self, requests: list[tuple[list[int], bool]], params: SamplingParams) -> list[Generation]:
        prompts = [self._prompt(tokens, params, at_start=at_start) for tokens, at_start in requests]
        texts: list[list[str]] = [[] for _ in prompts]
        tokens: list[list[Sampled]] = [[] for _ in prompts]
        reasons = ["" for _ in prompts]
        for index, piece, *_ in generate(self.runner, self.runner.new_state(), prompts):
            texts[index].append(piece.text)
            tokens[index].extend(piece.tokens)
            reasons[index] = piece.finish_reason or ""
        return [
            Generation(
                text="".join(texts[i]),
                tokens=tuple(tokens[i]),
                finish_reason=reasons[i],
                prompt_tokens=len(prompt.tokens),
                completion_tokens=prompt.answer.count,
            )
            for i, prompt in enumerate(prompts)
        ]


def _whole_text_logits(model: Mistral, tokens: jax.Array) -> jax.Array:
    """int32 [1, T] -> float32 [T, V]."""
    return model.logits(model.hidden_states(jnp.asarray(tokens)))[0]
