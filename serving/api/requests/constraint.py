"""From the format that a request asks for, and its tools, to the constraint of its completions."""

from __future__ import annotations

import json
from dataclasses import dataclass

import anyio
import anyio.to_thread

from mistral_jax.chat.output.constraint import TriggeredGrammar
from mistral_jax.chat.output.grammar import reasoning_before
from mistral_jax.chat.output.trigger import Trigger
from mistral_jax.grammar.grammar import Grammar, GrammarError
from serving.api.errors import InvalidRequestError
from serving.api.requests.output_format import RequestedFormat
from serving.api.service.asked import ToolUse
from serving.api.service.service import Service
from serving.engine.messages import StartConstraint

_ANY_OBJECT = Grammar.json_schema(json.dumps({"type": "object"}))


async def constraint_of(
    service: Service,
    wanted: RequestedFormat | None,
    tools: ToolUse | None,
    *,
    in_reasoning: bool,
    ignore_eos: bool,
    limiter: anyio.CapacityLimiter,
) -> StartConstraint | None:
    """Compile what the completions of a request must match, off the event loop; None: they are free.

    Args:
      wanted: the format that the request asks for.
      tools: its tools, and how the model marks calls and reasoning.
      in_reasoning: whether the prompt has begun the reasoning.
      ignore_eos: whether the completion goes on after its end.
      limiter: bounds how many are compiled at a time.

    Raises:
      InvalidRequestError: the format is not valid, asks for what cannot be held, or exceeds a limit; or it is asked for
        together with `ignore_eos`.
    """
    if wanted is None and (tools is None or not tools.callable):
        return None
    if ignore_eos and wanted is not None:
        raise InvalidRequestError(
            f"ignore_eos: not together with {wanted.param}, which says where the completion ends", param="ignore_eos"
        )
    return await anyio.to_thread.run_sync(_compile, service, wanted, tools, in_reasoning, limiter=limiter)


def _compile(
    service: Service, wanted: RequestedFormat | None, tools: ToolUse | None, in_reasoning: bool
) -> StartConstraint:
    output = None
    if wanted is not None:
        try:
            output = service.grammars.compile(wanted.grammar)
        except GrammarError as error:
            raise InvalidRequestError(f"{wanted.param}: {error}", param=wanted.param, code="invalid_grammar") from error
    if tools is None or (not tools.callable and tools.output.reasoning is None):
        assert output is not None
        return output
    combined = _combined(service, None if wanted is None else wanted.grammar, tools, in_reasoning)
    try:
        compiled = service.grammars.compile(combined.grammar)
    except GrammarError as error:
        raise InvalidRequestError(f"tools: {error}", param="tools", code="invalid_grammar") from error
    if combined.trigger is None:
        return compiled
    return TriggeredGrammar(
        combined.trigger,
        compiled,
        token_bytes=service.tokenizer.token_bytes,
        vocab_size=service.tokenizer.vocab_size,
        eos_ids=service.card.eos_ids,
    )


@dataclass(frozen=True, slots=True)
class _Combined:
    grammar: Grammar
    trigger: Trigger | None = None
    """What the grammar begins after; None: it is that of the whole completion."""


def _combined(service: Service, output: Grammar | None, tools: ToolUse, in_reasoning: bool) -> _Combined:
    """One grammar for reasoning, tool calls and the requested format."""
    leading_space = service.tokenizer.strips_leading_space
    space = "SPACE? " if leading_space else ""
    calls = tools.constraint(in_reasoning=in_reasoning, leading_space=leading_space)
    if calls is None:
        assert output is not None
        before, rules = reasoning_before(tools.output.reasoning, in_reasoning=in_reasoning)
        helpers = ['SPACE: " "', r"WS: /[ \t\r\n]{1,8}/"]
        lark = "\n".join([f"start: {before}{space}@output", *helpers, *rules, ""])
        return _Combined(Grammar.trusted(lark, {"output": output}))
    parts = {
        name: _arguments(service, index, schema, strict=tool.name in tools.strict)
        for index, ((name, schema), tool) in enumerate(zip(calls.arguments, tools.callable, strict=True))
    }
    if output is None or tools.choice == "required":
        return _Combined(Grammar.trusted(calls.grammar, parts), calls.trigger)
    # Either calls, or a response in the requested format: decided by how the completion begins.
    whole = tools.whole_grammar(in_reasoning=in_reasoning, leading_space=leading_space)
    before, _ = reasoning_before(tools.output.reasoning, in_reasoning=in_reasoning)
    lark = f"start: calls_only | {before}{space}@output\n" + whole.replace("start:", "calls_only:", 1)
    return _Combined(Grammar.trusted(lark, {**parts, "output": output}))


def _arguments(service: Service, index: int, schema: str, *, strict: bool) -> Grammar:
    """The grammar of one tool's arguments. Where nothing promises that they match the schema, a schema that cannot be
    held is replaced by any object.

    Raises:
      InvalidRequestError: the schema must be held, and cannot be.
    """
    grammar = Grammar.json_schema(schema, strict=strict)
    try:
        service.grammars.compile(grammar)
    except GrammarError as error:
        if not strict:
            return _ANY_OBJECT
        where = f"tools[{index}].function.parameters"
        raise InvalidRequestError(f"{where}: {error}", param=where, code="invalid_grammar") from error
    return grammar
