"""Structured output and tool calls of the real server with random weights: whatever the model would write, what comes
is valid. Every completion is also compared with the same request alone.

    python -m tests.structured_load [--schemas 200] [--calls 200] [--kind tekken]

For each kind of real tokenizer, on a tiny random model: strict JSON schemas of growing difficulty
(`tests.mistral_jax.grammar.random_schemas`), and forced calls of tools with such parameters, many at once, whole and
streamed, sampled and greedy, with penalties, log-probabilities and several choices. jsonschema is the validator.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from jsonschema import Draft202012Validator

from mistral_jax.tokenizer import load_tokenizer
from serving.build.build_service import build_service
from serving.settings.settings import Settings
from tests.conversion.tiny_models import write_folder
from tests.mistral_jax.grammar.random_schemas import random_schema
from tests.mistral_jax.tokenizer.tokenizer_corpus import SENTENCEPIECE, TEKKEN
from tests.serving.harness import listening, wait_until_ready

KINDS = ("sentencepiece", "tekken", "byte_level")
GOLDENS = Path(__file__).parent / "goldens" / "tokenizers"
CHAT = "/v1/chat/completions"
TEMPLATE = (
    "{% if tools %}<tool_call> tools: {{ tools | tojson }}{% endif %}"
    "{% for message in messages %}[{{ message.role }}]{{ message.content }}"
    "{% for call in message.tool_calls %}{{ call.function.name }}{% endfor %}{% endfor %}"
)
"""Knows tools in Hermes' format."""
SLOTS = 8


def write_model(folder: Path, kind: str) -> Path:
    """A tiny random model with a real tokenizer."""
    folder.mkdir(parents=True)
    match kind:
        case "sentencepiece":
            shutil.copyfile(SENTENCEPIECE["v3"], folder / "tokenizer.model")
        case "tekken":
            shutil.copyfile(TEKKEN["240911"], folder / "tekken.json")
        case _:
            shutil.copytree(GOLDENS / kind, folder, dirs_exist_ok=True)
    made = load_tokenizer(folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    shutil.rmtree(folder)
    write_folder(
        folder,
        vocab_size=made.vocab_size + 13,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=8192,
        bos_token_id=made.bos_id,
        eos_token_id=made.eos_id,
    )
    for path in folder.glob("tokenizer*"):
        path.unlink()
    for name, content in files.items():
        if name != "config.json":
            (folder / name).write_bytes(content)
    return folder


@contextmanager
def serving(folder: Path, kind: str) -> Generator[httpx.Client]:
    template = folder.parent / "template.jinja"
    template.write_text(TEMPLATE)
    settings: dict[str, Any] = {
        "model_kind": "mistral",
        "model_id": str(folder),
        "device": "cpu",
        "dtype": "float32",
        "max_seqs": SLOTS,
        "max_seq_len": 8192,
        "prefill_chunk": 64,
        "max_queue": 64,
        "wait_for_programs": True,
        "log_level": "error",
        "compilation_cache": os.environ.get("JAX_COMPILATION_CACHE_DIR", "none"),
        **({} if kind == "sentencepiece" else {"chat_template": str(template)}),
    }
    service = build_service(Settings(**settings))
    with listening(service=service, **settings) as server:
        wait_until_ready(service.engine)
        with httpx.Client(base_url=server.url, timeout=300) as client:
            yield client


def closing_bias(client: httpx.Client, vocab_size: int) -> dict[str, float]:
    """Makes noise come to an end: closing characters, and the quote. More tokens are more noise to outweigh."""
    tokens = {
        token
        for text in ('"', '"}', '"]', "}", "]", "]}", '",', ", ", '": "')
        for token in client.post("/tokenize", json={"content": text}).json()["tokens"]
    }
    return {str(token): 4.0 + max(0.0, math.log(vocab_size / 32_000)) for token in tokens}


def body_of(seed: int, bias: dict[str, float]) -> dict[str, Any]:
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": f"Question {seed}"}],
        "seed": seed,
        "max_tokens": 900,
        "logit_bias": bias,
        "temperature": (0.0, 0.7, 1.5)[seed % 3],
        "stream": seed % 4 == 1,
    }
    if seed % 5 == 2:
        body |= {"frequency_penalty": 0.5, "repetition_penalty": 1.1, "top_p": 0.9}
    if seed % 5 == 3:
        body |= {"n": 2, "top_k": 50}
    if seed % 7 == 4:
        body |= {"logprobs": True, "top_logprobs": 2}
    return body


