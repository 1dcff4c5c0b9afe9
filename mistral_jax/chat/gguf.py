"""The chat format of a GGUF file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from conversion.tokenizer.chat_templates import MISTRAL_FORMATS, gguf_chat_templates, is_jinja
from conversion.tokenizer.files import TokenizerError
from mistral_jax.chat.errors import ChatTemplateError
from mistral_jax.chat.formatter import ChatFormatter
from mistral_jax.chat.from_files import read_override
from mistral_jax.tokenizer.base import Tokenizer
from mistral_jax.tokenizer.byte_table import ByteTableTokenizer

_NAMES = ("general.name", "general.basename", "general.base_model.0.name")
_FAMILY = re.compile(r"mistral|mixtral", re.IGNORECASE)


def chat_formatter_from_gguf(
    metadata: Mapping[str, Any], tokenizer: Tokenizer, override: str | None = None
) -> ChatFormatter | None:
    """The chat format of a GGUF file: its template, else Mistral's own format where it can be inferred, else None.

    It is inferred from the name of a format in place of the template (llama.cpp's converter writes such names for
    models in Mistral's own file format), from control tokens such as `[INST]`, and, for vocabularies of version 1,
    which have none, from the model's name: Mistral or Mixtral, and Instruct.

    Args:
      metadata: As `GGUFFile.metadata`.
      tokenizer: The file's tokenizer, or the one that replaces it.
      override: A template to use instead: the path of a file, or a template itself.

    Raises:
      ChatTemplateError: the template is broken, or its place has the name of a format that is not implemented; or
        `override` is neither a file nor a template.
    """
    if override is not None:
        return ChatFormatter(read_override(override), tokenizer)
    try:
        templates = gguf_chat_templates(metadata)
    except TokenizerError as error:
        raise ChatTemplateError(str(error)) from error
    default = templates.get("default")
    if default is not None and not is_jinja(default):
        version = MISTRAL_FORMATS.get(default.strip())
        if version is None:
            raise ChatTemplateError(
                f"The GGUF file names the chat format {default[:80]!r} in the place of a template; known are "
                f"{', '.join(MISTRAL_FORMATS)}. Give the model's template with --chat-template."
            )
        return ChatFormatter.for_tokenizer_version(tokenizer, version)
    if templates:
        return ChatFormatter(templates, tokenizer)
    version = tokenizer.instruct_version if isinstance(tokenizer, ByteTableTokenizer) else None
    if version is None and _is_instruct_v1(metadata, tokenizer):
        version = "v1"
    return ChatFormatter.for_tokenizer_version(tokenizer, version) if version is not None else None


def _is_instruct_v1(metadata: Mapping[str, Any], tokenizer: Tokenizer) -> bool:
    """Whether this is one of Mistral's first instruct models, whose vocabulary is that of version 1."""
    names = " ".join(str(metadata[key]) for key in _NAMES if key in metadata)
    first = tokenizer.vocab_size == 32000 and {"<s>", "</s>"} <= tokenizer.control_tokens.keys()
    # Two searches: one expression for both would look for the second after every occurrence of the first.
    family = _FAMILY.search(names)
    instruct = family is not None and "instruct" in names[family.end() :].lower()
    return first and metadata.get("tokenizer.ggml.model") == "llama" and instruct
