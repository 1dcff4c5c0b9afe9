"""How the endpoints of the tokenizer and the chat template handle each known field."""

from __future__ import annotations

from typing import Any

from serving.api.controllers.generation_fields import CHAT, objects_of
from serving.api.endpoint import Field


def _honoured(name: str, note: str) -> Field:
    return Field(name, "honoured", note)


def _refused(name: str, note: str, *neutral: Any) -> Field:
    return Field(name, "refused", note, neutral=neutral)


MESSAGES = {where: fields for where, fields in objects_of(CHAT).items() if where.startswith("messages[]")}
"""The objects in `messages`, as on /v1/chat/completions."""

_MODEL = _honoured("model", "a served model; all have the same tokenizer and template")
_OF_TEMPLATES = (
    _refused("tools", "no tool calls yet", []),
    _refused("continue_final_message", "extension of vLLM", False),
    _refused("chat_template", "templates come from the model or --chat-template, never from a request"),
    _refused("chat_template_kwargs", "extension of vLLM", {}),
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
    _honoured("add_generation_prompt", "vLLM's, for `messages`; absent: yes"),
    *_OF_TEMPLATES,
)
DETOKENIZE_FIELDS = (
    _honoured("tokens", "token ids; control tokens become their names"),
    _honoured("model", "with it the response is `{prompt}`, as vLLM's; without it `{content, prompt}`"),
)
APPLY_TEMPLATE_FIELDS = (
    _honoured("messages", "as on /v1/chat/completions"),
    _MODEL,
    _honoured("add_generation_prompt", "absent: yes"),
    *_OF_TEMPLATES,
)
