"""What a chat request asks of the chat template: how the prompt ends, its variables, and documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import msgspec

from mistral_jax.chat.errors import ConversationError
from mistral_jax.chat.messages import check_variables
from serving.api.errors import InvalidRequestError
from serving.api.schemas import ChatCompletionRequest
from serving.api.service.service import ChatEncoder

MAX_VARIABLES_BYTES = 16_384
"""Most bytes of `chat_template_kwargs`, as JSON."""
MAX_VARIABLES_VALUES = 128
"""Most values in it, nested ones included."""
MAX_VARIABLES_DEPTH = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class TemplateUse:
    """See `mistral_jax.chat.formatter.ChatFormatter.encode`."""

    add_generation_prompt: bool = True
    continue_final_message: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict[str, Any])
    documents: Sequence[Mapping[str, Any]] | None = None

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `ChatEncoder.encode_pieces`."""
        return {
            "add_generation_prompt": self.add_generation_prompt,
            "continue_final_message": self.continue_final_message,
            "documents": self.documents,
            **self.variables,
        }

    def without_unused(self, chat: ChatEncoder) -> tuple[TemplateUse, list[str]]:
        """The same without variables that the template does not read, and their names."""
        unused = [name for name in self.variables if name not in chat.variables]
        kept = {name: value for name, value in self.variables.items() if name not in unused}
        return replace(self, variables=kept), unused


AS_USUAL = TemplateUse()


def template_use(request: ChatCompletionRequest) -> TemplateUse:
    """What a request asks of the template.

    Raises:
      InvalidRequestError: both ways to end the prompt are asked for, or a variable is reserved, or there are too many.
    """
    if request.continue_final_message and request.add_generation_prompt:
        raise InvalidRequestError(
            "continue_final_message and add_generation_prompt cannot both be true", param="continue_final_message"
        )
    variables = request.chat_template_kwargs or {}
    _check(variables)
    continues = bool(request.continue_final_message)
    return TemplateUse(
        add_generation_prompt=not continues and request.add_generation_prompt is not False,
        continue_final_message=continues,
        variables=variables,
        documents=request.documents or None,
    )


def check_once(template: TemplateUse, variables: Mapping[str, Any]) -> None:
    """Refuse variables that other fields of the request set, too.

    Raises:
      InvalidRequestError: there are some.
    """
    twice = [name for name in variables if name in template.variables]
    if twice:
        raise InvalidRequestError(
            f"chat_template_kwargs: {twice[0]} is set by another field of the request, too; send one of them",
            param="chat_template_kwargs",
        )


def _check(variables: Mapping[str, Any]) -> None:
    param = "chat_template_kwargs"
    if not variables:
        return
    values, depth = _size(variables, MAX_VARIABLES_DEPTH)
    size = len(msgspec.json.encode(variables))
    for what, found, most in (
        ("bytes", size, MAX_VARIABLES_BYTES),
        ("values", values, MAX_VARIABLES_VALUES),
        ("levels", depth, MAX_VARIABLES_DEPTH),
    ):
        if found > most:
            raise InvalidRequestError(
                f"{param}: more than {most} {what}, the most that a request may have", param=param
            )
    try:
        check_variables(variables)
    except ConversationError as error:
        raise InvalidRequestError(f"{param}: {error}", param=param) from error


def _size(value: Any, most_levels: int) -> tuple[int, int]:
    """Number of values in a JSON value, and its levels; deeper ones than `most_levels` are not visited."""
    items: Sequence[Any] = ()
    if isinstance(value, dict):
        items = list(cast("dict[str, Any]", value).values())
    elif isinstance(value, list):
        items = cast("list[Any]", value)
    if not items or most_levels < 0:
        return 1, 0
    inner = [_size(item, most_levels - 1) for item in items]
    return 1 + sum(count for count, _ in inner), 1 + max(depth for _, depth in inner)
