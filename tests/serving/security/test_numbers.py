"""Integer parameters: every number of every request at its extremes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from serving.api.description.openapi import document
from serving.api.endpoint import Endpoint
from serving.api.endpoints import ENDPOINTS
from tests.serving.fakes import FakeEngine, fake_service
from tests.serving.harness import CHAT, MESSAGES, TEXT, running

pytestmark = pytest.mark.anyio

EXTREMES = (
    *("-1", "0", "-2147483649", "2147483648", "4294967296", "-9223372036854775808", "9223372036854775807"),
    *(
        "9223372036854775808",
        "-9223372036854775809",
        "1" + "0" * 400,
        "1" + "0" * 4200,
        "1e308",
        "-1e308",
        "5e-324",
        "1e400",
        "-0.0",
        "0.5",
    ),
)
POSTED = [endpoint for endpoint in ENDPOINTS if endpoint.request is not None]


def numbers(schema: Mapping[str, Any], schemas: Mapping[str, Any], levels: int = 4) -> Iterator[list[str | int]]:
    """The places of numbers in values of a schema: names, 0 for an item of a list, "1" for a key of a map."""
    if "$ref" in schema:
        schema = schemas[schema["$ref"].rpartition("/")[2]]
    if not levels:
        return
    if schema.get("type") in ("integer", "number"):
        yield []
    for option in schema.get("anyOf", ()):
        yield from numbers(option, schemas, levels)
    for name, inner in schema.get("properties", {}).items():
        yield from ([name, *place] for place in numbers(inner, schemas, levels - 1))
    if isinstance(schema.get("items"), dict):
        yield from ([0, *place] for place in numbers(schema["items"], schemas, levels))
    if isinstance(schema.get("additionalProperties"), dict):
        yield from (["1", *place] for place in numbers(schema["additionalProperties"], schemas, levels))


def with_number(place: list[str | int]) -> Any:
    """A value that has a number there, as `NUMBER`."""
    if not place:
        return "NUMBER"
    first, *rest = place
    return [with_number(rest)] if isinstance(first, int) else {first: with_number(rest)}


@pytest.mark.parametrize("endpoint", POSTED, ids=lambda endpoint: endpoint.operation_id)
async def test_integer_parameters_at_their_extremes_are_honoured_or_refused(endpoint: Endpoint[Any]) -> None:
    schemas = document(ENDPOINTS)["components"]["schemas"]
    assert endpoint.request is not None
    places = list(numbers(schemas[endpoint.request.__name__], schemas))
    async with running(service=fake_service(FakeEngine("ok"))) as client:
        for place in places:
            for number in EXTREMES:
                body = json.dumps({**endpoint.example, **with_number(place)}).replace('"NUMBER"', number)
                response = await client.post(endpoint.path, content=body)
                assert response.status_code in (200, 400, 403, 404), (body, response.text)
                if response.status_code == 400:
                    assert len(response.content) < 4096


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, {"n": 9}, "n"),
        (CHAT, {"n": 10**9}, "n"),
        (TEXT, {"n": 2**31}, "n"),
        (TEXT, {"best_of": 10**9}, "best_of"),
        (TEXT, {"n": 8, "prompt": ["x"] * 100}, "n"),
        (TEXT, {"prompt": [[3]] * 200}, "prompt"),
        ("/completion", {"prompt": "x", "n_cmpl": 10**6}, "n_cmpl"),
        ("/completion", {"prompt": "x", "n_predict": -3}, "n_predict"),
    ],
)
async def test_integer_parameters_cannot_multiply_the_work(path: str, body: dict[str, Any], param: str) -> None:
    engine = FakeEngine()
    async with running(engine) as client:
        response = await client.post(path, json={"messages": MESSAGES, "prompt": "x"} | body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert engine.submitted == []


@pytest.mark.parametrize("prompt", ["", [], [""], [[]], ["", ""]])
async def test_integer_parameters_an_empty_prompt_is_defined(prompt: Any) -> None:
    """A text without letters is the BOS token; a list without token ids is refused."""
    async with running(FakeEngine("ok")) as client:
        response = await client.post(TEXT, json={"prompt": prompt})
        assert response.status_code == (400 if prompt in ([], [[]]) else 200), response.text
        assert (await client.get("/health")).status_code == 200


@pytest.mark.parametrize(
    "bias", [{"-1": 1}, {"1e3": 1}, {"٣": 1}, {"+3": 1}, {" 3": 1}, {"03": 1}, {"9" * 5000: 1}, {"0x3": 1}, {"": 1}]
)
async def test_integer_parameters_keys_of_biases_are_token_ids(bias: dict[str, Any]) -> None:
    async with running() as client:
        response = await client.post(TEXT, json={"prompt": "x", "logit_bias": bias})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "logit_bias"
