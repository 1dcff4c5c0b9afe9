"""How the endpoints that generate text handle each known field. The order decides which of several refused fields the
error names. `serving.api.requests.unknown_fields` handles fields that are not in these tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from serving.api.endpoint import Body, Field

CHAT, TEXT = "chat", "completions"
_BOTH = (CHAT, TEXT)
_CHAT = (CHAT,)
_TEXT = (TEXT,)


def _honoured(name: str, note: str, endpoints: tuple[str, ...] = _BOTH) -> Field:
    return Field(name, "honoured", note, endpoints)


def _accepted(name: str, note: str, endpoints: tuple[str, ...] = _BOTH) -> Field:
    return Field(name, "accepted", note, endpoints)


def _refused(
    name: str,
    note: str,
    endpoints: tuple[str, ...] = _BOTH,
    *,
    neutral: tuple[Any, ...] = (),
    unless: Callable[[Body], bool] | None = None,
) -> Field:
    return Field(name, "refused", note, endpoints, neutral, unless)


def _value(body: Body, name: str) -> Any:
    return msgspec.json.decode(body[name]) if name in body else None


FIELDS: tuple[Field, ...] = (
    # OpenAI's fields.
    _honoured(
        "model",
        "a served model, an adapter, `base` for the model without adapters, or `default`; "
        "anything else is a 404 that lists what is served",
    ),
    _honoured(
        "messages",
        "roles system, developer (rendered as system), user, assistant, tool, function; text content only",
        _CHAT,
    ),
    _honoured("prompt", "text, list of texts, list of token ids, list of lists of token ids", _TEXT),
    _honoured(
        "max_tokens",
        "any positive integer, capped at the room that the prompt leaves; the completion then ends with `length`. "
        "0 generates nothing, on /v1/completions only",
    ),
    _honoured("max_completion_tokens", "the same as max_tokens, and takes precedence", _CHAT),
    _honoured("temperature", "0 to 2; 0 is exact argmax"),
    _honoured("top_p", "above 0, up to 1"),
    _honoured("presence_penalty", "-2 to 2"),
    _honoured("frequency_penalty", "-2 to 2"),
    _honoured(
        "logit_bias", "-100 to 100 by token id, at most 16384 ids; the error for ids outside the vocabulary names them"
    ),
    _honoured(
        "seed", "any 64-bit integer; sampling depends only on (seed, choice index, position), not on other requests"
    ),
    _honoured("stop", "a string or a list of strings, 16384 characters in total; not part of the completion"),
    _honoured("n", "1 to the server's --max-seqs"),
    _honoured("stream", "server-sent events"),
    _honoured("stream_options", "only together with stream"),
    _honoured("logprobs", "chat: true or false; completions: 0 to 20. Taken before penalties, bias and temperature"),
    _honoured("top_logprobs", "0 to 20; needs logprobs", _CHAT),
    _honoured("echo", "with logprobs, those of the prompt's tokens are returned too", _TEXT),
    _refused(
        "best_of",
        "only the value of n",
        _TEXT,
        unless=lambda body: _value(body, "best_of") == (_value(body, "n") or 1),
    ),
    _refused("suffix", "no fill-in-the-middle yet", _TEXT, neutral=("",)),
    _honoured(
        "tools",
        "functions, at most 128; refused if the model's chat format knows none. The arguments of a call match the "
        "function's schema",
        _CHAT,
    ),
    _honoured(
        "tool_choice",
        "none (the model does not see the tools), auto, required, a function by name, or allowed_tools",
        _CHAT,
    ),
    _honoured("functions", "the older form of tools; the response has function_call", _CHAT),
    _honoured("function_call", "the older form of tool_choice", _CHAT),
    _honoured("parallel_tool_calls", "false: at most one call", _CHAT),
    _honoured(
        "response_format",
        "text, json_object or json_schema; completions match the schema, strict or not. A schema that cannot be held "
        "in full is refused, and the error names the keyword. Extension on /v1/completions",
    ),
    _refused("modalities", "text only", _CHAT, neutral=(["text"], [])),
    _refused("audio", "text only", _CHAT),
    _refused("prediction", "no predicted outputs", _CHAT),
    _refused("web_search_options", "no web search", _CHAT),
    _honoured(
        "reasoning_effort",
        "a variable of the chat template or a setting of Mistral's v15 format; refused if the model has neither, "
        "except for `none` if it does not reason",
        _CHAT,
    ),
    _refused("verbosity", "no such control in the model", _CHAT, neutral=("medium",)),
    _accepted("user", "a label"),
    _accepted("safety_identifier", "a label", _CHAT),
    _accepted("metadata", "a label", _CHAT),
    _accepted("store", "nothing is stored; the completion is the same", _CHAT),
    _accepted("service_tier", "there is one tier", _CHAT),
    _accepted("prompt_cache_key", "a hint", _CHAT),
    _accepted("prompt_cache_retention", "a hint", _CHAT),
    # Fields of other servers.
    _honoured("top_k", "extension; 0, -1 and anything from the vocabulary's size on keep all tokens"),
    _honoured("min_p", "extension; 0 to 1"),
    _honoured("repetition_penalty", "extension; above 0, up to 10; looks back on the server's --repeat-last-n tokens"),
    _honoured("ignore_eos", "extension, for benchmarks"),
    _honoured("timings_per_token", "extension of llama.cpp; in a stream, `timings` of its choice in every chunk"),
    _honoured(
        "return_progress", "extension of llama.cpp; in a stream, chunks with `prompt_progress` while the prompt is run"
    ),
    _accepted("cache_prompt", "extension of llama.cpp; a hint"),
    _accepted("priority", "extension of vLLM; requests are served in order of arrival"),
    _refused("min_tokens", "extension of vLLM", neutral=(0,)),
    _refused("stop_token_ids", "extension of vLLM", neutral=([],)),
    _refused("include_stop_str_in_output", "extension of vLLM", neutral=(False,)),
    _refused("bad_words", "extension of vLLM", neutral=([],)),
    _refused("allowed_token_ids", "extension of vLLM"),
    _refused("prompt_logprobs", "extension of vLLM; /v1/completions has echo with logprobs"),
    _refused("truncate_prompt_tokens", "extension of vLLM; the server has --truncate-sequence"),
    _refused("skip_special_tokens", "extension of vLLM", neutral=(True,)),
    _refused("use_beam_search", "extension of vLLM", neutral=(False,)),
    _refused("length_penalty", "extension of vLLM", neutral=(1, 1.0)),
    _refused("add_generation_prompt", "extension of vLLM", _CHAT, neutral=(True,)),
    _refused("continue_final_message", "extension of vLLM", _CHAT, neutral=(False,)),
    _refused("chat_template", "templates come from the model or --chat-template, never from a request", _CHAT),
    _refused("chat_template_kwargs", "extension of vLLM", _CHAT, neutral=({},)),
    _refused("documents", "extension of vLLM", _CHAT, neutral=([],)),
    _honoured("structured_outputs", "extension of vLLM; json, regex, choice, grammar or json_object"),
    _honoured("guided_json", "extension; a JSON schema, or one as text"),
    _honoured("guided_regex", "extension; as regex"),
    _honoured("guided_choice", "extension; a list of texts"),
    _honoured("guided_grammar", "extension; as grammar"),
    _honoured("json_schema", "extension of llama.cpp; a JSON schema"),
    _honoured("regex", "extension; a regular expression for the whole completion"),
    _honoured("ebnf", "extension of SGLang; a grammar in GBNF"),
    _honoured("grammar", "extension; GBNF if it has `::=`, else Lark; or an object with type and value"),
    _refused("typical_p", "extension of llama.cpp", neutral=(1, 1.0)),
    _refused("mirostat", "extension of llama.cpp", neutral=(0,)),
    _refused("dry_multiplier", "extension of llama.cpp", neutral=(0, 0.0)),
    _refused("xtc_probability", "extension of llama.cpp", neutral=(0, 0.0)),
    _refused("samplers", "extension of llama.cpp"),
    _honoured(
        "adapter",
        "extension; a LoRA adapter by name, or `base` for none; not together with a model that names another adapter",
    ),
    _honoured("adapters", "extension; a mixture with fixed weights: from -100 to 100, by adapter name"),
    _honoured(
        "xlora",
        "extension; scalings (summary, tokens or full) and non_granular_index; unknown fields in it are refused",
    ),
    _honoured(
        "lora",
        "extension of llama.cpp; the same, by number: `[{id, scale}]`, see GET /lora-adapters; `[]` means absent",
    ),
)

OBJECTS: dict[str, tuple[Field, ...]] = {
    "stream_options": (
        _honoured("include_usage", "an additional last chunk, without choices, has the token counts of the call"),
        _honoured(
            "continuous_usage_stats",
            "extension of vLLM; every chunk of a choice has the token counts of that choice so far, prompt included",
        ),
    ),
    "response_format": (
        _honoured("type", "text, json_object or json_schema"),
        _honoured("json_schema", "for the type json_schema"),
        _honoured("schema", "extension of llama.cpp; for the type json_object, a JSON schema"),
    ),
    "response_format.json_schema": (
        _accepted("name", "a label"),
        _accepted("description", "a label"),
        _honoured("schema", "the JSON schema"),
        _honoured("strict", "completions match the schema with and without it"),
    ),
    "structured_outputs": (
        _honoured("json", "a JSON schema, or one as text"),
        _honoured("regex", "a regular expression for the whole completion"),
        _honoured("choice", "a list of texts"),
        _honoured("grammar", "as the field `grammar`"),
        _honoured("json_object", "any JSON object"),
        _refused("structural_tag", "use tools, or a grammar"),
    ),
    "messages[]": (
        _honoured("role", "see above", _CHAT),
        _honoured("content", "a string, or a list of text parts, which are joined by line breaks", _CHAT),
        _honoured("name", "passed to the chat template", _CHAT),
        _honoured("tool_calls", "earlier calls, passed to the chat template with their arguments as objects", _CHAT),
        _honoured("tool_call_id", "the call that a message of the role tool is the result of", _CHAT),
        _honoured("function_call", "the older form of tool_calls", _CHAT),
        _honoured("reasoning_content", "extension; passed to the chat template", _CHAT),
        _accepted("cache_control", "a hint that some clients add", _CHAT),
    ),
    "messages[].tool_calls[]": (
        _honoured("id", "ids that Mistral's models do not know are replaced in the prompt", _CHAT),
        _honoured("type", "`function`", _CHAT),
        _honoured("function", "name, and arguments: the JSON text of an object, or the object", _CHAT),
        _accepted("index", "some clients send back what they were sent in a stream", _CHAT),
    ),
    "tools[]": (
        _honoured("type", "`function`; others are refused", _CHAT),
        _honoured("function", "the function", _CHAT),
    ),
    "tools[].function": (
        _honoured("name", "1 to 64 letters, digits, underscores and dashes", _CHAT),
        _honoured("description", "passed to the chat template", _CHAT),
        _honoured("parameters", "JSON schema of the arguments; passed to the chat template, and enforced", _CHAT),
        _honoured("strict", "refuses schemas that cannot be enforced to the letter", _CHAT),
    ),
    "tool_choice": (
        _honoured("type", "`function` or `allowed_tools`; others are refused", _CHAT),
        _honoured("function", "the name of the one to call", _CHAT),
        _honoured("allowed_tools", "mode (`auto` or `required`), and tools: functions by name", _CHAT),
    ),
    "functions[]": (
        _honoured("name", "as of tools", _CHAT),
        _honoured("description", "as of tools", _CHAT),
        _honoured("parameters", "as of tools", _CHAT),
        _honoured("strict", "as of tools", _CHAT),
    ),
    "messages[].content[]": (
        _honoured("type", "`text`; others are refused", _CHAT),
        _honoured("text", "the text", _CHAT),
        _accepted("cache_control", "a hint that some clients add", _CHAT),
        _refused("image_url", "text only", _CHAT),
        _refused("input_audio", "text only", _CHAT),
        _refused("file", "text only", _CHAT),
        _refused("refusal", "text only", _CHAT),
    ),
}
"""The objects in a body whose fields are checked, by path."""


def fields_of(endpoint: str) -> tuple[Field, ...]:
    """The entries of `FIELDS` for an endpoint."""
    return tuple(field for field in FIELDS if endpoint in field.endpoints)


def objects_of(endpoint: str) -> dict[str, tuple[Field, ...]]:
    """The entries of `OBJECTS` for an endpoint."""
    found = {
        where: tuple(field for field in fields if endpoint in field.endpoints) for where, fields in OBJECTS.items()
    }
    return {where: fields for where, fields in found.items() if fields}