def choices_of(client: httpx.Client, body: dict[str, Any]) -> list[dict[str, Any]]:
    """For each choice: finish_reason, content, and calls as [name, arguments]."""
    response = client.post(CHAT, json=body)
    assert response.status_code == 200, response.text
    if not body["stream"]:
        return [
            {
                "finish": choice["finish_reason"],
                "content": choice["message"].get("content") or "",
                "calls": [
                    [call["function"]["name"], call["function"]["arguments"]]
                    for call in choice["message"].get("tool_calls") or []
                ],
            }
            for choice in response.json()["choices"]
        ]
    found = [{"finish": None, "content": "", "calls": []} for _ in range(body.get("n", 1))]
    for line in response.text.splitlines():
        if not line.startswith("data: {"):
            continue
        for choice in json.loads(line[6:])["choices"]:
            own, delta = found[choice["index"]], choice["delta"]
            own["finish"] = choice["finish_reason"] or own["finish"]
            own["content"] += delta.get("content") or ""
            for call in delta.get("tool_calls") or []:
                if call["index"] == len(own["calls"]):
                    own["calls"].append([call["function"]["name"], ""])
                own["calls"][call["index"]][1] += call["function"].get("arguments") or ""
    return found


def check_schema(client: httpx.Client, seed: int, bias: dict[str, float]) -> tuple[dict[str, Any], list[str]]:
    schema = random_schema(seed)
    body = body_of(seed, bias)
    wanted = {"name": "made", "schema": schema, "strict": True}
    body["response_format"] = {"type": "json_schema", "json_schema": wanted}
    results: list[str] = []
    choices = choices_of(client, body)
    for choice in choices:
        if choice["finish"] == "length":
            results.append("cut")
            continue
        assert choice["finish"] == "stop", choice
        _validate(schema, choice["content"], seed)
        results.append("valid")
    return {**body, "got": choices}, results


def check_call(client: httpx.Client, seed: int, bias: dict[str, float]) -> tuple[dict[str, Any], list[str]]:
    names = ("look_up", "convert-units", "f")[: 1 + seed % 3]
    schemas = {name: random_schema((seed + 31 * i) % 200) for i, name in enumerate(names)}
    body = body_of(seed, bias)
    body["tools"] = [
        {"type": "function", "function": {"name": name, "parameters": schema, "strict": True}}
        for name, schema in schemas.items()
    ]
    named = {"type": "function", "function": {"name": names[-1]}}
    body["tool_choice"] = named if seed % 2 else "required"
    body["parallel_tool_calls"] = seed % 3 != 0
    results: list[str] = []
    choices = choices_of(client, body)
    for choice in choices:
        if choice["finish"] == "length":
            results.append("cut")
            continue
        assert choice["finish"] == "tool_calls", (seed, choice)
        assert choice["content"] == "", (seed, choice)
        assert choice["calls"], (seed, choice)
        if not body["parallel_tool_calls"]:
            assert len(choice["calls"]) == 1, (seed, choice)
        for name, arguments in choice["calls"]:
            assert name in ({names[-1]} if seed % 2 else set(names)), (seed, choice)
            _validate(schemas[name], arguments, seed)
        results.append("valid")
    return {**body, "got": choices}, results


def _validate(schema: dict[str, Any], text: str, seed: int) -> None:
    validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    errors = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(json.loads(text))]
    assert not errors, (seed, text, errors)


def run(folder: Path, kind: str, *, schemas: int, calls: int, again: int = 10) -> dict[str, Counter[str]]:
    """Counts of valid completions and of those that were cut off by their limit.

    Args:
      again: one in this many is sent once more, alone, and compared.
    """
    counts: dict[str, Counter[str]] = {"schemas": Counter(), "calls": Counter()}
    model = write_model(folder / kind, kind)
    vocab_size = json.loads((model / "config.json").read_text())["vocab_size"]
    with serving(model, kind) as client, ThreadPoolExecutor(2 * SLOTS) as pool:
        bias = closing_bias(client, vocab_size)
        for what, check, count in (("schemas", check_schema, schemas), ("calls", check_call, calls)):
            done = list(pool.map(lambda seed, check=check: check(client, seed, bias), range(count)))
            for _, results in done:
                counts[what].update(results)
            for body, _ in done[::again]:
                alone = {name: value for name, value in body.items() if name != "got"}
                assert choices_of(client, alone) == body["got"], alone
                counts[what]["same alone"] += 1
        health = client.get("/health").json()
        assert (health["running"], health["waiting"]) == (0, 0)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--schemas", type=int, default=200)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--kind", choices=KINDS)
    args = parser.parse_args()
    for kind in KINDS if args.kind is None else (args.kind,):
        with tempfile.TemporaryDirectory() as folder:
            counts = run(Path(folder), kind, schemas=args.schemas, calls=args.calls)
        print(kind, {what: dict(count) for what, count in counts.items()}, flush=True)


if __name__ == "__main__":
    main()
