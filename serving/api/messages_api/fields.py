"""How /v1/messages handles each known field."""

from __future__ import annotations

from serving.api.controllers.field_entries import accepted, honoured, refused, shared_fields
from serving.api.endpoint import Field

_CACHED = accepted("cache_control", "a hint")

_PROMPT = (
    honoured(
        "messages",
        "roles user, assistant and system; a last text of the assistant is continued. Messages of one role after each "
        "other are one",
    ),
    honoured("system", "a text, or text blocks, which are joined by line breaks"),
    honoured(
        "tools",
        "at most 128; those that Anthropic runs are refused. The input of a tool_use matches the tool's schema",
    ),
    honoured("tool_choice", "auto, any, tool or none, and disable_parallel_tool_use"),
    honoured(
        "thinking",
        "enabled, disabled or adaptive; refused if the model's chat format cannot do what it says. Models that reason "
        "by themselves give thinking blocks without it",
    ),
    honoured("output_config", "format and effort; see below"),
    honoured("output_format", "the older form of output_config.format"),
)
MESSAGES_FIELDS: tuple[Field, ...] = (
    *_PROMPT,
    honoured(
        "max_tokens",
        "required; any positive integer, capped at the room that the prompt leaves; the stop_reason is then max_tokens",
    ),
    honoured("stop_sequences", "16384 characters in total; not part of the text"),
    *shared_fields(),
    _CACHED,
    accepted("metadata", "user_id: a label"),
    accepted("service_tier", "there is one tier; the response says `standard`"),
    accepted("speed", "there is one speed"),
    accepted("inference_geo", "there is one place"),
    accepted("user_profile_id", "a label"),
    accepted("workspace_id", "a label"),
    accepted("diagnostics", "of the prompt cache; there are none"),
    refused("container", "nothing is stored"),
    refused("mcp_servers", "this server calls no others", []),
    refused("context_management", "messages are neither left out nor summarised", {}, {"edits": []}),
)
COUNT_TOKENS_FIELDS: tuple[Field, ...] = (
    honoured("model", "a served model; all have the same tokenizer and template"),
    *_PROMPT,
    _CACHED,
    accepted("speed", "there is one speed"),
    accepted("user_profile_id", "a label"),
    accepted("workspace_id", "a label"),
    refused("mcp_servers", "this server calls no others", []),
    refused("context_management", "messages are neither left out nor summarised", {}, {"edits": []}),
)
MESSAGES_OBJECTS: dict[str, tuple[Field, ...]] = {
    "messages[]": (
        honoured("role", "see above"),
        honoured("content", "a text, or blocks"),
    ),
    "messages[].content[]": (
        honoured("type", "text, tool_use, tool_result, thinking; others, such as image and document, are refused"),
        honoured("text", "texts are joined by line breaks"),
        honoured("thinking", "passed to the chat template as the reasoning of that message"),
        honoured("id", "ids that Mistral's models do not know are replaced in the prompt"),
        honoured("name", "of the tool"),
        honoured("input", "the arguments"),
        honoured("tool_use_id", "of an earlier tool_use"),
        honoured("content", "of a tool_result: a text, or text blocks"),
        accepted("is_error", "the content of the result says it"),
        accepted("signature", "nothing is signed"),
        refused("citations", "no citations", [], {"enabled": False}),
        accepted("caller", "of an earlier response"),
        accepted("toolset_name", "of an earlier response"),
        _CACHED,
    ),
    "messages[].content[].content[]": (
        honoured("type", "`text`; others, such as image, are refused"),
        honoured("text", "the text"),
        refused("citations", "no citations", [], {"enabled": False}),
        _CACHED,
    ),
    "system[]": (
        honoured("type", "`text`"),
        honoured("text", "the text"),
        refused("citations", "no citations", [], {"enabled": False}),
        _CACHED,
    ),
    "tools[]": (
        honoured("type", "`custom` or absent; others are refused by name"),
        honoured("name", "1 to 64 letters, digits, underscores and dashes"),
        honoured("description", "passed to the chat template"),
        honoured("input_schema", "required; passed to the chat template, and enforced"),
        honoured("strict", "refuses schemas that cannot be enforced to the letter"),
        accepted("eager_input_streaming", "input is always streamed as it is generated"),
        accepted("input_examples", "chat templates have no place for them"),
        refused("defer_loading", "the model sees all tools", False),
        refused("allowed_callers", "only the model calls tools", ["direct"], []),
        _CACHED,
    ),
    "tool_choice": (
        honoured("type", "auto, any, tool or none"),
        honoured("name", "of the tool to use"),
        honoured("disable_parallel_tool_use", "true: at most one tool_use"),
    ),
    "thinking": (
        honoured("type", "enabled is the effort `high` where there are several; adaptive leaves it to the template"),
        honoured("display", "omitted: thinking blocks are empty; there are no summaries"),
        accepted("budget_tokens", "not a limit of its own: max_tokens is"),
    ),
    "output_config": (
        honoured("format", "type json_schema and a schema; the text matches it"),
        honoured("effort", "as reasoning_effort of /v1/chat/completions; refused if the model has no such setting"),
        accepted("task_budget", "a hint"),
    ),
    "output_config.format": (
        honoured("type", "`json_schema`"),
        honoured("schema", "one that cannot be held in full is refused, and the error names the keyword"),
    ),
    "output_format": (
        honoured("type", "`json_schema`"),
        honoured("schema", "as of output_config.format"),
    ),
}
