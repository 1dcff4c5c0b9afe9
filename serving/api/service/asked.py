"""The contents of a request after its body is parsed: prompts, adapters, and what the response has besides the text.
`requests/` makes these values, and `responses/` uses them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from mistral_jax.adapters.choice import BASE, AdapterChoice
from mistral_jax.chat.output.formats import OutputFormat
from mistral_jax.chat.output.grammar import CallGrammar, ToolSpec, tool_call_grammar
from mistral_jax.chat.output.trigger import Trigger
from serving.engine.messages import ScalingsDetail, WantedScalings


@dataclass(frozen=True, slots=True)
class Prompt:
    """One encoded prompt, with its text if it may be echoed."""

    tokens: tuple[int, ...]
    text: str = ""
    at_start: bool = True
    """See `serving.engine.messages.Request.at_start`."""
    cut: bool = False
    """Whether it was truncated from the left; `text` is still the whole text."""
    in_reasoning: bool = False
    """Whether it ends with the start of the model's reasoning."""


@dataclass(frozen=True, slots=True)
class UsageInStream:
    """Which chunks of a stream have token counts."""

    at_end: bool = False
    in_each_chunk: bool = False


@dataclass(frozen=True, slots=True)
class TimesInStream:
    """What a stream says of times besides those in its last chunk."""

    in_each_chunk: bool = False
    progress: bool = False
    """Whether it tells how much of the prompt has been run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reported:
    """What a response tells about tokens, besides the log-probabilities of the completion."""

    prompt_logprobs: int | None = None
    """Number of most likely tokens to compute for each token of the prompt; None: no log-probabilities of the
    prompt."""
    own_prompt_logprobs: int | None = None
    """Number of those in the response's field `prompt_logprobs`; None: it has none."""
    echoes_logprobs: bool = False
    """Whether the prompt's log-probabilities are at the beginning of each choice's own."""
    token_ids: bool = False
    """Whether token ids are returned."""
    tokens_by_id: bool = False
    """Whether log-probabilities name tokens by their ids."""


TEXT_ONLY = Reported()


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportedScalings:
    """The adapter weights to report in the response."""

    detail: ScalingsDetail
    adapters: tuple[str, ...]
    """Names, in the order of the weights."""
    modules: tuple[str, ...]
    """Names of the modules, or "*" for all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterUse:
    """The model and the adapters that a request runs with."""

    model_id: str
    """`model` in the response."""
    choice: AdapterChoice = BASE
    keys: tuple[str, ...] = ()
    """See `serving.engine.messages.Request.adapters`."""
    scalings: WantedScalings | None = None
    reported: ReportedScalings | None = None
    label: str = ""
    """For the metrics: the adapter, "mixture", "weights" if the request fixes them, or empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolConstraint:
    """What a completion is held to."""

    grammar: str
    """llguidance's Lark, which may name control tokens: of the whole completion, or of the rest after `trigger`."""
    arguments: tuple[tuple[str, str], ...] = ()
    """What the grammar refers to as `@name`: names, and the JSON schemas of the tools' arguments as text. They are the
    user's, in the order of `ToolUse.callable`."""
    trigger: Trigger | None = None
    """What begins a call; None: the whole completion is constrained."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolUse:
    """What a request has to do with tools."""

    output: OutputFormat
    """What the model writes besides text."""
    shown: tuple[dict[str, Any], ...] = ()
    """The tools that the model sees, in OpenAI's form."""
    callable: tuple[ToolSpec, ...] = ()
    """The tools that it may call; none: calls are not looked for."""
    strict: frozenset[str] = frozenset()
    """Names of those whose schema must be enforced to the letter, because the request or the choice says so."""
    choice: Literal["auto", "required"] = "auto"
    """Whether the model decides, or has to call one of them."""
    parallel: bool = True
    """Whether it may call several."""
    legacy: bool = False
    """Whether the response has the older form, `function_call`."""

    @property
    def names(self) -> frozenset[str] | None:
        """Names of the tools that may be called; None: calls are not looked for."""
        return frozenset(tool.name for tool in self.callable) or None

    def constraint(self, *, in_reasoning: bool, leading_space: bool) -> ToolConstraint | None:
        """What the completion is held to; None: nothing.

        Args:
          in_reasoning: Whether the prompt has begun the reasoning.
          leading_space: `Tokenizer.strips_leading_space`.
        """
        if not self.callable:
            return None
        grammar = self._grammar(in_reasoning=in_reasoning, leading_space=leading_space)
        if self.choice == "required":
            return ToolConstraint(grammar=grammar.whole, arguments=grammar.arguments)
        return ToolConstraint(grammar=grammar.after_trigger, arguments=grammar.arguments, trigger=grammar.trigger)

    def whole_grammar(self, *, in_reasoning: bool, leading_space: bool) -> str:
        """The grammar of a completion that is calls. Args: see `constraint`."""
        return self._grammar(in_reasoning=in_reasoning, leading_space=leading_space).whole

    def _grammar(self, *, in_reasoning: bool, leading_space: bool) -> CallGrammar:
        return tool_call_grammar(
            self.output,
            self.callable,
            parallel=self.parallel,
            in_reasoning=in_reasoning,
            leading_space=leading_space,
        )
