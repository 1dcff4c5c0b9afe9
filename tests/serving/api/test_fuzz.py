"""No body, however odd, makes a 5xx; and every answer has the right shape."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.api.controllers.generation_fields import FIELDS
from serving.api.endpoint import Endpoint, OneOf
from serving.api.endpoints import ENDPOINTS
from serving.api.schemas import ChatCompletion, ChatCompletionRequest, Completion, CompletionRequest, ErrorResponse
from tests.serving.fakes import FakeEngine
from tests.serving.harness import CHAT, TEXT, events_of, running

pytestmark = pytest.mark.slow

NAMES = sorted(
    {field.name for field in FIELDS}
    | set(ChatCompletionRequest.__struct_fields__)
    | set(CompletionRequest.__struct_fields__)
)
NUMBERS = st.one_of(
    st.integers(-3, 300),
    st.sampled_from([2**31, 2**63, -(2**63), 10**30, 0]),
    st.floats(-3, 3),
    st.floats(allow_nan=False, allow_infinity=False),
)
TEXTS = st.one_of(st.text(max_size=20), st.sampled_from(["none", "auto", "user", "default", "\x00", "é🙂"]))
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=8,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": st.one_of(TEXTS, JSON)}
)
PLAUSIBLE = st.fixed_dictionaries(
    {},
    optional={
        "messages": st.lists(MESSAGE, max_size=3),
        "prompt": st.one_of(TEXTS, st.lists(TEXTS, max_size=3), st.lists(st.integers(-1, 300), max_size=5)),
        "max_tokens": st.one_of(st.none(), st.integers(-1, 40)),
        "temperature": st.one_of(st.none(), st.floats(-1, 3)),
        "n": st.one_of(st.none(), st.integers(-1, 10)),
        "stream": st.one_of(st.none(), st.booleans()),
        "echo": st.one_of(st.none(), st.booleans()),
        "stop": st.one_of(st.none(), TEXTS, st.lists(TEXTS, max_size=3)),
        "logit_bias": st.dictionaries(st.integers(-2, 300).map(str), st.floats(-120, 120), max_size=3),
        "logprobs": st.one_of(st.none(), st.booleans(), st.integers(-1, 22)),
        "top_logprobs": st.one_of(st.none(), st.integers(-1, 22)),
        "seed": st.one_of(st.none(), st.integers()),
    },
)
BODIES = st.one_of(
    st.builds(
        lambda plausible, wild: {**plausible, **wild},
        PLAUSIBLE,
        st.dictionaries(st.sampled_from(NAMES), JSON, max_size=3),
    ),
    PLAUSIBLE,
    JSON,
)


@given(st.lists(st.tuples(st.sampled_from([CHAT, TEXT]), BODIES), min_size=8, max_size=8))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_random_bodies_never_make_a_5xx(cases: list[tuple[str, Any]]) -> None:
    asyncio.run(_send(cases))


async def _send(cases: list[tuple[str, Any]]) -> None:
    async with running(FakeEngine("ok ö")) as client:
        for path, body in cases:
            response = await client.post(path, content=json.dumps(body))
            note = f"{path} {body!r}: {response.status_code} {response.text[:300]}"
            assert response.status_code in (200, 400, 404), note
            if response.status_code != 200:
                msgspec.json.decode(response.content, type=ErrorResponse)
            elif response.headers["content-type"].startswith("text/event-stream"):
                assert all("error" not in event for event in events_of(response.text)), note
            else:
                msgspec.json.decode(response.content, type=ChatCompletion if path == CHAT else Completion)


OTHERS = [
    endpoint
    for endpoint in ENDPOINTS
    if endpoint.request is not None and endpoint.path not in (CHAT, TEXT) and "lora" not in endpoint.path
]


def bodies(endpoint: Endpoint[Any]) -> st.SearchStrategy[Any]:
    """The example of an endpoint with some fields replaced by anything, and anything."""
    wild = st.dictionaries(st.sampled_from(sorted(endpoint.known.get("", ()))), JSON, max_size=3)
    return st.one_of(wild.map(lambda changes: {**endpoint.example, **changes}), wild, JSON)


@pytest.mark.parametrize("endpoint", OTHERS, ids=lambda endpoint: endpoint.operation_id)
@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_endpoint_answers_as_it_says(endpoint: Endpoint[Any], data: st.DataObject) -> None:
    cases = data.draw(st.lists(bodies(endpoint), min_size=8, max_size=8))

    async def send() -> None:
        async with running(FakeEngine("ok ö")) as client:
            for body in cases:
                response = await client.post(endpoint.path, content=json.dumps(body))
                note = f"{endpoint.path} {body!r}: {response.status_code} {response.text[:300]}"
                assert response.status_code in (200, 400, 404), note
                if response.status_code != 200:
                    msgspec.json.decode(response.content, type=endpoint.error_shape.schema)
                elif not response.headers["content-type"].startswith("text/event-stream"):
                    assert fits(response.content, endpoint), note

    asyncio.run(send())


def fits(content: bytes, endpoint: Endpoint[Any]) -> bool:
    """Whether a response has one of the shapes that its endpoint tells."""
    told = endpoint.response
    for shape in told.shapes if isinstance(told, OneOf) else (told,):
        try:
            msgspec.json.decode(content, type=shape)
        except msgspec.ValidationError:
            continue
        return True
    return "response_fields" in (endpoint.known.get("") or ())


@given(st.binary(max_size=60))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_random_bytes_are_a_400(content: bytes) -> None:
    async def send() -> int:
        async with running() as client:
            return (await client.post(CHAT, content=content)).status_code

    assert asyncio.run(send()) == 400
