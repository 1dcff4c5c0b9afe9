"""From the body of a request for embeddings to its texts, one engine request for each."""

from __future__ import annotations

from collections.abc import Sequence

from mistral_jax.runtime.pooling import Pooling
from mistral_jax.runtime.sampling.params import SamplingParams
from serving.api.errors import ApiError, ContextLengthError, InvalidRequestError
from serving.api.requests.prompts import encode_prompts, fit
from serving.api.schemas import EmbeddingRequest
from serving.api.service.asked import AdapterUse, Prompt
from serving.api.service.lifecycle import ServiceHost
from serving.api.service.service import Service
from serving.engine.messages import Request, Work

MAX_INPUTS = 2048
"""Most texts of one request, as OpenAI."""

_NO_TOKENS = SamplingParams(max_tokens=0, seed=0)


def check_dimensions(dimensions: int | None, hidden_size: int) -> None:
    """Raises:
    InvalidRequestError: a vector has not so many.
    """
    if dimensions is not None and not 1 <= dimensions <= hidden_size:
        raise InvalidRequestError(
            f"dimensions is {dimensions}; expected 1 to {hidden_size}, which this model's embeddings have",
            param="dimensions",
        )


async def encode_inputs(body: EmbeddingRequest, host: ServiceHost, service: Service) -> list[Prompt]:
    """Encode the texts, off the event loop. A text may fill the whole context.

    Raises:
      InvalidRequestError: there are too many, or one cannot be encoded.
      ApiError: one is longer than the context.
    """
    truncate = host.settings.truncate_sequence
    try:
        prompts = await encode_prompts(service, body.input, most=MAX_INPUTS, limiter=host.encoding, truncate=truncate)
        return [
            fit(
                prompt,
                service.card,
                max_tokens=0,
                truncate=truncate,
                bos_id=service.tokenizer.bos_id,
                param="prompt",
            )
            for prompt in prompts
        ]
    except ApiError as error:
        if error.param == "prompt":
            raise _of_input(error) from error
        raise


def _of_input(error: ApiError) -> ApiError:
    """The error in the words of this endpoint, whose texts are its `input`."""
    if not isinstance(error, ContextLengthError):
        error.param, error.message = "input", error.message.replace("prompt", "input")
        return InvalidRequestError(error.message, param="input", code=error.code)
    given, context = error.details["n_prompt_tokens"], error.details["n_ctx"]
    return InvalidRequestError(
        f"This model's maximum context length is {context} tokens. However, an input has at least {given} tokens. "
        "Please reduce its length, or start the server with --truncate-sequence to have it cut from the left.",
        param="input",
        code=error.code,
        n_prompt_tokens=given,
        n_ctx=context,
    )


def embedding_requests(call_id: str, prompts: Sequence[Prompt], use: AdapterUse, pooling: Pooling) -> list[Request]:
    """One engine request for each text."""
    return [
        Request(
            request_id=f"{call_id}-{index}",
            prompt=prompt.tokens,
            params=_NO_TOKENS,
            choice=use.choice,
            adapters=use.keys,
            work=Work.EMBED,
            pooling=pooling,
        )
        for index, prompt in enumerate(prompts)
    ]
