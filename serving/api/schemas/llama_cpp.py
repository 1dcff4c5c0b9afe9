"""llama.cpp's own endpoints: what its clients read that OpenAI's API does not have."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Struct, UnsetType

from serving.api.schemas.documented import documented as _doc
from serving.api.schemas.lora import LoraScale
from serving.api.schemas.usage import PromptProgress, Timings


class GenerationSettings(Struct, kw_only=True):
    """How a completion is sampled and when it ends, in llama.cpp's names."""

    n_predict: Annotated[int, _doc("most tokens of the completion; -1: as many as fit in the context")]
    max_tokens: Annotated[int, _doc("the same")]
    seed: Annotated[int, _doc("-1: a random one")]
    temperature: float
    top_k: Annotated[int, _doc("0: all")]
    top_p: float
    min_p: float
    repeat_last_n: Annotated[int, _doc("number of last tokens that repeat_penalty counts (--repeat-last-n)")]
    repeat_penalty: float
    presence_penalty: float
    frequency_penalty: float
    n_probs: int
    ignore_eos: bool
    typical_p: float
    top_n_sigma: Annotated[float, _doc("0: off")]
    xtc_probability: float
    xtc_threshold: float
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    dry_penalty_last_n: Annotated[int, _doc("-1: all")]
    samplers: Annotated[list[str], _doc("in the order in which they are applied")]
    stop: list[str] | UnsetType = UNSET
    stream: bool | UnsetType = UNSET
    lora: list[LoraScale] | UnsetType = UNSET


class NextToken(Struct, kw_only=True):
    """How far a completion is."""

    has_next_token: bool
    n_remain: Annotated[int, _doc("tokens until its limit; -1: no request")]
    n_decoded: Annotated[int, _doc("tokens generated so far")]


class Slot(Struct, kw_only=True):
    """One slot. Prompts and completions are not shown."""

    id: int
    n_ctx: Annotated[int, _doc("most tokens of prompt and completion together")]
    speculative: bool = False
    is_processing: bool
    n_prompt_tokens: int = 0
    n_prompt_tokens_processed: int = 0
    params: GenerationSettings
    next_token: NextToken


class Modalities(Struct, kw_only=True):
    vision: bool = False
    audio: bool = False


class Props(Struct, kw_only=True):
    """Response of GET /props."""

    default_generation_settings: Annotated[Slot, _doc("for requests that set nothing")]
    total_slots: Annotated[int, _doc("completions that run at once")]
    model_alias: Annotated[str, _doc("the name of the default model in the API")]
    model_path: Annotated[str, _doc("Hub id, or name of the folder or file, of the base model")]
    chat_template: Annotated[str, _doc("Jinja source; empty: the format is not a template, or there is none")]
    bos_token: str
    eos_token: str
    n_ctx: Annotated[int, _doc("most tokens of prompt and completion together")]
    n_vocab: int
    modalities: Modalities
    endpoint_slots: Annotated[bool, _doc("whether GET /slots is enabled")]
    endpoint_props: Annotated[bool, _doc("whether POST /props is enabled")] = False
    endpoint_metrics: bool = True
    is_sleeping: bool = False
    build_info: str


