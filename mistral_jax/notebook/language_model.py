"""The notebook API: a loaded model with its tokenizer.

    import mistral_jax
    model = mistral_jax.load("demo")
    print(model.chat("What is a KV cache?"))
    for text in model.stream("Once upon a time"):
        print(text, end="")

With adapters:

    model = mistral_jax.load("mistralai/Mistral-7B-Instruct-v0.1", xlora="lamm-mit/x-lora")
    print(model.chat("What is silk made of?"))
    print(model.chat("What is silk made of?", adapter="base"))

Lower levels are accessible, too: `model.runner` holds the jitted programs and `model.module` the Flax module.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast, overload

import jax
import numpy as np

from mistral_jax.adapters.bank import AdapterSet, BankFullError
from mistral_jax.adapters.choice import BASE_NAME, AdapterChoice
from mistral_jax.adapters.load_adapters import open_adapters
from mistral_jax.adapters.selection import AdapterSelectionError, numbered, select
from mistral_jax.adapters.xlora import XLoRA
from mistral_jax.checkpoint.description import ModelDescription
from mistral_jax.grammar.cache import CompiledGrammars
from mistral_jax.grammar.compiler import CompiledGrammar, GrammarCompiler
from mistral_jax.grammar.grammar import Grammar
from mistral_jax.model.config import ConfigError
from mistral_jax.model.mistral import Mistral
from mistral_jax.notebook.embed import embed
from mistral_jax.notebook.generate import TextRequest, generate
from mistral_jax.notebook.results import Generation, Scalings, TextLogprobs
from mistral_jax.notebook.whole_completions import whole_completions
from mistral_jax.notebook.whole_text import WholeTexts
from mistral_jax.runtime.buckets import DEFAULT_CHUNKS
from mistral_jax.runtime.pooling import Pooling
from mistral_jax.runtime.runner import Runner
from mistral_jax.runtime.sampling.params import SamplingParams, completion_limit
from mistral_jax.runtime.sampling.sample import NO_TOKEN
from mistral_jax.text.completion import CompletionStream
from mistral_jax.text.detokenizer import begins_text
from mistral_jax.text.token_rules import with_token_rules

DEFAULT_LENGTH = 4096
"""Default length of a sequence: long enough for a conversation, small enough to allocate."""


Text = str | Sequence[int] | list[dict[str, Any]]
"""A raw text, its token ids, or a conversation of OpenAI-style messages."""


class LanguageModel:
    """A model ready to generate. Not thread-safe: for several callers use the server.

    Methods that generate take three arguments for models with adapters. By default the X-LoRA classifier mixes the
    adapters for each token; a model without a classifier runs as its base model until an adapter is named.

      adapter: the name of one adapter to use alone; or "base", the model without adapters.
      adapters: a mixture by hand: adapter weights by name.
      freeze_after: keep the mixture of this completion token (1: the first) for all later ones; faster, but an
        approximation.

    And one for models of all kinds:

      grammar: what the completion must match, such as `Grammar.json_schema({...})`.

    Attributes:
      module: the Flax module.
      runner: the jitted programs, adapters and classifier; see `mistral_jax.runtime.runner` for driving it by hand.
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
        adapters: AdapterSet | None = None,
        xlora: XLoRA | None = None,
    ) -> None:
        """Args: see `mistral_jax.load` and `mistral_jax.runtime.runner.Runner`."""
        if adapters is not None:
            _check_name(*adapters.entries)
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
            adapters=adapters,
            xlora=xlora,
        )

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters; the experts of the X-LoRA mixture come first."""
        available = self.runner.adapters
        return () if available is None else tuple(entry.name for entry in numbered(available))

    def load_adapter(self, name: str, source: str | Path) -> None:
        """Add a LoRA adapter, in the room that `load` reserved (`spare_adapters`).

        Args:
          source: its folder or Hub id.
        Raises:
          BankFullError: there is no room.
          ValueError, AdapterError, ModelNotFoundError: the name is taken, or the adapter is broken, does not fit or
            does not exist.
        """
        available = self.runner.adapters
        if available is None or not available.largest_spare_rank:
            raise BankFullError("no room is reserved for more adapters; load the model with spare_adapters=1 or more")
        _check_name(name)
        opened = open_adapters(self.config, loras={name: source})
        try:
            available.load(opened.loras[0])
        finally:
            opened.close()

    def unload_adapter(self, name: str) -> None:
        """Remove an adapter, and free its room. No stream that uses it may continue.

        Raises:
          AdapterSelectionError: there is no such adapter, or it is an expert of the X-LoRA mixture.
        """
        available, xlora = self.runner.adapters, self.runner.xlora
        if available is None or name not in available.entries:
            raise AdapterSelectionError(
                f"there is no adapter {name!r}; the model has {', '.join(self.adapters) or 'none'}"
            )
        if xlora is not None and available.entries[name].number < xlora.num_experts:
            raise AdapterSelectionError(f"{name!r} is an expert of the X-LoRA mixture, which needs it")
        available.unload(name)

    def encode(self, text: str) -> list[int]:
        """Token ids of a raw prompt, with BOS if the model uses one."""
        bos = [self.tokenizer.bos_id] if self.tokenizer.add_bos and self.tokenizer.bos_id is not None else []
        return bos + self.tokenizer.encode(text)

    def encode_chat(self, messages: str | list[dict[str, Any]], **template: Any) -> list[int]:
        """Token ids of a conversation in the model's chat template, with the prompt for the assistant's next message
        unless the last message is the assistant's.

        Args:
          messages: OpenAI-style messages, or a single user message.
          template: other arguments of `ChatFormatter.encode`: `continue_final_message`, `documents`, variables.
        """
        if self.chat_formatter is None:
            raise ConfigError("this model has no chat template; use generate, or load it with chat_template=…")
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        answered = bool(messages) and messages[-1].get("role") == "assistant"
        return self.chat_formatter.encode(messages, add_generation_prompt=not answered, **template)

    @overload
    def generate(self, prompt: Text, params: SamplingParams | None = None, **settings: Any) -> Generation: ...

    @overload
    def generate(
        self, prompt: list[str], params: SamplingParams | None = None, **settings: Any
    ) -> list[Generation]: ...

    def generate(
        self,
        prompt: Text | list[str],
        params: SamplingParams | None = None,
        *,
        adapter: str | None = None,
        adapters: Mapping[str, float] | None = None,
        freeze_after: int | None = None,
        grammar: Grammar | None = None,
        keep_weights: bool = False,
        **settings: Any,
    ) -> Generation | list[Generation]:
        """Complete a raw prompt, several at once, or a conversation.

        Args:
          prompt: a text, its token ids, a conversation, or a list of texts, which run in batches of up to `slots`.
          params: sampling parameters; None: the model's defaults.
          adapter, adapters, freeze_after, grammar: see the class.
          keep_weights: return the adapter weights with the completion, token by token.
          settings: fields of `SamplingParams` to override, such as `temperature=0.7, bad_words=("foo",)`.
        Returns: a `Generation`; a list of them for a list of texts.
        """
        chosen, choice = self._params(params, settings), self._choice(adapter, adapters, freeze_after)
        many = isinstance(prompt, list) and all(isinstance(p, str) for p in prompt)
        texts = cast("list[Text]", prompt if many else [prompt])
        compiled = self._compiled(grammar)
        prompts = [self._prompt(self._encoded(text), chosen, choice, compiled, keep_weights) for text in texts]
        completions = whole_completions(self.runner, prompts)
        return completions if many else completions[0]

    def stream(
        self,
        prompt: Text,
        params: SamplingParams | None = None,
        *,
        adapter: str | None = None,
        adapters: Mapping[str, float] | None = None,
        freeze_after: int | None = None,
        grammar: Grammar | None = None,
        **settings: Any,
    ) -> Iterator[str]:
        """As `generate`, yielding pieces of text."""
        request, chosen = self._encoded(prompt), self._params(params, settings)
        yield from self._stream(request, chosen, self._choice(adapter, adapters, freeze_after), grammar)

    def chat(self, messages: str | list[dict[str, Any]], params: SamplingParams | None = None, **settings: Any) -> str:
        """The assistant's reply to a user message or OpenAI-style messages. Adapters are chosen as in `stream`."""
        return "".join(self.stream_chat(messages, params, **settings))

    def stream_chat(
        self,
        messages: str | list[dict[str, Any]],
        params: SamplingParams | None = None,
        *,
        adapter: str | None = None,
        adapters: Mapping[str, float] | None = None,
        freeze_after: int | None = None,
        grammar: Grammar | None = None,
        **settings: Any,
    ) -> Iterator[str]:
        """As `chat`, yielding pieces of text."""
        request, chosen = (self.encode_chat(messages), True), self._params(params, settings)
        yield from self._stream(request, chosen, self._choice(adapter, adapters, freeze_after), grammar)

    def logits(
        self, text: Text, *, adapter: str | None = None, adapters: Mapping[str, float] | None = None
    ) -> jax.Array:
        """The model's logits after each token of a text: float32 [T, V], from one pass (two with X-LoRA) without a
        cache."""
        return self._whole_texts.logits(self._encoded(text)[0], self._choice(adapter, adapters, None))

    def logprobs(
        self, text: Text, *, adapter: str | None = None, adapters: Mapping[str, float] | None = None
    ) -> TextLogprobs:
        """The log-probability of each token of a text, given those before it."""
        tokens = self._encoded(text)[0]
        table = np.asarray(jax.nn.log_softmax(self.logits(tokens, adapter=adapter, adapters=adapters), axis=-1))
        chosen = table[np.arange(len(tokens) - 1), tokens[1:]]
        return TextLogprobs(
            tokens=tuple(tokens),
            texts=tuple(self.tokenizer.token_text(t) for t in tokens),
            logprobs=np.concatenate([[np.nan], chosen]).astype(np.float32),
        )

    def embed(
        self,
        texts: Text | list[str],
        *,
        pooling: Pooling = "mean",
        dimensions: int | None = None,
        adapter: str | None = None,
        adapters: Mapping[str, float] | None = None,
    ) -> np.ndarray:
        """Embeddings: hidden states after the final norm, pooled over a text's tokens and scaled to length 1.

        Args:
          texts: as `prompt` of `generate`.
          pooling: "mean" of all tokens, or the "last" one.
          dimensions: keep this many of the first; None: all.
        Returns: float32 [D], or [len(texts), D] for a list of texts.
        """
        many = isinstance(texts, list) and all(isinstance(text, str) for text in texts)
        tokens = [self._encoded(text)[0] for text in cast("list[Text]", texts if many else [texts])]
        choice = self._choice(adapter, adapters, None)
        found = embed(self.runner, tokens, choice, pooling=pooling, dimensions=dimensions)
        return found if many else found[0]

    def scalings(self, text: Text) -> Scalings:
        """X-LoRA scalings after each token of a text, from one pass without a cache.

        Raises:
          ValueError: the model has no classifier.
        """
        tokens = self._encoded(text)[0]
        values, weights = self._whole_texts.scalings(tokens)
        xlora = self.runner.xlora
        assert xlora is not None
        return Scalings(
            tokens=tuple(tokens),
            texts=tuple(self.tokenizer.token_text(t) for t in tokens),
            adapters=self.adapters[: xlora.num_experts],
            modules=tuple(key for key, _ in sorted(xlora.columns.index, key=lambda item: item[1])),
            values=values,
            weights=weights,
            softmax=xlora.config.enable_softmax,
        )

    @cached_property
    def grammars(self) -> CompiledGrammars:
        """Compiles grammars for the model's vocabulary, and keeps some."""
        eos_ids = self.description.eos_ids
        return CompiledGrammars(GrammarCompiler(self.tokenizer, vocab_size=self.config.vocab_size, eos_ids=eos_ids))

    def _compiled(self, grammar: Grammar | None) -> CompiledGrammar | None:
        return None if grammar is None else self.grammars.compile(grammar)

    @cached_property
    def _whole_texts(self) -> WholeTexts:
        return WholeTexts(self.runner)

    def _encoded(self, text: Text) -> tuple[list[int], bool]:
        """Token ids, and whether a completion starts a new text."""
        if not isinstance(text, str) and any(isinstance(message, dict) for message in text):
            return self.encode_chat(cast("list[dict[str, Any]]", text)), True
        tokens = self.encode(text) if isinstance(text, str) else [int(t) for t in cast("Sequence[int]", text)]
        return tokens, bool(tokens) and begins_text(self.tokenizer, tokens)

    def _choice(
        self, adapter: str | None, adapters: Mapping[str, float] | None, freeze_after: int | None
    ) -> AdapterChoice:
        return select(
            self.runner.adapters,
            xlora=self.runner.xlora is not None,
            adapter=adapter,
            adapters=adapters,
            freeze_after=freeze_after,
        )

    def _params(self, params: SamplingParams | None, settings: dict[str, Any]) -> SamplingParams:
        chosen = SamplingParams(**self.description.defaults) if params is None else params
        chosen = replace(chosen, **settings)
        for name in ("logit_bias", "stop_token_ids", "allowed_token_ids"):
            too_large = [token for token in getattr(chosen, name) or () if token >= self.config.vocab_size]
            if too_large:
                raise ValueError(f"{name} names token {too_large[0]}; the vocabulary has {self.config.vocab_size}")
        return with_token_rules(chosen, self.tokenizer, self.description.eos_ids)

    def _prompt(
        self,
        request: tuple[list[int], bool],
        params: SamplingParams,
        choice: AdapterChoice,
        grammar: CompiledGrammar | None,
        keep_weights: bool = False,
    ) -> TextRequest:
        tokens, at_start = request
        if params.max_tokens == 0:
            raise ValueError("max_tokens is 0: nothing would be generated; `logprobs` tells how likely a text is")
        seed = secrets.randbits(63) if params.seed is None else params.seed
        if grammar is not None and params.ignore_eos:
            raise ValueError("ignore_eos: not together with a grammar, which says where the completion ends")
        room = self.runner.length - len(tokens)
        if not tokens or room < 1:
            raise ValueError(
                f"the prompt has {len(tokens)} tokens; expected 1 to {self.runner.length - 1} (see `length` of load)"
            )
        most = completion_limit(params.max_tokens, prompt_tokens=len(tokens), length=self.runner.length)
        completion = CompletionStream(
            self.tokenizer, params, eos_ids=self.description.eos_ids, max_tokens=most, at_start=at_start
        )
        sampled = replace(params, seed=seed)
        return TextRequest(
            tokens=tuple(tokens),
            params=sampled,
            completion=completion,
            choice=choice,
            keep_weights=keep_weights,
            constraint=None if grammar is None else grammar.start(at_start=at_start),
        )

    def _stream(
        self, request: tuple[list[int], bool], params: SamplingParams, choice: AdapterChoice, grammar: Grammar | None
    ) -> Iterator[str]:
        prompt = self._prompt(request, params, choice, self._compiled(grammar))
        for _, piece, sampled, _ in generate(self.runner, self.runner.new_state(), [prompt]):
            if piece.text:
                yield piece.text
            if piece.finish_reason == "error" and sampled.token == NO_TOKEN:
                raise ValueError("no token is left to choose: the parameters exclude all of them")
            if piece.finish_reason == "error":
                raise FloatingPointError("the model produced values that are not numbers; its weights may be damaged")


def _check_name(*names: str) -> None:
    if BASE_NAME in names:
        raise ValueError(
            f"an adapter cannot be called {BASE_NAME!r}, which stands for the model without any; rename it"
        )
