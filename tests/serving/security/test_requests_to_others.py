"""SSRF: whatever address a request names, the server connects to nobody and reads no file."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from serving.api.endpoints import ENDPOINTS
from tests.serving.fakes import FakeEngine
from tests.serving.harness import CHAT, MESSAGES, listening
from tests.serving.security.server_code import imports, is_of, modules

pytestmark = pytest.mark.slow

FETCHING = {
    "requests",
    "urllib.request",
    "urllib3",
    "httpx",
    "aiohttp",
    "http.client",
    "ftplib",
    "telnetlib",
    "smtplib",
}


@contextmanager
def watched_port() -> Iterator[tuple[int, list[Any]]]:
    """A port, and the connections that came to it."""
    came: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        stop = threading.Event()

        def accept() -> None:
            while not stop.is_set():
                try:
                    connection, address = listener.accept()
                except TimeoutError:
                    continue
                came.append(address)
                connection.close()

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield listener.getsockname()[1], came
        finally:
            stop.set()
            thread.join()


def bodies(url: str) -> list[dict[str, Any]]:
    user: dict[str, Any] = {"role": "user"}
    return [
        {"messages": [user | {"content": [{"type": "image_url", "image_url": {"url": url}}]}]},
        {"messages": [user | {"content": [{"type": "input_audio", "input_audio": {"data": url}}]}]},
        {"messages": [user | {"content": [{"type": "file", "file": {"file_id": url}}]}]},
        {"messages": [user | {"content": f'<img src="{url}"> ![x]({url})'}]},
        {"messages": MESSAGES, "guided_json": {"$ref": url}},
        {"messages": MESSAGES, "guided_json": {"$schema": url, "$id": url, "$dynamicRef": url}},
        {"messages": MESSAGES, "response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": url}}}},
        {"messages": MESSAGES, "grammar": f"%import {url}"},
        {"messages": MESSAGES, "documents": [{"text": url, "url": url}]},
        {"messages": MESSAGES, "model": url},
        {"messages": MESSAGES, "adapter": url},
        {"messages": MESSAGES, "web_search_options": {"url": url}},
        {"messages": MESSAGES, "metadata": {"callback": url}, "webhook": url, "callback_url": url},
        {"prompt": url, "lora_name": "x", "lora_path": url, "input": url, "content": url},
        {"prompt": "x", "lora_name": url},
    ]


def test_ssrf_no_request_makes_the_server_connect_anywhere() -> None:
    with watched_port() as (port, came), listening(FakeEngine("ok")) as server, httpx.Client(timeout=20) as client:
        for url in (f"http://127.0.0.1:{port}/x", "file:///etc/passwd"):
            for body in bodies(url):
                for endpoint in ENDPOINTS:
                    if endpoint.request is None or "{" in endpoint.path:
                        continue
                    content = json.dumps({**endpoint.example, **body}).encode()
                    headers = {"Content-Type": "application/json", "Referer": url, "X-Forwarded-Host": url}
                    response = client.post(server.url + endpoint.path, content=content, headers=headers)
                    assert response.status_code in (200, 400, 403, 404, 501), response.text
                    assert "root:" not in response.text
        assert came == []


def test_ssrf_nothing_that_serves_requests_can_fetch() -> None:
    """Only the Hub client can, which finds the model at the start."""
    for path, tree in modules().items():
        if path.startswith("mistral_jax/hub/"):
            continue
        for name in imports(tree):
            assert not is_of(name, FETCHING), f"{path} imports {name}"
            assert path.startswith("serving/commands/") or not is_of(name, {"huggingface_hub"}), (
                f"{path} imports {name}"
            )


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file", "video_url", "image"])
def test_ssrf_parts_other_than_text_are_refused_by_name(kind: str) -> None:
    with listening(FakeEngine("ok")) as server:
        part = {"type": kind, kind: {"url": "http://127.0.0.1:9/"}}
        response = httpx.post(f"{server.url}{CHAT}", json={"messages": [{"role": "user", "content": [part]}]})
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith("messages[0].content[0]")
