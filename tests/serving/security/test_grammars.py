"""Grammars, schemas, expressions and parsers of tool calls: hostile ones hold up nobody and fill no memory.

What each costs by itself is tested in `tests.mistral_jax.grammar.test_limits`. Here they are posted to a server, in
crowds, while its health is watched.
"""

from __future__ import annotations

import ast
import itertools
import json
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

import httpx
import psutil
import pytest

from mistral_jax.grammar.cache import MAX_BYTES
from mistral_jax.grammar.grammar import Grammar
from mistral_jax.grammar.limits import TIME_LIMIT
from tests.mistral_jax.grammar.test_limits import HOSTILE
from tests.serving.api.requests.test_large_bodies import Watch, server_process
from tests.serving.harness import CHAT, MESSAGES, TEXT
from tests.serving.security.server_code import calls, modules

MIB = 2**20
SAMPLE = (
    *("brackets", "exponent", "nested", "large product", "all of twice", "enum", "optional properties", "patterns"),
    *("catastrophic backtracking", "exponential automaton", "nested repetition", "left recursion", "rules", "no end"),
    *("GBNF left recursion", "GBNF repetition", "unfinished strings"),
)


def bodies(grammar: Grammar) -> list[bytes]:
    """Requests that ask for a grammar in the ways there are."""
    asked: dict[str, Any] = {"messages": MESSAGES, "prompt": "x", "max_tokens": 2}
    fields = {
        "json_schema": "guided_json",
        "regex": "regex",
        "choice": "guided_choice",
        "gbnf": "ebnf",
        "lark": "grammar",
    }
    value = list(grammar.choices) if grammar.kind == "choice" else grammar.text
    found = [json.dumps(asked | {fields[grammar.kind]: value}).encode()]
    if grammar.kind == "json_schema":
        function = {"name": "f", "strict": True, "parameters": {"type": "object", "properties": {"a": "SCHEMA"}}}
        asked |= {"tools": [{"type": "function", "function": function}], "tool_choice": "required"}
        # As it is written: not everything that is JSON survives json.loads.
        found.append(json.dumps(asked).replace('"SCHEMA"', grammar.text).encode())
    return found


def post_all(url: str, requests: Iterable[bytes], *, clients: int = 4) -> list[float]:
    """Post them from several clients. Returns how long each took."""
    waiting, took = iter(requests), list[float]()
    lock = threading.Lock()
    odd: list[str] = []

    def post() -> None:
        with httpx.Client(timeout=60, headers={"Content-Type": "application/json"}) as client:
            while True:
                with lock:
                    body = next(waiting, None)
                if body is None:
                    return
                started = time.monotonic()
                response = client.post(f"{url}{CHAT if b'"tools"' in body else TEXT}", content=body)
                took.append(time.monotonic() - started)
                if response.status_code not in (200, 400) or len(response.content) > 8192:
                    odd.append(f"{response.status_code} {response.text[:300]} {body[:200]!r}")

    threads = [threading.Thread(target=post) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert odd == []
    return took


@pytest.mark.parametrize("names", [SAMPLE, pytest.param(tuple(HOSTILE), marks=pytest.mark.slow)], ids=["sample", "all"])
def test_grammar_dos_health_answers_and_memory_stays_while_hostile_grammars_come(names: Sequence[str]) -> None:
    requests = [body for name in names for body in bodies(HOSTILE[name])]
    slow: list[str] = []
    for _ in range(3):  # each time a new server, which has compiled nothing
        with server_process(plan="tools") as (url, popen):
            with Watch(url) as idle:
                time.sleep(1)
            process = psutil.Process(popen.pid)
            post_all(url, requests[:1])
            before = process.memory_info().rss
            with Watch(url) as watch:
                took = post_all(url, requests)
            # As before, once more, and with further grammars: the cache is bounded.
            post_all(url, requests)
            patterns = ({"prompt": "x", "max_tokens": 1, "regex": f"[a-z]{{1,{9 + index}}}"} for index in range(300))
            post_all(url, [json.dumps(body).encode() for body in patterns])
            after = process.memory_info().rss
        slowest = max(took)
        assert slowest < 3 * TIME_LIMIT + 5, slowest
        assert after - before < MAX_BYTES + 500 * MIB, (before // MIB, after // MIB)
        # Four grammars are compiled at once, on perhaps two cores: the event loop waits for a core, not for them.
        if not (found := watch.slow(idle.seconds, worst=3, usual=0.8)):
            return
        slow.append(found)
    pytest.fail(str(slow))


def test_grammar_dos_a_hundred_at_once_leave_room_for_an_honest_one() -> None:
    """The hostile ones come with one key, the honest one with another: it waits for its turn, not for all of them."""
    keys = ("--api-key", "hostile", "--api-key", "honest")
    hostile = {"prompt": "x", "max_tokens": 1}
    with server_process(*keys, plan="tools") as (url, _):
        stop = threading.Event()
        count = itertools.count()

        def flood() -> None:
            with httpx.Client(timeout=60, headers={"X-Api-Key": "hostile"}) as client:
                while not stop.is_set():
                    pattern = f"(?:[a-z]{{0,9}}[a-m][a-z]{{1,15}}){{1,50}}{next(count)}"
                    client.post(f"{url}{TEXT}", json=hostile | {"regex": pattern})

        threads = [threading.Thread(target=flood) for _ in range(30)]
        for thread in threads:
            thread.start()
        try:
            time.sleep(1)
            took: list[float] = []
            for number in range(4):
                started = time.monotonic()
                body = {"prompt": "x", "max_tokens": 1, "regex": f"[ab]{{{number + 1}}}"}
                response = httpx.post(f"{url}{TEXT}", json=body, headers={"X-Api-Key": "honest"}, timeout=60)
                took.append(time.monotonic() - started)
                assert response.status_code == 200, response.text
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert min(took) < 2.5, took


def test_tool_parsers_run_nothing_and_have_no_backtracking_expressions() -> None:
    """Expressions match a name or an id at most. `tests.mistral_jax.chat.output.test_parser` measures the time."""
    seen = 0
    for path, tree in modules().items():
        if path.startswith("mistral_jax/chat/output/"):
            for name, call in calls(tree):
                assert name not in ("eval", "exec", "ast.literal_eval", "literal_eval"), path
                if name == "re.compile":
                    seen += 1
                    pattern = ast.unparse(call.args[0])
                    assert not any(repeated in pattern for repeated in ("+", "*", "|", "?")), pattern
    assert seen
