"""POST /apply-template: the chat template alone. GET /tokenizer_info: what a client needs to use both by itself."""

from __future__ import annotations

from serving.api.controllers.tokenizing.fields import APPLY_TEMPLATE_FIELDS, OBJECTS
from serving.api.endpoint import Call, Endpoint
from serving.api.errors import NotEnabledError
from serving.api.requests.adapter_request import find_model
from serving.api.requests.chat_rendering import rendered
from serving.api.schemas import AppliedTemplate, ApplyTemplateRequest, TokenizerInfo


async def _apply_template(call: Call[ApplyTemplateRequest]) -> AppliedTemplate:
    body, host = call.body, call.host
    find_model(host.loaded_service.models, body.model)
    prompt = await rendered(
        body,
        body.messages,
        host,
        call.request.scope,
        lambda chat, messages, arguments: chat.render(messages, **arguments),
    )
    return AppliedTemplate(prompt=prompt)


async def _tokenizer_info(call: Call[None]) -> TokenizerInfo:
    host = call.host
    if not host.settings.tokenizer_info_endpoint:
        raise NotEnabledError("this server does not describe its tokenizer; start it with --tokenizer-info-endpoint")
    service = host.loaded_service
    tokenizer = service.tokenizer

    def spelt(token: int | None) -> str | None:
        return None if token is None else tokenizer.token_text(token)

    return TokenizerInfo(
        tokenizer_class=type(tokenizer).__name__,
        vocab_size=tokenizer.vocab_size,
        model_max_length=service.card.max_model_len,
        add_bos_token=tokenizer.add_bos,
        bos_token=spelt(tokenizer.bos_id),
        eos_token=spelt(tokenizer.eos_id),
        unk_token=spelt(tokenizer.unk_id),
        pad_token=spelt(tokenizer.pad_id),
        chat_template=None if service.chat is None else service.chat.template,
    )


APPLY_TEMPLATE = Endpoint(
    path="/apply-template",
    method="POST",
    operation_id="applyTemplate",
    summary="Chat messages to the text of their prompt, as llama.cpp",
    request=ApplyTemplateRequest,
    response=AppliedTemplate,
    fields=APPLY_TEMPLATE_FIELDS,
    objects=OBJECTS,
    example={"messages": [{"role": "user", "content": "Hello!"}]},
    errors=(404,),
    handler=_apply_template,
)
TOKENIZER_INFO = Endpoint(
    path="/tokenizer_info",
    method="GET",
    operation_id="tokenizerInfo",
    summary="The special tokens and the chat template, if --tokenizer-info-endpoint allows it; as vLLM",
    response=TokenizerInfo,
    errors=(501, 503),
    handler=_tokenizer_info,
)
