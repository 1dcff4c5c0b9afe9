"""`--log FILE`: every request and response as JSON lines; and the line on standard error."""

from __future__ import annotations

import gc
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from mistral_jax.chat.encoding import PromptPieces
from serving.api.log.exchange import Exchange
from serving.api.log.log_file import LogFile
from serving.api.responses.framing import ChatFraming
from tests.serving.fakes import FakeChat, FakeEngine
from tests.serving.harness import CHAT, MESSAGES, TEXT, running

pytestmark = pytest.mark.anyio


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


async def test_an_exchange_is_two_lines(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    body = {"messages": MESSAGES, "max_tokens": 2, "unknown": [1, None]}
    async with running(FakeEngine("abc"), log=path) as client:
        answer = (
            await client.post(CHAT, json=body, headers={"X-Request-Id": "r1", "Authorization": "Bearer sk"})
        ).json()
    request, response = lines_of(path)
    assert (request["type"], response["type"]) == ("request", "response")
    assert request["request_id"] == response["request_id"] == "r1"
    assert (request["method"], request["path"], request["body"]) == ("POST", CHAT, body)
    assert (response["status"], response["body"], response["error"]) == (200, answer, None)
    assert response["usage"] == answer["usage"]
    assert 0 < response["duration_s"] < 5
    assert "sk" not in path.read_text().replace("task", "")


async def test_a_stream_is_logged_as_the_assembled_answer(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    async with running(FakeEngine("Hö! 🙂"), log=path) as client:
        await client.post(CHAT, json={"messages": MESSAGES, "stream": True})
    body = lines_of(path)[1]["body"]
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"]["content"] == "Hö! 🙂"
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["completion_tokens"] == 10


async def test_errors_are_logged_too_and_health_is_not(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    async with running(log=path) as client:
        await client.get("/health")
        await client.get("/nope")
        await client.post(CHAT, content=b"{broken")
        await client.post(TEXT, json={"prompt": "x", "n": 0})
    entries = lines_of(path)
    assert [entry.get("status") for entry in entries] == [None, 404, None, 400, None, 400]
    assert entries[2]["body"] == "{broken"
    assert entries[5]["body"]["error"]["param"] == "n"


async def test_a_failed_stream_keeps_what_there_was(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    async with running(FakeEngine("abcdef", fail_after=3), log=path) as client:
        await client.post(CHAT, json={"messages": MESSAGES, "stream": True})
    response = lines_of(path)[1]
    assert response["error"].startswith("NaN")
    assert response["body"]["choices"][0]["message"]["content"] == "abc"
    assert response["body"]["choices"][0]["finish_reason"] is None


async def test_the_file_is_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for _ in range(2):
        async with running(log=path) as client:
            await client.get("/v1/models")
    assert len(lines_of(path)) == 4


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"--log .*missing.*: cannot write there: No such file") as error:
        LogFile(tmp_path / "missing" / "log.jsonl")
    assert "\n" not in str(error.value)


async def test_a_body_is_one_line_however_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    body = {"messages": MESSAGES, "user": "two\nlines, ü"}
    too_much = '{"prompt": [' + "[1]," * 70_000 + "[1]]}"
    async with running(FakeEngine("a"), log=path) as client:
        await client.post(CHAT, content=json.dumps(body, indent=4))
        await client.post(CHAT, content=b'{"user": "\xff"}')
        await client.post(TEXT, content=too_much)
    requests = lines_of(path)[::2]
    assert [entry["type"] for entry in requests] == ["request"] * 3
    assert requests[0]["body"] == body
    assert requests[1]["body"] == '{"user": "\ufffd"}'
    assert requests[2]["body"] == too_much[:65536]  # what is refused for its size is not kept at its size


async def test_without_a_file_bodies_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    encode = FakeChat.encode_pieces

    def watched(self: FakeChat, messages: Any, **options: Any) -> PromptPieces:
        seen.extend(each.request for each in gc.get_objects() if isinstance(each, Exchange))
        return encode(self, messages, **options)

    monkeypatch.setattr(FakeChat, "encode_pieces", watched)
    async with running() as client:
        await client.post(CHAT, json={"messages": MESSAGES})
    assert seen
    assert not any(seen)


async def test_each_request_is_one_line_on_standard_error(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="mistral_jax.access")
    async with running(FakeEngine("abc")) as client:
        await client.post(CHAT, json={"messages": MESSAGES}, headers={"X-Request-Id": "r9"})
        await client.get("/bad%0Apath")
    messages = [record.getMessage() for record in caplog.records if record.name == "mistral_jax.access"]
    assert messages[0].startswith(f"POST {CHAT} 200 ")
    assert "9+4 tokens" in messages[0]
    assert messages[0].endswith("id=r9")
    assert "\n" not in messages[1]


async def test_a_streamed_answer_is_not_assembled_for_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With log-probabilities of thousands of tokens that would hold up all other streams."""
    monkeypatch.setattr(ChatFraming, "whole", lambda self: pytest.fail("assembled"))
    caplog.set_level(logging.INFO, "mistral_jax")
    async with running(FakeEngine("Hi")) as client:
        assert (await client.post(CHAT, json={"messages": MESSAGES, "stream": True})).status_code == 200
    assert any("200" in line and "9+3 tokens" in line for line in caplog.messages)


async def test_why_an_answer_failed_is_told_on_its_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mistral_jax")
    async with running(FakeEngine("abc", fail_after=1)) as client:
        assert (await client.post(CHAT, json={"messages": MESSAGES})).status_code == 500
    assert any("500" in line and "(NaN in weights.bin)" in line for line in caplog.messages)
