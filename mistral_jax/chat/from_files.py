"""Where a model folder keeps its chat template."""

from __future__ import annotations

from pathlib import Path

from conversion.tokenizer.chat_templates import read_chat_templates, templates_in_json
from conversion.tokenizer.files import TokenizerError, read_json_object, read_text
from mistral_jax.chat.errors import ChatTemplateError
from mistral_jax.chat.formatter import ChatFormatter
from mistral_jax.tokenizer.base import Tokenizer
from mistral_jax.tokenizer.byte_table import ByteTableTokenizer


def load_chat_formatter(folder: str | Path, tokenizer: Tokenizer, override: str | None = None) -> ChatFormatter | None:
    """The chat format of a model: its template, else Mistral's own format for its tokenizer, else None.

    A folder's template is looked for in chat_template.jinja (with additional_chat_templates/), chat_template.json and
    tokenizer_config.json, in this order.

    Args:
      folder: The model's folder.
      tokenizer: Its tokenizer.
      override: A template to use instead: the path of a file, or a template itself.

    Raises:
      ChatTemplateError: the template is broken, or `override` is neither a file nor a template.
    """
    try:
        template = read_override(override) if override is not None else read_chat_templates(Path(folder))
    except TokenizerError as error:
        raise ChatTemplateError(str(error)) from error
    if template is not None:
        return ChatFormatter(template, tokenizer)
    version = tokenizer.instruct_version if isinstance(tokenizer, ByteTableTokenizer) else None
    return ChatFormatter.for_tokenizer_version(tokenizer, version) if version is not None else None


def read_override(override: str) -> str | dict[str, str]:
    """A template given by hand: the path of a Jinja or JSON file, or the template itself.

    Raises:
      ChatTemplateError: it is neither.
    """
    if "{{" in override or "{%" in override:
        return override
    path = Path(override)
    try:
        if path.suffix == ".json":
            template = templates_in_json(read_json_object(path), str(path))
            if template is None:
                raise ChatTemplateError(f"{path} has no chat_template.")
            return template
        return read_text(path)
    except (OSError, ValueError) as error:
        if isinstance(error, ChatTemplateError):
            raise
        raise ChatTemplateError(
            f"The chat template {override[:200]!r} is neither a file that can be read nor a Jinja template ({error})."
        ) from error
