"""Fields of vLLM and llama.cpp that requests for text may have, besides OpenAI's."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from serving.api.schemas.output_format import GrammarFields


def _doc(text: str) -> Meta:
    return Meta(description=f"{text} (an extension)")


class ExtensionFields(GrammarFields, kw_only=True):
    """Extensions of every endpoint that generates text."""

    # Where a completion ends, and what of its end is returned.
    min_tokens: Annotated[int | None, _doc("the completion has at least this many tokens")] = None
    stop_token_ids: Annotated[list[int] | None, _doc("tokens that end the completion")] = None
    include_stop_str_in_output: Annotated[
        bool | None, _doc("return the stop string, or the text of the stop token, as part of the completion")
    ] = None
    skip_special_tokens: Annotated[bool | None, _doc("false: control tokens appear in the text, by name")] = None

    # Which tokens may be chosen.
    allowed_token_ids: Annotated[list[int] | None, _doc("the only tokens that may be generated")] = None
    bad_words: Annotated[list[str] | None, _doc("words that must not be generated")] = None
    typical_p: Annotated[
        float | None, _doc("keep the tokens whose surprise is nearest to the expected one, up to this probability")
    ] = None
    top_n_sigma: Annotated[
        float | None, _doc("keep tokens at most this many standard deviations below the largest logit; 0: all")
    ] = None
    xtc_probability: Annotated[float | None, _doc("how often XTC excludes the most likely tokens")] = None
    xtc_threshold: Annotated[float | None, _doc("probability from which on XTC excludes all tokens but one")] = None
    dry_multiplier: Annotated[float | None, _doc("strength of the DRY penalty on repetitions; 0: none")] = None
    dry_base: Annotated[float | None, _doc("growth of the DRY penalty with each token; 1 to 10")] = None
    dry_allowed_length: Annotated[int | None, _doc("length of a repetition from which on DRY penalises it")] = None
    dry_penalty_last_n: Annotated[int | None, _doc("tokens that DRY looks back on; -1: all, 0: none")] = None
    dry_sequence_breakers: Annotated[list[str] | None, _doc("texts over which no repetition continues")] = None
    samplers: Annotated[list[str] | None, _doc("the samplers in the order in which they are applied here")] = None

    # How a request is treated.
    priority: Annotated[
        int | None, _doc("of the requests of one API key that wait, lower numbers are served earlier")
    ] = None
    cache_prompt: Annotated[
        bool | None, _doc("false: run all of the prompt, and keep nothing of it for later requests")
    ] = None
    cache_salt: Annotated[
        str | None, _doc("the cache is shared with requests of the same salt only; at most 256 characters")
    ] = None
