"""How the endpoints of the tokenizer and the chat template handle each known field."""

from __future__ import annotations

from typing import Any

from serving.api.controllers.generation_fields import CHAT, objects_of
from serving.api.endpoint import Field


def _honoured(name: str, note: str) -> Field:
    return Field(name, "honoured", note)


def _refused(name: str, note: str, *neutral: Any) -> Field:
    return Field(name, "refused", note, neutral=neutral)


OBJECTS = {
    where: fields for where, fields in objects_of(CHAT).items() if where.partition("[")[0] in ("messages", "tools")
}
"""The objects in `messages` and `tools`, as on /v1/chat/completions."""

_MODEL = _honoured("model", "a served model; all have the same tokenizer and template")
_OF_TEMPLATES = (
    _honoured("tools", "as on /v1/chat/completions"),
    _honoured("add_generation_prompt", "absent: yes, unless `continue_final_message` is true"),
    _honoured("continue_final_message", "as on /v1/chat/completions"),
    _honoured("chat_template_kwargs", "as on /v1/chat/completions"),
    _honoured("documents", "as on /v1/chat/completions"),
    _honoured("reasoning_effort", "as on /v1/chat/completions"),
    _refused("chat_template", "templates come from the model or --chat-template, never from a request"),
)
TOKENIZE_FIELDS = (
    _honoured("content", "llama.cpp's: the text"),
    _honoured("add_special", "llama.cpp's; begin with BOS"),
    _honoured(
        "parse_special",
        "read control tokens such as `[INST]` in the text; absent: yes. No: they are text, as in prompts of "
        "/v1/completions",
    ),
    _honoured("with_pieces", "llama.cpp's; tokens as `{id, piece}`"),
    _MODEL,
    _honoured("prompt", "vLLM's: the text"),
    _honoured("messages", "vLLM's: a chat, as on /v1/chat/completions"),
    _honoured("add_special_tokens", "vLLM's; absent: yes for `prompt`, no for `messages`"),
    _honoured("return_token_strs", "vLLM's; `token_strs` as the vocabulary spells them"),
    *_OF_TEMPLATES,
)
DETOKENIZE_FIELDS = (
    _honoured("tokens", "token ids; control tokens become their names"),
    _honoured("model", "with it the response is `{prompt}`, as vLLM's; without it `{content, prompt}`"),
)
APPLY_TEMPLATE_FIELDS = (
    _honoured("messages", "as on /v1/chat/completions"),
    _MODEL,
    *_OF_TEMPLATES,
)
