"""Decode speed of transformers, and of PEFT's X-LoRA over the same model. Needs torch, transformers and peft.

usage: python time_peft_xlora.py MODEL_DIR XLORA_DIR {float32|bfloat16} ROWS[,ROWS…] PROMPT_TOKENS ANSWER_TOKENS

PEFT has no caches for X-LoRA: each token is two passes over the whole text so far. So `generate` itself is timed, after
a prompt of the given length; the longer that is, the more a token costs. The base model has its cache.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import XLoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer


class Clock(BaseStreamer):
    """Records when tokens arrive; the first call has the prompt."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def load_mixture(model: Any, folder: Path) -> Any:
    """PEFT's model of a mixture in the original library's layout, whose classifier has one layer."""
    config = json.loads((folder / "xlora_config.json").read_text())
    if config["xlora_depth"] != 1:
        raise SystemExit(f"{folder}: a classifier of {config['xlora_depth']} layers; expected one")
    model.config.use_cache = False
    settings = {
        key: config[key]
        for key in ("hidden_size", "layerwise_scalings", "enable_softmax", "softmax_temperature", "top_k_lora")
        if key in config
    }
    # Other names than these fail in the first pass.
    adapters = {str(i): str(folder / name) for i, name in enumerate(config["adapters"])}
    mixed = get_peft_model(model, XLoraConfig(task_type="CAUSAL_LM", adapters=adapters, xlora_depth=1, **settings))
    last = mixed.base_model.internal_xlora_classifier.layers[-1]
    tensors = load_file(folder / "xlora_classifier.safetensors")
    with torch.no_grad():
        last.weight.copy_(tensors["last.weight"])
        last.bias.copy_(tensors["last.bias"])
    return mixed.eval()


def steps(model: Any, rows: int, prompt: int, answer: int, *, cache: bool) -> list[float]:
    """Seconds of each token of `rows` texts after the first."""
    clock = Clock()
    tokens = torch.randint(3, 200, (1, prompt)).repeat(rows, 1)
    model.generate(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=answer + 1,
        min_new_tokens=answer + 1,
        do_sample=False,
        use_cache=cache,
        pad_token_id=0,
        streamer=clock,
    )
    return [b - a for a, b in itertools.pairwise(clock.times[1:])]


def main(folder: str, xlora: str, dtype: str, rows: str, prompt_tokens: str, answer_tokens: str) -> None:
    warnings.simplefilter("ignore")
    prompt, answer = int(prompt_tokens), int(answer_tokens)
    counts = [int(n) for n in rows.split(",")]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    timings: list[dict[str, Any]] = []

    def measure(kind: str, timed: Any, *, cache: bool) -> None:
        steps(timed, 1, 8, 1, cache=cache)
        for count in counts:
            step = statistics.median(steps(timed, count, prompt, answer, cache=cache))
            timings.append({"kind": kind, "rows": count, "prompt_tokens": prompt, "decode_step_ms": step * 1e3})

    with torch.inference_mode():
        measure("base", model, cache=True)
    measure("X-LoRA", load_mixture(model, Path(xlora)), cache=False)
    versions = {name: version(name) for name in ("torch", "transformers", "peft")}
    print(json.dumps({"dtype": dtype, "versions": versions, "timings": timings}))


if __name__ == "__main__":
    main(*sys.argv[1:])
