"""Where a model folder keeps its chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from mistral_jax.chat.errors import ChatTemplateError
from mistral_jax.chat.formatter import ChatFormatter
from mistral_jax.tokenizer.base import Tokenizer, TokenizerError
from mistral_jax.tokenizer.byte_table import ByteTableTokenizer
from mistral_jax.tokenizer.special_tokens import read_json_object


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
        template = read_override(override) if override is not None else _read_folder(Path(folder))
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
            template = _from_json(read_json_object(path), str(path))
            if template is None:
                raise ChatTemplateError(f"{path} has no chat_template.")
            return template
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        if isinstance(error, ChatTemplateError):
            raise
        raise ChatTemplateError(
            f"The chat template {override[:200]!r} is neither a file that can be read nor a Jinja template ({error})."
        ) from error


def _read_folder(folder: Path) -> str | dict[str, str] | None:
    if not folder.is_dir():
        return None
    path = folder / "chat_template.jinja"
    more = {p.stem: p.read_text(encoding="utf-8") for p in sorted(folder.glob("additional_chat_templates/*.jinja"))}
    if path.is_file():
        return {**more, "default": path.read_text(encoding="utf-8")}
    for name in ("chat_template.json", "tokenizer_config.json"):
        template = _from_json(read_json_object(folder / name, missing_ok=True), str(folder / name))
        if template is not None:
            return template
    return more or None


def _from_json(data: dict[str, Any], where: str) -> str | dict[str, str] | None:
    """The `chat_template` of a JSON file: a text, or a list of named ones."""
    value = data.get("chat_template")
    if value is None or isinstance(value, str):
        return value or None
    named: dict[str, str] = {}
    for entry in cast("list[Any]", value if isinstance(value, list) else [value]):
        if isinstance(entry, dict):
            fields = cast("dict[str, Any]", entry)
            if isinstance(fields.get("name"), str) and isinstance(fields.get("template"), str):
                named[fields["name"]] = fields["template"]
                continue
        raise ChatTemplateError(f"chat_template in {where} is neither a text nor a list of named templates.")
    return named or None
