"""Fields that nobody knows are named in the response's headers and the log, or refused; whatever their names are."""

from __future__ import annotations

import json
import logging
import re
import time
from typing import Any

import httpx
import pytest

from serving.api.json_bounds import MAX_FIELDS
from serving.api.requests.bodies.unknown_fields import HEADER, MOST_NAMED
from tests.serving.harness import CHAT, MESSAGES, TEXT, events_of, running

pytestmark = pytest.mark.anyio


async def post(body: dict[str, Any], *, path: str = CHAT, **settings: Any) -> httpx.Response:
    async with running(**settings) as client:
        return await client.post(path, json=body)


async def test_a_misspelt_field_is_named_with_the_nearest_known_name(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "mistral_jax"):
        response = await post({"messages": MESSAGES, "tempreature": 0, "max_token": 3, "chat_id": "x"})
    assert response.status_code == 200
    assert response.headers[HEADER] == "tempreature;nearest=temperature, max_token;nearest=max_tokens, chat_id"
    (line,) = [record.getMessage() for record in caplog.records if "ignored" in record.getMessage()]
    assert line.startswith(f"request {response.headers['x-request-id']}: ignored fields: ")
    assert "tempreature (did you mean temperature?), max_token (did you mean max_tokens?), chat_id" in line


async def test_known_null_and_empty_fields_are_not_told() -> None:
    known = {"user": "me", "metadata": {"any": "thing"}, "response_format": None, "tools": []}
    message = {"role": "user", "content": "hi", "refusal": None, "annotations": [], "nmae": ""}
    response = await post({"messages": [message], **known, "tempreature": None})
    assert response.status_code == 200
    assert HEADER not in response.headers


async def test_objects_in_a_body_are_looked_at_too() -> None:
    messages = [*MESSAGES, {"role": "user", "content": [{"type": "text", "text": "a", "txet": "b"}], "nmae": "x"}]
    options = {"include_usage": True, "includeUsage": True}
    response = await post({"messages": messages, "stream": True, "stream_options": options})
    assert response.headers[HEADER] == (
        "stream_options.includeUsage;nearest=include_usage, messages[1].nmae;nearest=name, "
        "messages[1].content[0].txet;nearest=text"
    )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), [(CHAT, {"messages": MESSAGES}), (TEXT, {"prompt": "a"})])
async def test_both_endpoints_tell_streamed_and_whole(path: str, body: dict[str, Any], stream: bool) -> None:
    response = await post({**body, "stream": stream, "echoo": 1}, path=path)
    assert response.status_code == 200
    assert response.headers[HEADER].startswith("echoo")
    if stream:
        assert events_of(response.text)


async def test_a_field_of_the_other_endpoint_is_unknown() -> None:
    response = await post({"prompt": "a", "max_completion_tokens": 3}, path=TEXT)
    assert response.headers[HEADER].startswith("max_completion_tokens")


async def test_an_error_tells_them_too() -> None:
    response = await post({"messages": MESSAGES, "temperature": 9, "tempreature": 1})
    assert (response.status_code, response.headers[HEADER]) == (400, "tempreature;nearest=temperature")


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"tempreature": 0}, "tempreature"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
        ({"messages": [{"role": "user", "content": "hi", "weight": 1}]}, "messages[0].weight"),
    ],
)
async def test_strict_fields_refuses_them(extra: dict[str, Any], param: str) -> None:
    response = await post({"messages": MESSAGES, **extra}, strict_fields=True)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "unknown_field", param)
    assert "--strict-fields" in error["message"]
    assert HEADER not in response.headers


async def test_strict_fields_takes_what_is_known() -> None:
    response = await post({"messages": MESSAGES, "user": "me", "temperature": 0, "seed": None}, strict_fields=True)
    assert response.status_code == 200


async def test_hostile_names_neither_break_out_nor_grow(caplog: pytest.LogCaptureFixture) -> None:
    names = [
        "a\r\nSet-Cookie: x=1",
        "\x00\x1b[2J\x7f",
        "é🙂" * 40,
        ", b;nearest=c",
        "x" * 1_000_000,
        "temperature\n",
        "",
    ]
    body = {"messages": MESSAGES, **dict.fromkeys(names, 1), **{f"f{i}": i for i in range(50)}}
    with caplog.at_level(logging.WARNING, "mistral_jax"):
        response = await post(body)
    assert response.status_code == 200
    value = response.headers[HEADER]
    assert re.fullmatch(r"[A-Za-z0-9_.~\[\]%;=, -]+", value)
    assert len(value) < 2500
    assert "set-cookie" not in response.headers
    assert value.endswith(f"...;more={len(names) + 50 - MOST_NAMED}")
    (line,) = [record.getMessage() for record in caplog.records if "ignored" in record.getMessage()]
    assert line.isprintable()
    assert len(line) < 2500


async def test_many_unknown_fields_cost_little() -> None:
    """The nearest name is looked for a few times only, however many fields there are."""
    most = MAX_FIELDS - 1  # and the messages
    crowd = {f"temperatur{i}": i for i in range(most)}
    body = json.dumps({"messages": MESSAGES, **crowd}).encode()
    async with running() as client:
        await client.post(CHAT, json={"messages": MESSAGES})
        took: list[float] = []
        for _ in range(3):
            begun = time.process_time()
            response = await client.post(CHAT, content=body, headers={"Content-Type": "application/json"})
            took.append(time.process_time() - begun)
            assert response.headers[HEADER].endswith(f"...;more={most - MOST_NAMED}")
    assert min(took) < 0.3  # one search takes about a millisecond: that for each of them would take longer
