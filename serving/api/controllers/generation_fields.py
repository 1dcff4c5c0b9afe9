"""How the endpoints that generate text handle each known field. The order decides which of several refused fields the
error names. `serving.api.requests.bodies.unknown_fields` handles fields that are not in these tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
    _honoured(
        "stop",
        "a string or a list of strings, 16384 characters in total; not part of the completion, but returned as "
        "`stop_reason`",
    ),
    _honoured("n", "1 to the server's --max-seqs"),
    _honoured("stream", "server-sent events"),
    _honoured("stream_options", "only together with stream"),
    _honoured("logprobs", "chat: true or false; completions: 0 to 20. Taken before penalties, bias and temperature"),
    _honoured("top_logprobs", "0 to 20; needs logprobs", _CHAT),
    _honoured("echo", "with logprobs, those of the prompt's tokens are returned too", _TEXT),
    _honoured(
        "best_of",
        "n to the server's --max-seqs; the n completions with the largest mean log-probability are returned, the best "
        "first. Not together with stream",
        _TEXT,
    ),
    _honoured(
        "suffix",
        "for models with control tokens for it, such as Codestral; needs a prompt that is a text; not together with "
        "echo",
        _TEXT,
    ),
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
    _accepted("prediction", "a hint, which does not change the completion", _CHAT),
    _refused("web_search_options", "no web search", _CHAT),
    _honoured(
        "reasoning_effort",
        "a variable of the chat template or a setting of Mistral's v15 format; refused if the model has neither, "
        "except for `none` if it does not reason",
        _CHAT,
    ),
    _accepted("verbosity", "a hint for which these models have no control", _CHAT),
    _refused("moderation", "nothing is moderated", _CHAT),
    _accepted("user", "a label"),
    _accepted("safety_identifier", "a label", _CHAT),
    _accepted("metadata", "a label", _CHAT),
    _accepted("store", "nothing is stored; the completion is the same", _CHAT),
    _accepted("service_tier", "there is one tier", _CHAT),
    _accepted("prompt_cache_key", "a hint", _CHAT),
    _accepted("prompt_cache_retention", "a hint", _CHAT),
    _accepted("prompt_cache_options", "a hint", _CHAT),
    # Fields of other servers.
    _honoured("top_k", "extension; 0, -1 and anything from the vocabulary's size on keep all tokens"),
    _honoured("min_p", "extension; 0 to 1"),
    _honoured("repetition_penalty", "extension; above 0, up to 10; looks back on the server's --repeat-last-n tokens"),
    _honoured("ignore_eos", "extension, for benchmarks"),
    _honoured("timings_per_token", "extension of llama.cpp; in a stream, `timings` of its choice in every chunk"),
    _honoured(
        "return_progress", "extension of llama.cpp; in a stream, chunks with `prompt_progress` while the prompt is run"
    ),
    _honoured(
        "cache_prompt",
        "extension of llama.cpp; false: the whole prompt is run, and nothing of it is kept for later requests",
    ),
    _honoured(
        "cache_salt",
        "extension of vLLM; what is kept of a prompt serves requests of the same salt only; at most 256 characters",
    ),
    _honoured(
        "priority",
        "extension of vLLM; of the requests of one API key that wait, lower numbers are served earlier, equal ones "
        "in order of arrival. The one that has waited longest is overtaken at most three times in a row",
    ),
    _honoured(
        "min_tokens",
        "extension of vLLM; before that many tokens no end-of-sequence token and none of `stop_token_ids` is chosen, "
        "and no stop string ends the completion",
    ),
    _honoured("stop_token_ids", "extension of vLLM; at most 1024 ids; not part of the text"),
    _honoured("include_stop_str_in_output", "extension of vLLM; for stop strings and stop tokens"),
    _honoured(
        "bad_words",
        "extension of vLLM; each is banned in the tokens of two spellings, with and without a space before it: at most "
        "16 tokens each, and 256 spellings of several tokens",
    ),
    _honoured("allowed_token_ids", "extension of vLLM; a completion ends by itself only if they contain an ending one"),
    _honoured(
        "prompt_logprobs",
        "extension of vLLM; 0 to 20; returned in a field of this name, with ranks. Not together with stream",
    ),
    _honoured("return_token_ids", "extension of vLLM; as `token_ids` and `prompt_token_ids`, also in streams"),
    _honoured("return_tokens_as_token_ids", "extension of vLLM; in log-probabilities tokens are named `token_id:123`"),
    _honoured(
        "truncate_prompt_tokens",
        "extension of vLLM; keeps this many of the last tokens, and a leading BOS token among them; -1: as many as the "
        "context has room for",
    ),
    _honoured("skip_special_tokens", "extension of vLLM; with false, control tokens appear in the text by their names"),
    _accepted("spaces_between_special_tokens", "extension of vLLM; tokens are written as they are, without spaces"),
    _refused("use_beam_search", "extension of vLLM; no beam search", neutral=(False,)),
    _refused("length_penalty", "extension of vLLM; no beam search", neutral=(1, 1.0)),
    _honoured("add_generation_prompt", "extension of vLLM; true unless `continue_final_message` is", _CHAT),
    _honoured(
        "continue_final_message",
        "extension of vLLM; the completion continues the last message's text. Not together with "
        "`add_generation_prompt`",
        _CHAT,
    ),
    _refused("chat_template", "templates come from the model or --chat-template, never from a request", _CHAT),
    _honoured(
        "chat_template_kwargs",
        "extension of vLLM; at most 16 KiB, 128 values and 8 levels. Reserved names are refused; those that the "
        "template does not read are reported as unknown fields are",
        _CHAT,
    ),
    _honoured("documents", "extension of vLLM; refused if the template does not read them", _CHAT),
    _honoured("structured_outputs", "extension of vLLM; json, regex, choice, grammar or json_object"),
    _honoured("guided_json", "extension; a JSON schema, or one as text"),
    _honoured("guided_regex", "extension; as regex"),
    _honoured("guided_choice", "extension; a list of texts"),
    _honoured("guided_grammar", "extension; as grammar"),
    _honoured("json_schema", "extension of llama.cpp; a JSON schema"),
    _honoured("regex", "extension; a regular expression for the whole completion"),
    _honoured("ebnf", "extension of SGLang; a grammar in GBNF"),
    _honoured("grammar", "extension; GBNF if it has `::=`, else Lark; or an object with type and value"),
    _honoured("typical_p", "extension of llama.cpp; above 0, up to 1"),
    _honoured("top_n_sigma", "extension of llama.cpp; 0 to 100; 0 keeps all tokens"),
    _honoured(
        "xtc_probability",
        "extension of llama.cpp; 0 to 1. Its draws depend on seed and position, and are not those of the tokens",
    ),
    _honoured("xtc_threshold", "extension of llama.cpp; 0 to 1"),
    _honoured("dry_multiplier", "extension of llama.cpp; 0 to 100; repetitions of more than 50 tokens count as 50"),
    _honoured("dry_base", "extension of llama.cpp; 1 to 10"),
    _honoured("dry_allowed_length", "extension of llama.cpp; 1 to 50"),
    _honoured("dry_penalty_last_n", "extension of llama.cpp; -1: the whole context"),
    _honoured(
        "dry_sequence_breakers",
        "extension of llama.cpp; at most 32 texts; a token breaks a repetition if its text contains one, and a text "
        "that no token contains is refused",
    ),
    _honoured(
        "samplers",
        "extension of llama.cpp; only a list whose result is that of the order here: penalties, dry, temperature, "
        "top_n_sigma, top_k, typ_p, top_p, min_p, xtc",
    ),
    _refused("min_keep", "extension of llama.cpp; truncation keeps at least one token", neutral=(0, 1)),
    _refused(
        "mirostat",
        "extension of llama.cpp; its state would make a token depend on more than seed, position and text",
        neutral=(0,),
    ),
    _accepted("mirostat_tau", "extension of llama.cpp; read with mirostat only"),
    _accepted("mirostat_eta", "extension of llama.cpp; read with mirostat only"),
    _refused("dynatemp_range", "extension of llama.cpp; the temperature is that of the request", neutral=(0,)),
    _accepted("dynatemp_exponent", "extension of llama.cpp; read with dynatemp_range only"),
    _refused("t_max_predict_ms", "extension of llama.cpp; the server has --request-timeout", neutral=(0, -1)),
    _accepted("id_slot", "extension of llama.cpp; a hint; slots are not assigned by requests"),
    _refused("prompt_embeds", "extension of vLLM; embeddings are no prompts"),
    _refused("logits_processors", "extension of vLLM; requests bring no code", neutral=([],)),
    _refused("custom_logit_processor", "extension of SGLang; requests bring no code"),
    _refused("stop_regex", "extension of SGLang; send strings in `stop`, or a regex for the whole", neutral=([], "")),
    _refused("thinking_token_budget", "extension of vLLM; send reasoning_effort", _CHAT),
    _accepted("guided_decoding_backend", "extension of vLLM; there is one"),
    _refused("extra_key", "extension of SGLang; send cache_salt", neutral=("", [])),
    _accepted("request_id", "extension of vLLM; send the header X-Request-Id"),
    _accepted("rid", "extension of SGLang; send the header X-Request-Id"),
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
        _accepted("include_obfuscation", "chunks are not padded"),
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
        _refused("audio", "text only", _CHAT),
        _refused("refusal", "text only", _CHAT),
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
        _accepted("prompt_cache_breakpoint", "a hint", _CHAT),
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
