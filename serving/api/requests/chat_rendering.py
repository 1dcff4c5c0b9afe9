"""Chat messages through the chat template alone, as a completion of the same chat would have them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import anyio.to_thread
from litestar.types import Scope

from serving.api.errors import InvalidRequestError
from serving.api.requests.bodies.unknown_fields import report_ignored, unused
from serving.api.requests.chat.messages import chat_messages
from serving.api.requests.chat.template_use import TemplateUse, check_once, template_use
from serving.api.requests.prompts import chat_encoder
from serving.api.requests.tool_request import reasoning_variables, tool_use
from serving.api.schemas import ChatCompletionRequest, ChatMessage, TemplateFields
from serving.api.service.lifecycle import ServiceHost
from serving.api.service.service import ChatEncoder


def template_with_reasoning(
    body: ChatCompletionRequest, chat: ChatEncoder, scope: Scope, *, strict: bool
) -> TemplateUse:
    """What a chat completion asks of the template, how much to reason included.

    Args:
      scope: of the request, whose response names variables that the template does not read.
      strict: refuse such variables.

    Raises:
      InvalidRequestError: see `template_use`, `reasoning_variables` and `check_once`; or there are such variables.
    """
    template, unread = template_use(body).without_unused(chat)
    report_ignored(scope, unused("chat_template_kwargs", unread), strict=strict)
    reasoning = reasoning_variables(body, chat)
    check_once(template, reasoning)
    return replace(template, variables={**template.variables, **reasoning})


async def rendered[T](
    body: TemplateFields,
    messages: Sequence[ChatMessage],
    host: ServiceHost,
    scope: Scope,
    render: Callable[[ChatEncoder, list[dict[str, Any]], dict[str, Any]], T],
) -> T:
    """The result of `render`, which is called in a thread.

    Args:
      scope: of the request, whose response names variables that the template does not read.
      render: gets the chat format, the messages as templates take them, and the other arguments of its methods.

    Raises:
      InvalidRequestError: a message is invalid, the template refuses the messages, or the model has no template.
    """
    chat = chat_encoder(host.loaded_service)
    chat_request = ChatCompletionRequest(
        messages=list(messages),
        tools=body.tools,
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        chat_template_kwargs=body.chat_template_kwargs,
        documents=body.documents,
        reasoning_effort=body.reasoning_effort,
    )
    template = template_with_reasoning(chat_request, chat, scope, strict=host.settings.strict_fields)
    arguments = {**template.arguments(), "tools": tool_use(chat_request, chat).shown or None}

    def work() -> T:
        return render(chat, chat_messages(messages), arguments)

    try:
        return await anyio.to_thread.run_sync(work, limiter=host.rendering)
    except ValueError as error:
        raise InvalidRequestError(f"messages: {error}", param="messages", code="invalid_messages") from error
