"""Which formats a model writes, inferred from its chat template, or from the version of Mistral's own format."""

from __future__ import annotations

from collections.abc import Mapping

from mistral_jax.chat.output.formats import ReasoningFormat, reasoning_format

_BY_VERSION = {
    "v2": "mistral-v2",
    "v3": "mistral-v3",
    "v7": "mistral-v7",
    "v11": "mistral-v11",
    "v13": "mistral-v13",
    "v15": "mistral-v13",
}
_OTHER_TAGGED = ("<function=", "<parameter=", "<arg_key>")
"""In a template with `<tool_call>`: between the tags is no JSON, which is a format that is not implemented."""


def tool_format_of_version(version: str) -> str | None:
    """The name of the format of tool calls in one of Mistral's own instruct formats; None: it has none.

    Args:
      version: Such as "v3".
    """
    return _BY_VERSION.get(version)


def tool_format_of_template(template: str, version: str | None = None) -> str | None:
    """The name of the format that a template writes earlier tool calls in; None: none that is known.

    Args:
      template: Jinja source.
      version: The version that the tokenizer was made for, if it is one of Mistral's.
    """
    if "[TOOL_CALLS]" in template:
        if "[ARGS]" in template:
            return "mistral-v11" if "[CALL_ID]" in template else "mistral-v13"
        if version == "v2":
            return "mistral-v2"
        return "mistral-v7" if "[SYSTEM_PROMPT]" in template else "mistral-v3"
    if "<tool_call>" in template:
        return None if any(text in template for text in _OTHER_TAGGED) else "hermes"
    if "<|python_tag|>" in template or ('"parameters": ' in template and "ipython" in template):
        return "llama3"
    return None


def detect_reasoning(template: str | None, control_tokens: Mapping[str, int]) -> ReasoningFormat | None:
    """How a model writes its reasoning; None: it has none that is known.

    Args:
      template: Jinja source; None: Mistral's own format.
      control_tokens: Of its vocabulary, by their text.
    """
    if {"[THINK]", "[/THINK]"} <= control_tokens.keys():
        return reasoning_format("[THINK]", "[/THINK]", control_tokens)
    if template is not None:
        for start, end in (("[THINK]", "[/THINK]"), ("<think>", "</think>")):
            if start in template or end in template:
                return reasoning_format(start, end, control_tokens)
    return None
