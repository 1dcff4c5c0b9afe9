"""curl, in a shell, as in README and in scripts."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from tests.clients.conftest import KEY
from tests.integration.conftest import ServerProcess

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")

Shell = Callable[..., subprocess.CompletedProcess[str]]
CHAT = """\
curl {options} "$URL/v1/chat/completions" -H "Authorization: Bearer $KEY" -H "Content-Type: application/json" \\
  -d '{body}'"""


def environment(server: ServerProcess) -> dict[str, str]:
    """The server's address and key, for command lines."""
    return {"URL": server.url, "KEY": KEY, "PATH": os.environ["PATH"]}


@pytest.fixture
def shell(server: ServerProcess) -> Shell:
    """Runs a command line."""

    def shell(command: str, **changes: str) -> subprocess.CompletedProcess[str]:
        env = {**environment(server), **changes}
        words = ["bash", "-o", "pipefail", "-c", command]
        return subprocess.run(words, env=env, capture_output=True, text=True, check=False, timeout=60)

    return shell


def chat(options: str = "-sS", **body: object) -> str:
    return CHAT.format(options=options, body=json.dumps({"messages": [{"role": "user", "content": "Hello"}], **body}))


def test_whole(shell: Shell) -> None:
    done = shell(chat("-fsS", max_tokens=5))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["choices"][0]["message"]["content"]


def test_streamed_event_by_event(server: ServerProcess) -> None:
    """With `-N` the events arrive while they are generated, not all at the end."""
    body = {"max_tokens": 400, "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}
    command = ["bash", "-c", chat("-sSN", **body)]
    arrived: list[tuple[float, str]] = []
    with subprocess.Popen(command, env=environment(server), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        arrived += [(time.monotonic(), line.rstrip("\n")) for line in process.stdout]
    assert process.returncode == 0
    assert [line for _, line in arrived[-2:]] == ["data: [DONE]", ""]
    assert all(line == "" or line.startswith("data: ") for _, line in arrived)
    events = [(at, json.loads(line[6:])) for at, line in arrived if line.startswith("data: {")]
    assert events[-1][1]["usage"]["completion_tokens"] == 400
    decoding = events[-1][1]["timings"]["predicted_ms"] / 1000
    assert events[-1][0] - events[0][0] > decoding / 2


def test_a_stream_that_is_left_ends(shell: Shell, server: ServerProcess) -> None:
    left = shell(f"{chat('-sSN', max_tokens=1900, ignore_eos=True, stream=True)} | head -n 3")
    assert left.stdout.startswith("data: {")
    deadline = time.monotonic() + 10
    while server.health()["running"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("body", "changes", "status", "code"),
    [
        ({"temperature": 9}, {}, 400, None),
        ({"model": "gpt-4o"}, {}, 404, "model_not_found"),
        ({}, {"KEY": "wrong"}, 401, "invalid_api_key"),
    ],
)
def test_errors_have_a_status(shell: Shell, body: dict, changes: dict, status: int, code: str | None) -> None:
    """In the body, on standard output beside it, and with `-f` as curl's own exit status."""
    done = shell(chat("-sS -w '\\n%{http_code}'", **body), **changes)
    error, told = done.stdout.rsplit("\n", 1)
    assert int(told) == status
    assert json.loads(error)["error"]["code"] == code
    failed = shell(chat("-fsS", **body), **changes)
    assert failed.returncode == 22
    assert str(status) in failed.stderr
    assert failed.stdout == ""


def test_bodies_that_are_no_json(shell: Shell) -> None:
    post = 'curl -sS -w "\\n%{http_code}" "$URL/v1/chat/completions" -H "Authorization: Bearer $KEY"'
    broken = shell(f"{post} -H 'Content-Type: application/json' -d '{{\"messages\": '")
    assert broken.stdout.endswith("\n400")
    # What curl says by itself of a body is that it is a form.
    form = shell(f"{post} -d '{{}}'")
    assert form.stdout.endswith("\n415")
    assert "Content-Type" in json.loads(form.stdout.rsplit("\n", 1)[0])["error"]["message"]


def test_a_full_queue_is_retried(
    shell: Shell, full_queue: Callable[[], AbstractContextManager[Callable[[], None]]]
) -> None:
    with full_queue() as end:
        refused = shell(chat("-sS -D - -o /dev/null", max_tokens=2))
        assert refused.stdout.split()[1] == "503"
        assert re.search(r"(?im)^retry-after: [1-9]", refused.stdout)
        timer = threading.Timer(0.5, end)
        timer.start()
        retried = shell(chat("-fsS --retry 5", max_tokens=2))
        timer.join()
    assert json.loads(retried.stdout)["choices"]
    assert "503" in retried.stderr


def test_endpoints_without_a_key(shell: Shell) -> None:
    done = shell("set -e; for path in /health /livez /version /openapi.json; do curl -fsS -o /dev/null $URL$path; done")
    assert done.returncode == 0, done.stderr
    listed = shell('curl -fsS $URL/v1/models -H "X-Api-Key: $KEY"')
    assert [model["id"] for model in json.loads(listed.stdout)["data"]] == ["tiny"]
