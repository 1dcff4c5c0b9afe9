"""instructor: objects of a type, by tools and in its JSON modes, whole and in parts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from tests.clients.asked import QUESTION, Anything, Forecast, Trip
from tests.clients.conftest import KEY

instructor = pytest.importorskip("instructor")
errors = pytest.importorskip("instructor.core")
ASKED: Any = {"model": "tiny", "messages": QUESTION, "max_retries": 0}


@pytest.fixture
def client(url: str) -> Iterator[Callable[[str], Any]]:
    """Makes a client of a mode."""
    with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=60) as plain:
        yield lambda mode: instructor.from_openai(plain, mode=instructor.Mode[mode])


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA"])
@pytest.mark.parametrize("kind", [Forecast, Trip])
def test_objects(client: Callable[[str], Any], mode: str, kind: type) -> None:
    asking = client(mode).chat.completions
    found, completion = asking.create_with_completion(**ASKED, response_model=kind, max_tokens=400)
    assert isinstance(found, kind)
    assert completion.usage.completion_tokens > 0


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA"])
def test_objects_in_parts(client: Callable[[str], Any], mode: str) -> None:
    parts = list(client(mode).create_partial(**ASKED, response_model=Forecast, max_tokens=400))
    assert len(parts) > 1
    Forecast.model_validate(parts[-1].model_dump())


def test_json_mode(client: Callable[[str], Any]) -> None:
    """It describes the type to the model, and has the server constrain the completion to some JSON object."""
    assert isinstance(client("JSON").create(**ASKED, response_model=Anything, max_tokens=400), Anything)


def test_a_completion_without_room_is_told(client: Callable[[str], Any]) -> None:
    with pytest.raises(errors.IncompleteOutputException):
        client("TOOLS").create(**ASKED, response_model=Trip, max_tokens=5)


def test_the_responses_api(client: Callable[[str], Any], require: Callable[[str], None]) -> None:
    require("/v1/responses")
    asking = client("RESPONSES_TOOLS")
    assert isinstance(asking.create(**ASKED, response_model=Trip, max_output_tokens=400), Trip)


def test_async(url: str) -> None:
    async def run() -> Any:
        async with openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0) as plain:
            client = instructor.from_openai(plain, mode=instructor.Mode.TOOLS)
            return await client.create(**ASKED, response_model=Trip, max_tokens=400)

    assert isinstance(asyncio.run(run()), Trip)
