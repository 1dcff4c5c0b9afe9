"""What adapters cost: decode steps of the base model, one LoRA, many LoRAs, X-LoRA, and X-LoRA with speculative steps,
alternating in one run.

usage: python benchmarks/decode_with_adapters.py {BASE | random:1b} [XLORA] [--rows 1,8] [--rounds 9] [--output
  FILE.json]

BASE is anything that `mistral_jax.load` takes, or a random model made on the device; XLORA an X-LoRA folder for it.
Without one, nine random adapters of rank 16 (q, k, v, o, gate) and a layerwise classifier are made. A ratio is the
median of the ratios of neighbouring measurements. Speculative steps of X-LoRA give a row a token only where the guess
was right: the time of a step over that of the base is what a token costs at best (every guess right), twice as much at
worst.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.make_random_model import shape
from conversion.adapters.modules import PARTS, ModuleKey
from conversion.adapters.xlora.config import XLoRAConfig
from mistral_jax.adapters.bank import AdapterSet, Factors
from mistral_jax.adapters.choice import BASE, AdapterChoice
from mistral_jax.adapters.load_adapters import load_adapters, open_adapters
from mistral_jax.adapters.xlora import XLoRA
from mistral_jax.checkpoint.description import describe
from mistral_jax.checkpoint.load_module import load_module
from mistral_jax.hub.files import find_model
from mistral_jax.model.config import MistralConfig
from mistral_jax.model.low_rank import ScalingColumns, part_features
from mistral_jax.model.mistral import Mistral
from mistral_jax.quant.placement import Placement
from mistral_jax.runtime.runner import Runner
from mistral_jax.runtime.sampling.params import SamplingParams
from mistral_jax.runtime.sampling.sample import Features

MANY = 16
"""LoRAs that differ from row to row."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    rank: int
    scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class RandomLoRA:
    """Stands where the files of an adapter would; the layers share their numbers."""

    name: str
    config: MistralConfig
    rank: int = 16

    @property
    def modules(self) -> Mapping[ModuleKey, Scale]:
        keys = (ModuleKey(layer, part) for layer in range(self.config.num_layers) for part in PARTS[:5])
        return {key: Scale(rank=self.rank) for key in keys}

    def read(self, key: ModuleKey) -> tuple[np.ndarray, np.ndarray]:
        out, columns = part_features(self.config)[key.part]
        rng = np.random.default_rng([*self.name.encode(), PARTS.index(key.part)])
        a, b = rng.standard_normal((self.rank, columns), np.float32), rng.standard_normal((out, self.rank), np.float32)
        return a / columns**0.5, 0.1 * b / self.rank**0.5


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A runner, and the kind of step to time on it."""

    runner: Runner
    rows: int
    choices: tuple[AdapterChoice, ...]
    scaling: bool = False
    speculative: bool = False


def random_xlora(config: MistralConfig, experts: int) -> XLoRA:
    keys = [ModuleKey(layer, part) for layer in range(config.num_layers) for part in PARTS[:5]]
    columns = ScalingColumns(count=len(keys), index=tuple((key, i) for i, key in enumerate(keys)))
    settings = XLoRAConfig(hidden_size=config.hidden_size, layerwise_scalings=True)
    return XLoRA(settings, num_experts=experts, columns=columns, rngs=nnx.Rngs(0))


def subjects(
    module: Mistral, rows: list[int], xlora_folder: Path | None, make: Callable[..., Runner]
) -> dict[str, Subject]:
    config, dtype = module.config, module.dtype
    if xlora_folder is None:
        experts: list[Factors] = [RandomLoRA(name=f"expert {i}", config=config) for i in range(9)]
        bank, classifier = AdapterSet(config, experts, dtype=dtype), random_xlora(config, len(experts))
    else:
        files = open_adapters(config, xlora=xlora_folder)
        experts = list(files.loras)
        bank, found = load_adapters(files, dtype=dtype)
        assert found is not None
        classifier = found
    one = AdapterSet(config, experts[:1], dtype=dtype)
    found_subjects: dict[str, Subject] = {}
    first = AdapterChoice(weights=((0, 1.0),))
    for n in rows:
        found_subjects |= {
            f"base, {n}": Subject(runner=make(module, slots=max(rows)), rows=n, choices=(BASE,)),
            f"LoRA, {n}": Subject(runner=make(module, slots=max(rows), adapters=one), rows=n, choices=(first,)),
        }
        mixed = partial(Subject, rows=n, choices=(AdapterChoice(xlora=True),), scaling=True)
        runner = make(module, slots=max(rows), adapters=bank, xlora=classifier)
        found_subjects |= {
            f"X-LoRA, {n}": mixed(runner=runner),
            f"X-LoRA ahead, {n}": mixed(
                runner=make(module, slots=max(rows), adapters=bank, xlora=classifier), speculative=True
            ),
        }
    if xlora_folder is None:
        many = AdapterSet(config, [RandomLoRA(name=f"a {i}", config=config) for i in range(MANY)], dtype=dtype)
        each = tuple(AdapterChoice(weights=((i, 1.0),)) for i in range(MANY))
        found_subjects |= {
            f"one LoRA, {MANY}": Subject(runner=make(module, slots=MANY, adapters=one), rows=MANY, choices=(first,)),
            f"{MANY} LoRAs, {MANY}": Subject(runner=make(module, slots=MANY, adapters=many), rows=MANY, choices=each),
        }
    return found_subjects


def time_all(subjects: Mapping[str, Subject], *, prompt: int, rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds of a step, for each subject and round."""
    params = SamplingParams(temperature=0.0, seed=1)
    tokens = tuple(3 + i % 200 for i in range(prompt))
    states = {}
    for name, subject in subjects.items():
        state = subject.runner.new_state()
        for slot in range(subject.rows):
            choice = subject.choices[slot % len(subject.choices)]
            state = subject.runner.admit(state, slot, tokens, params, choice)
            for chunk in subject.runner.chunks(prompt):
                state = subject.runner.prefill(state, slot, tokens, chunk, scaling=choice.xlora).state
        states[name] = state
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    for number in range(rounds + 1):
        for name, subject in subjects.items():
            state, packed = states[name], None
            start = time.perf_counter()
            for step in range(steps):
                state, packed, *_ = subject.runner.decode(
                    state,
                    range(subject.rows),
                    Features(),
                    longest=prompt + (number + 1) * steps + step,
                    scaling=subject.scaling,
                    speculative=subject.speculative,
                )
            jax.block_until_ready(packed)
            states[name] = state
            if number > 0:  # the first compiles
                seconds[name].append((time.perf_counter() - start) / steps)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("base")
    parser.add_argument("xlora", nargs="?", type=Path)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rows", default="1,8")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=8, help="in one measurement")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()

    if args.base.startswith("random:"):
        config = shape(args.base.removeprefix("random:"))
        module = nnx.jit(lambda: Mistral(config, param_dtype=jnp.dtype(args.dtype), rngs=nnx.Rngs(0)))()
        module.use_kernels(Placement.default())
    else:
        module = load_module(describe(find_model(args.base)), dtype=args.dtype)
    length = args.prompt_tokens + (args.rounds + 2) * args.steps + 2
    found = subjects(module, [int(n) for n in args.rows.split(",")], args.xlora, partial(Runner, length=length))
    seconds = time_all(found, prompt=args.prompt_tokens, rounds=args.rounds, steps=args.steps)

    def ratio(name: str, to: str) -> float:
        return round(median(a / b for a, b in zip(seconds[name], seconds[to], strict=True)), 3)

    ratios: dict[str, float] = {}
    for name in found:
        kind, rows = name.rsplit(", ", 1)
        to = f"one LoRA, {MANY}" if kind == f"{MANY} LoRAs" else f"base, {rows}"
        if to in found and to != name:
            ratios[f"{name} / {to}"] = ratio(name, to)
    report = {
        "base": args.base if args.base.startswith("random:") else Path(args.base).name,
        "adapters": "nine random ones, rank 16, q k v o gate" if args.xlora is None else args.xlora.name,
        "parameters": module.config.num_parameters,
        "dtype": args.dtype,
        "device": jax.devices()[0].device_kind,
        "versions": {name: version(name) for name in ("jax", "jaxlib", "flax")},
        "rounds": args.rounds,
        "milliseconds_of_a_step": {name: round(1e3 * median(values), 3) for name, values in seconds.items()},
        "ratios": ratios,
    }
    print(json.dumps(report, indent=1))
    if args.output:
        args.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
