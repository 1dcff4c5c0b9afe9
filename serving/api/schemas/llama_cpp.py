"""llama.cpp's own endpoints: what its clients read that OpenAI's API does not have."""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Struct, UnsetType

from serving.api.schemas.documented import documented as _doc


class LoraScale(Struct, kw_only=True):
    """The weight of an adapter."""

    id: Annotated[int, _doc("its number, see GET /lora-adapters")]
    scale: Annotated[float, _doc("from -100 to 100")]


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
