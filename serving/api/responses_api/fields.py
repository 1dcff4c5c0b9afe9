"""How /v1/responses handles each known field."""

from __future__ import annotations

from serving.api.controllers.field_entries import accepted, honoured, refused, shared_fields, value_of
from serving.api.endpoint import Body, Field


def _no_prewarming(body: Body) -> bool:
    options = value_of(body, "prompt_cache_options")
    return not (isinstance(options, dict) and options.get("prewarm"))


_PROMPT = (
    honoured("input", "a text, or items: messages, function_call, function_call_output, reasoning; text content only"),
    honoured("instructions", "a system message; one with the system messages that begin the input"),
    honoured(
        "tools",
        "functions, at most 128; built-in and custom tools are refused. The arguments of a call match the function's "
        "schema",
    ),
    honoured("tool_choice", "none, auto, required, a function by name, or allowed_tools"),
    honoured("parallel_tool_calls", "false: at most one call"),
    honoured("text", "the format of the text; see below"),
    honoured("reasoning", "see below"),
    honoured("truncation", "auto: a prompt that is too long is cut from the left; disabled: it is refused"),
)
_STORED = (
    refused("previous_response_id", "nothing is stored: send the earlier items in `input`"),
    refused("conversation", "nothing is stored: send the earlier items in `input`"),
    refused("prompt", "nothing is stored: send the prompt itself in `instructions` and `input`"),
)
RESPONSE_FIELDS: tuple[Field, ...] = (
    *_PROMPT,
    honoured(
        "max_output_tokens",
        "any positive integer, capped at the room that the prompt leaves; the response is then incomplete, with the "
        "reason max_output_tokens",
    ),
    honoured(
        "include",
        "message.output_text.logprobs: the log-probabilities of the text's tokens; OpenAI's other values add nothing, "
        "because there is nothing that they could add; unknown ones are refused",
    ),
    honoured("top_logprobs", "0 to 20; above 0 it includes message.output_text.logprobs"),
    honoured("metadata", "at most 16 pairs; a label, returned"),
    honoured("user", "a label, returned"),
    honoured("safety_identifier", "a label, returned"),
    honoured("prompt_cache_key", "a hint, returned"),
    honoured("prompt_cache_retention", "a hint, returned"),
    honoured("max_tool_calls", "returned; of built-in tools, of which there are none"),
    *shared_fields(),
    honoured("stop", "extension; a string or a list of strings; not part of the text"),
    *_STORED,
    refused("background", "nothing is stored, so a response cannot be fetched later; use stream", False),
    refused("context_management", "no compaction", []),
    refused("moderation", "nothing is moderated"),
    refused("access_programs", "OpenAI's"),
    refused("prompt_cache_options", "with prewarm: nothing is run in advance", unless=_no_prewarming),
    accepted("store", "true or false: nothing is stored, and the response says `store: false`"),
    accepted("service_tier", "there is one tier; the response says `default`"),
    accepted("stream_options", "include_obfuscation: events are not padded"),
    accepted("image", "options of images, which are refused"),
    refused("max_tokens", "here it is `max_output_tokens`"),
    refused("max_completion_tokens", "here it is `max_output_tokens`"),
    refused("messages", "here it is `input`", []),
    refused("response_format", "here it is `text.format`", {"type": "text"}),
    refused("reasoning_effort", "here it is `reasoning.effort`"),
    refused("n", "a response has one output", 1),
    refused("logprobs", "here it is `include`", False),
    refused("chat_template", "templates come from the model or --chat-template, never from a request"),
)
INPUT_TOKENS_FIELDS: tuple[Field, ...] = (
    honoured("model", "a served model; all have the same tokenizer and template"),
    *_PROMPT,
    *_STORED,
    accepted("personality", "OpenAI's; these models have no such setting"),
)

_PART = (
    honoured("type", "input_text, output_text (reasoning_text in reasoning); input_image and others are refused"),
    honoured("text", "the text; texts are joined by line breaks"),
    accepted("annotations", "of an earlier response"),
    accepted("logprobs", "of an earlier response"),
    accepted("prompt_cache_breakpoint", "a hint"),
)
RESPONSE_OBJECTS: dict[str, tuple[Field, ...]] = {
    "input[]": (
        honoured("type", "others than those above, item_reference among them, are refused by name"),
        honoured("role", "user, assistant, system, developer (the same as system)"),
        honoured("content", "a text, or text parts"),
        honoured("call_id", "ids that Mistral's models do not know are replaced in the prompt"),
        honoured("name", "of the function"),
        honoured("arguments", "the JSON text of an object"),
        honoured("output", "of the function: a text, or text parts"),
        honoured("encrypted_content", "refused if there is no content: it cannot be read here"),
        accepted("id", "of an earlier response"),
        accepted("status", "of an earlier response"),
        accepted("phase", "of an earlier response; chat templates have no place for it"),
        accepted("caller", "of an earlier call; only the model makes calls"),
        accepted("namespace", "of an earlier call; functions have none"),
        accepted("async", "of an earlier call, which the client made"),
        accepted("summary", "of reasoning; its content is passed to the chat template instead"),
    ),
    "input[].content[]": _PART,
    "input[].output[]": _PART,
    "tools[]": (
        honoured("type", "`function`; others are refused"),
        honoured("name", "1 to 64 letters, digits, underscores and dashes"),
        honoured("description", "passed to the chat template"),
        honoured("parameters", "JSON schema of the arguments; passed to the chat template, and enforced"),
        honoured("strict", "refuses schemas that cannot be enforced to the letter"),
        accepted("output_schema", "chat templates have no place for it"),
        refused("defer_loading", "the model sees all tools", False),
        refused("allowed_callers", "only the model calls tools", ["direct"], []),
        refused("async", "calls are made by the client", False),
    ),
    "tool_choice": (
        honoured("type", "`function` or `allowed_tools`; others are refused"),
        honoured("name", "of the function to call"),
        honoured("mode", "`auto` or `required`, for allowed_tools"),
        honoured("tools", "functions by name, for allowed_tools"),
    ),
    "text": (
        honoured("format", "text, json_object, or json_schema with name, schema and strict"),
        honoured("verbosity", "returned; these models have no such control"),
    ),
    "text.format": (
        honoured("type", "text, json_object or json_schema"),
        honoured("name", "of the schema; a label"),
        honoured("description", "of the schema; a label"),
        honoured(
            "schema", "the JSON schema; one that cannot be held in full is refused, and the error names the keyword"
        ),
        honoured("strict", "texts match the schema with and without it"),
    ),
    "reasoning": (
        honoured(
            "effort",
            "a variable of the chat template or a setting of Mistral's v15 format; refused if the model has neither, "
            "except for `none` if it does not reason",
        ),
        honoured("summary", "returned; there are no summaries: reasoning items have the reasoning itself as content"),
        accepted("generate_summary", "the older name of summary"),
        refused("mode", "there is one", "standard"),
        accepted("context", "which reasoning of earlier turns the model sees is up to its chat template"),
    ),
}
