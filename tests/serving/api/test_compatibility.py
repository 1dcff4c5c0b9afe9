"""docs/openai-compatibility.md has every field that OpenAI's clients can send, and every extension."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import openai.types.chat.completion_create_params as chat_params
import openai.types.completion_create_params as text_params
import openai.types.embedding_create_params as embedding_params
import openai.types.responses.input_token_count_params as input_token_params
import openai.types.responses.response_create_params as response_params
import pytest
import typing_extensions

from serving.api.endpoint import Endpoint
from serving.api.endpoints import ENDPOINTS

PAGE = Path(__file__).parents[3] / "docs" / "openai-compatibility.md"
PARAMS: Mapping[str, type] = {
    "/v1/chat/completions": chat_params.CompletionCreateParamsBase,
    "/v1/completions": text_params.CompletionCreateParamsBase,
    "/v1/embeddings": embedding_params.EmbeddingCreateParams,
    "/v1/responses": response_params.ResponseCreateParamsBase,
    "/v1/responses/input_tokens": input_token_params.InputTokenCountParams,
}
"""The typed bodies of openai-python."""
BY_PATH: Mapping[str, Endpoint[Any]] = {
    endpoint.path: endpoint for endpoint in ENDPOINTS if endpoint.request is not None
}
SERVED = [path for path in PARAMS if path in BY_PATH]

VLLM = """
    top_k min_p repetition_penalty min_tokens stop_token_ids include_stop_str_in_output ignore_eos skip_special_tokens
    spaces_between_special_tokens truncate_prompt_tokens prompt_logprobs allowed_token_ids bad_words use_beam_search
    length_penalty structured_outputs guided_json guided_regex guided_choice guided_grammar guided_decoding_backend
    priority request_id logits_processors return_tokens_as_token_ids return_token_ids cache_salt prompt_embeds
"""
LLAMA_CPP = """
    top_k min_p typical_p top_n_sigma xtc_probability xtc_threshold dry_multiplier dry_base dry_allowed_length
    dry_penalty_last_n dry_sequence_breakers dynatemp_range dynatemp_exponent mirostat mirostat_tau mirostat_eta grammar
    json_schema samplers cache_prompt id_slot t_max_predict_ms min_keep timings_per_token return_progress lora
"""
SGLANG = """
    top_k min_p min_tokens regex ebnf repetition_penalty stop_token_ids stop_regex rid extra_key custom_logit_processor
"""
OUR_OWN = "adapter adapters xlora"
OF_CHATS = """
    add_generation_prompt continue_final_message documents chat_template chat_template_kwargs thinking_token_budget
    functions function_call
"""


def sections() -> dict[str, set[str]]:
    """The fields in the page, by endpoint; those of objects in bodies under "objects"."""
    found: dict[str, set[str]] = {}
    name = ""
    for line in PAGE.read_text("utf-8").splitlines():
        if line.startswith("## "):
            name = "objects" if line == "## Objects in a body" else line.removeprefix("## POST ")
        elif (row := re.match(r"\| `([^`]+)` \| (honoured|accepted|refused) \|", line)) is not None:
            found.setdefault(name, set()).add(row[1])
    return found


@pytest.mark.parametrize("path", SERVED)
def test_every_field_of_openais_bodies_is_on_the_page(path: str) -> None:
    fields = set(typing_extensions.get_type_hints(PARAMS[path]))
    if path.endswith("completions"):
        fields.add("stream")
    assert fields - sections()[path] == set()


def test_the_endpoints_of_openai_that_are_served_are_compared() -> None:
    assert {"/v1/chat/completions", "/v1/completions"} <= set(SERVED)
    # Whoever adds one adds its parameters here.
    assert {path for path in BY_PATH if path in PARAMS} == set(SERVED)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_every_extension_that_other_servers_have_is_on_the_page(path: str) -> None:
    names = f"{VLLM} {LLAMA_CPP} {SGLANG} {OUR_OWN} {OF_CHATS if 'chat' in path else ''}".split()
    assert set(names) - sections()[path] == set()


@pytest.mark.parametrize("path", BY_PATH)
def test_every_field_of_our_schemas_is_on_the_page(path: str) -> None:
    endpoint = BY_PATH[path]
    if endpoint.fields is None:
        pytest.skip("its schema refuses all other fields")
    assert endpoint.request is not None
    assert set(endpoint.request.__struct_fields__) - sections()[path] == set()
    assert {field.name for field in endpoint.fields} == sections()[path]


KINDS = frozenset(
    (
        *("text", "function", "json_object", "json_schema", "allowed_tools", "message", "input_text", "output_text"),
        *("function_call", "function_call_output", "reasoning", "reasoning_text"),
    )
)
"""The values of `type` that are served. Objects of other kinds are refused as a whole, by their `type`."""


def is_served(hints: Mapping[str, Any]) -> bool:
    """Whether an object with these fields is not of a kind that is refused."""
    kinds = typing.get_args(hints.get("type"))
    return not kinds or bool(KINDS & set(kinds))


def objects_in(hint: Any, where: str, seen: frozenset[type] = frozenset()) -> Iterator[tuple[str, set[str]]]:
    """The objects in values of a type: their places, as in our tables, and their fields."""
    if typing_extensions.is_typeddict(hint):
        hints = typing_extensions.get_type_hints(hint)
        if hint in seen or not is_served(hints):
            return
        yield where, set(hints)
        for name, inner in hints.items():
            yield from objects_in(inner, f"{where}.{name}" if where else name, seen | {hint})
        return
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            yield from objects_in(option, where, seen)
    elif origin in (list, Iterable, Sequence):
        yield from objects_in(arguments[0], f"{where}[]", seen)


@pytest.mark.parametrize("path", SERVED)
def test_every_field_of_openais_objects_is_on_the_page(path: str) -> None:
    """Of objects whose fields are checked: the others are refused, or their schemas refuse what they do not know."""
    endpoint, page = BY_PATH[path], sections()["objects"]
    missing: dict[str, set[str]] = {}
    compared: set[str] = set()
    for where, fields in objects_in(PARAMS[path], ""):
        if where in endpoint.objects:
            compared.add(where)
            missing.setdefault(where, set()).update(name for name in fields if f"{where}.{name}" not in page)
    assert {where: names for where, names in missing.items() if names} == {}
    assert endpoint.objects.keys() - compared <= OF_OTHERS


OF_OTHERS = {"structured_outputs", "response_format", "response_format.json_schema"}
"""Objects that OpenAI's bodies do not have: response_format is an extension on /v1/completions."""