class LlamaCompletionRequest(Struct, kw_only=True):
    """Body of POST /completion. An absent field gets the model's default."""

    prompt: Annotated[
        str | list[str | int | list[str | int]],
        _doc("a text; token ids and texts mixed, which make one prompt; or a list of prompts: texts, or such lists"),
    ]
    model: Annotated[str | None, _doc("a served model or adapter; absent: the default")] = None
    cache_prompt: Annotated[
        bool | None, _doc("false: run all of the prompt, and keep nothing of it for later requests")
    ] = None
    n_predict: Annotated[int | None, _doc("most tokens of the completion; -1 or -2: as many as fit in the context")] = (
        None
    )
    temperature: Annotated[float | None, _doc("0 (always the most likely token) to 2")] = None
    top_k: Annotated[int | None, _doc("0 or -1: all")] = None
    top_p: Annotated[float | None, _doc("above 0, at most 1")] = None
    min_p: Annotated[float | None, _doc("0 to 1")] = None
    repeat_penalty: Annotated[float | None, _doc("1: none")] = None
    repeat_last_n: Annotated[int | None, _doc("the server's --repeat-last-n; or 0: no penalties of any kind")] = None
    presence_penalty: Annotated[float | None, _doc("-2 to 2")] = None
    frequency_penalty: Annotated[float | None, _doc("-2 to 2")] = None
    typical_p: Annotated[float | None, _doc("above 0, at most 1")] = None
    top_n_sigma: Annotated[float | None, _doc("0 or below: off")] = None
    xtc_probability: Annotated[float | None, _doc("0 to 1")] = None
    xtc_threshold: Annotated[float | None, _doc("0 to 1")] = None
    dry_multiplier: Annotated[float | None, _doc("0: off")] = None
    dry_base: Annotated[float | None, _doc("1 to 10")] = None
    dry_allowed_length: Annotated[int | None, _doc("1 to 50")] = None
    dry_penalty_last_n: Annotated[int | None, _doc("-1: all tokens")] = None
    dry_sequence_breakers: list[str] | None = None
    samplers: Annotated[list[str] | None, _doc("in the order in which this server applies them")] = None
    grammar: Annotated[str | None, _doc("what the completion must match, in GBNF; empty: anything")] = None
    json_schema: Annotated[dict[str, Any] | bool | None, _doc("a JSON schema that the completion must match")] = None
    seed: Annotated[int | None, _doc("-1: a random one")] = None
    stop: Annotated[str | list[str] | None, _doc("strings that end the completion; empty ones are ignored")] = None
    logit_bias: Annotated[
        list[tuple[int | str, float | bool]] | dict[str, float | bool] | None,
        _doc("pairs of a token id or a text, all of whose tokens are meant, and -100 to 100, or false: never"),
    ] = None
    ignore_eos: bool | None = None
    n_probs: Annotated[int | None, _doc("return this many of the most likely tokens with each token, up to 20")] = None
    n_cmpl: Annotated[int | None, _doc("completions of each prompt")] = None
    stream: bool | None = None
    return_tokens: Annotated[bool | None, _doc("return the ids of the completion's tokens; streams have them")] = None
    timings_per_token: bool | None = None
    return_progress: bool | None = None
    response_fields: Annotated[
        list[str] | None, _doc("fields of the response to return; `a/b` is field b of a, under this name")
    ] = None
    lora: Annotated[list[LoraScale] | None, _doc("a mixture with fixed weights")] = None
    parse_special: Annotated[
        bool | None, _doc("read the control tokens that a prompt spells; absent: yes. No: they are text (an extension)")
    ] = None


class TokenProbability(Struct, kw_only=True):
    id: int
    token: str
    bytes: list[int]
    logprob: float


class CompletionProbability(TokenProbability, kw_only=True):
    """A token of the completion, and the most likely ones at its place."""

    top_logprobs: list[TokenProbability]


class LlamaCompletionChunk(Struct, kw_only=True):
    """One event of a streamed completion of POST /completion, except the last."""

    index: int
    content: str
    tokens: list[int]
    stop: Literal[False] = False
    id_slot: int = -1
    tokens_predicted: int
    tokens_evaluated: int
    completion_probabilities: list[CompletionProbability] | UnsetType = UNSET
    timings: Timings | UnsetType = UNSET
    prompt_progress: PromptProgress | UnsetType = UNSET


class LlamaCompletion(Struct, kw_only=True):
    """Response of POST /completion, and the last event of its stream, whose text has been sent before."""

    index: int
    content: str
    tokens: Annotated[list[int], _doc("empty unless requested")]
    id_slot: Annotated[int, _doc("-1: slots are not assigned by requests")] = -1
    stop: Literal[True] = True
    model: str
    tokens_predicted: int
    tokens_evaluated: Annotated[int, _doc("tokens of the prompt")]
    generation_settings: GenerationSettings
    prompt: Annotated[str, _doc("as it was run, control tokens by name")]
    has_new_line: bool
    truncated: Annotated[bool, _doc("the prompt was cut from the left (--truncate-sequence)")]
    stop_type: Literal["none", "eos", "limit", "word"]
    stopping_word: Annotated[str, _doc("the stop string that ended the completion, or empty")]
    tokens_cached: Annotated[int, _doc("tokens in the cache at the end")]
    completion_probabilities: list[CompletionProbability] | UnsetType = UNSET
    timings: Timings | UnsetType = UNSET
