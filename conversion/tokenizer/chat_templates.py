"""Where files keep chat templates: a model folder in up to three places, a GGUF file under several keys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from conversion.files.regular_file import exists, is_folder
from conversion.tokenizer.files import TokenizerError, read_json_object, read_text

_GGUF_KEY = "tokenizer.chat_template"


def read_chat_templates(folder: Path) -> str | dict[str, str] | None:
    """A folder's template, or several by name; None where there is none.

    It is looked for in chat_template.jinja (with additional_chat_templates/), chat_template.json and
    tokenizer_config.json, in this order.

    Raises:
      TokenizerError: one of the files is not a JSON object, or its templates have an unknown form.
    """
    if not is_folder(folder):
        return None
    path = folder / "chat_template.jinja"
    more = {p.stem: read_text(p) for p in sorted(folder.glob("additional_chat_templates/*.jinja"))}
    if exists(path):
        return {**more, "default": read_text(path)}
    for name in ("chat_template.json", "tokenizer_config.json"):
        template = templates_in_json(read_json_object(folder / name, missing_ok=True), str(folder / name))
        if template is not None:
            return template
    return more or None


def templates_in_json(data: Mapping[str, Any], where: str) -> str | dict[str, str] | None:
    """The `chat_template` of a parsed JSON file: a text, or a list of named ones.

    Raises:
      TokenizerError: it is neither.
    """
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
        raise TokenizerError(f"chat_template in {where} is neither a text nor a list of named templates.")
    return named or None


def gguf_chat_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The templates of a GGUF file by name, the unnamed one as "default"; {} where there are none.

    A "template" may be the name of a format that is built into llama.cpp, such as "mistral-v3-tekken": its converter
    writes such names for models in Mistral's own format.

    Raises:
      TokenizerError: a template is not a string.
    """
    named: dict[str, str] = {}
    for key, value in metadata.items():
        if key != _GGUF_KEY and not key.startswith(_GGUF_KEY + "."):
            continue
        if not isinstance(value, str):
            raise TokenizerError(
                f"{key} in the GGUF file is a {type(value).__name__}; expected the text of a template."
            )
        if value:
            named[key[len(_GGUF_KEY) + 1 :] or "default"] = value
    return named


MISTRAL_FORMATS: Mapping[str, str] = {
    "mistral-v1": "v1",
    "mistral-v3": "v3",
    "mistral-v3-tekken": "v3",
    "mistral-v7": "v7",
    "mistral-v7-tekken": "v7",
}
"""llama.cpp's names of Mistral's instruct formats, and Mistral's own."""


def is_jinja(template: str) -> bool:
    """Whether a text is a template rather than the name of one."""
    return "{{" in template or "{%" in template
