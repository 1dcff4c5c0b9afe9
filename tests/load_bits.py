"""Random requests alone and under load, through the real server: their texts, log-probabilities and adapter weights
must be equal.

    python -m tests.load_bits [--requests 2000] [--seed 0]

A random model whose vocabulary is not round, LoRAs and an X-LoRA mixture, in float32 and bfloat16 and in every form of
weights. Each request is sent by itself first, then all of them in another order with sixteen in flight.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from tests.integration.adapted_models import write_adapter, write_base, write_mixture
from tests.integration.conftest import start_server

VOCABULARY, TOKENS = 2053, 2048
"""Rows of the output matrix, and tokens of the tokenizer, which are fewer."""
IN_FLIGHT = 16
FORMS = (
    ("none", "float32"),
    ("none", "bfloat16"),
    ("int8", "float32"),
    ("int8", "bfloat16"),
    ("q8_0", "float32"),
    ("q8_0", "bfloat16"),
    ("q4_0", "bfloat16"),
    ("q4_k", "bfloat16"),
)


def random_request(rng: np.random.Generator) -> dict[str, Any]:
    body: dict[str, Any] = {
        "prompt": rng.integers(3, TOKENS, int(rng.integers(1, 90))).tolist(),
        "max_tokens": int(rng.integers(1, 25)),
        "seed": int(rng.integers(0, 2**31)),
        "temperature": float(rng.choice([0.0, 0.7, 1.0, 1.5])),
        "logprobs": int(rng.integers(0, 6)),
        "ignore_eos": True,
    }
    if rng.random() < 0.3:
        body["top_p"] = 0.9
    if rng.random() < 0.2:
        body["top_k"] = 20
    if rng.random() < 0.2:
        body["repetition_penalty"] = 1.2
    if rng.random() < 0.15:
        body["echo"] = True
    kind = rng.choice(["base", "lora", "mixture by hand", "xlora", "xlora", "frozen"])
    match kind:
        case "base":
            body["model"] = "base"
        case "lora":
            body["model"] = str(rng.choice(["poet", "one", "two"]))
        case "mixture by hand":
            body["adapters"] = {"poet": 0.5, "two": float(rng.choice([0.25, 1.0]))}
        case "frozen":
            body["xlora"] = {"non_granular_index": int(rng.integers(1, 6)), "scalings": "summary"}
        case _:
            body["xlora"] = {"scalings": "tokens"}
    return body


async def answers(url: str, bodies: list[dict[str, Any]], order: list[int], in_flight: int) -> list[Any]:
    """What tells of bits in each response, in the order of the requests."""
    found: list[Any] = [None] * len(bodies)
    queue = iter(order)

    async def worker(client: httpx.AsyncClient) -> None:
        for index in queue:
            response = await client.post(f"{url}/v1/completions", json=bodies[index])
            assert response.status_code == 200, response.text
            found[index] = response.json()["choices"]

    async with httpx.AsyncClient(timeout=600) as client:
        await asyncio.gather(*(worker(client) for _ in range(in_flight)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000, help="in all forms together")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "load-bits-jax"))
    each = -(-options.requests // len(FORMS))
    total = wrong = 0
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        base = write_base(root / "base", vocab_size=VOCABULARY)
        write_mixture(root / "mixture", base)
        write_adapter(root / "poet", base, seed=1)
        for number, (quant, dtype) in enumerate(FORMS):
            rng = np.random.default_rng([options.seed, number])
            bodies = [random_request(rng) for _ in range(each)]
            folder = root / f"{quant}-{dtype}"
            folder.mkdir()
            flags = ("--quant", quant, "--dtype", dtype, "--max-seqs", "16", "--max-seq-len", "128", "--device", "cpu")
            model = ("x-lora-mistral", "-m", str(base), "-x", str(root / "mixture"), "--lora", f"poet={root / 'poet'}")
            server = start_server(folder, *flags, command=model)
            try:
                server.wait_until_healthy()
                start = time.monotonic()
                alone = asyncio.run(answers(server.url, bodies, list(range(each)), 1))
                order = rng.permutation(each).tolist()
                loaded = asyncio.run(answers(server.url, bodies, order, IN_FLIGHT))
                seconds = time.monotonic() - start
            finally:
                server.popen.terminate()
                server.popen.wait(60)
            differing = [i for i in range(each) if alone[i] != loaded[i]]
            total, wrong = total + each, wrong + len(differing)
            print(f"{quant:5} {dtype:9} {each} requests, {len(differing)} differ, {seconds:.0f} s", flush=True)
            for i in differing[:3]:
                print(f"   alone {alone[i]}\n   under load {loaded[i]}\n   {bodies[i]}")
    print(f"{total} requests, {wrong} differ")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
