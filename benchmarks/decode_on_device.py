"""Prefill and decode speed of a random model whose weights are made on the device: no file, no transfer.

usage: python benchmarks/decode_on_device.py {demo|160m|1b|7b|24b} [--dtype bfloat16] [--quant Q8_0] [--rows 1,8,32]
  [--profile] [--output FILE.json]
Reports tokens per second, and the bytes of weights per second over the measured copy bandwidth of the device.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.gpu.devices import gpu_of
from benchmarks.gpu.profile import compared, kernel_seconds
from benchmarks.gpu.report import Report, pool_reads, report
from benchmarks.make_random_model import SHAPES, shape
from conversion.quantize import quantize
from conversion.weights.ggml_types import BY_NAME
from mistral_jax.checkpoint.summary import summarize
from mistral_jax.model.layers import Embedding, Linear
from mistral_jax.model.mistral import Mistral
from mistral_jax.quant.array import QuantizedArray, int8_array
from mistral_jax.quant.grouped import grouped
from mistral_jax.quant.grouped_kernel import kernel_works
from mistral_jax.quant.placement import Placement
from mistral_jax.runtime.calls import RunnerState
from mistral_jax.runtime.runner import Runner
from mistral_jax.runtime.sampling.params import SamplingParams
from mistral_jax.runtime.warming.empty_calls import EmptyCalls
from serving.commands.bench import copy_bandwidth, time_runner


def pack(model: Mistral, form: str) -> None:
    """Put packed weights in the place of a model's plain matrices, one by one: a ggml type, or int8.

    As the loader does, in groups where the device has a kernel for them.
    """
    kinds = [] if form == "int8" else [BY_NAME[form]]
    in_groups = bool(kinds) and kernel_works(Placement.default(), model.dtype, kinds)
    for _, module in nnx.iter_modules(model):
        if isinstance(module, Linear | Embedding):
            plain = module.weight[...]
            if form == "int8":
                packed = int8_array(plain)
            else:
                kind, raw = BY_NAME[form], quantize(plain, BY_NAME[form])
                packed = grouped(raw, kind) if in_groups else QuantizedArray(raw, kind)
            module.weight = nnx.Param(jax.block_until_ready(packed))


def read(runner: Runner, rows: int, length: int) -> Report:
    """What the program of a decode step does."""
    state = RunnerState(*jax.eval_shape(runner.programs.allocate))
    compiled = EmptyCalls(runner).forward(state, bucket=runner.buckets.rows[-1], length=length).lower().compile()
    return report(compiled, pool_reads(state.caches.scaled.layers[0], rows * length))


def profiled(runner: Runner, rows: int, length: int, bandwidth: float) -> list[dict[str, Any]]:
    """The kernels of a decode step beside `length` tokens in each row, longest first: predicted and measured."""
    state = runner.new_state()
    prompt = (1,) * length
    for slot in range(rows):
        state = runner.admit(state, slot, prompt, SamplingParams(seed=0))
        for chunk in runner.chunks(length):
            state = runner.prefill(state, slot, prompt, chunk).state

    def step() -> Any:
        nonlocal state
        forwarded = runner.forward(state, range(rows), longest=length)
        state = forwarded.state
        return forwarded.made

    kernels = compared(read(runner, rows, length), kernel_seconds(step), bandwidth)
    return [asdict(kernel) | {"is_off": kernel.is_off} for kernel in kernels]


def predicted(runner: Runner, rows: int, length: int) -> dict[str, float]:
    """On a known GPU, what the program of a decode step moves, and the time that it could reach."""
    gpu = gpu_of(runner.device.device_kind)
    if gpu is None:
        return {}
    found, config = read(runner, rows, length), runner.config
    operations = 2 * rows * (config.num_parameters - config.vocab_size * config.hidden_size)
    seconds = gpu.seconds(moved=found.moved, operations=operations, kernels=found.launches)
    return {"moved_bytes": found.moved, "kernels": found.launches, "predicted_step_seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("size", choices=SHAPES)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--quant", default="none", help="a ggml type such as Q4_K, or int8")
    parser.add_argument("--rows", default="1,8,32")
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--answer-tokens", type=int, default=64)
    parser.add_argument("--profile", action="store_true", help="measure each kernel, beside its bytes over bandwidth")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()

    config = shape(args.size)
    # Under jit, so that no float32 intermediate of a whole matrix outlives its use.
    model = nnx.jit(lambda: Mistral(config, param_dtype=jnp.dtype(args.dtype), rngs=nnx.Rngs(0)))()
    if args.quant != "none":
        pack(model, args.quant)
    model.use_kernels(Placement.default())
    device = jax.devices()[0]
    bandwidth = copy_bandwidth(device)
    timings = []
    for rows in (int(n) for n in args.rows.split(",")):
        runner = Runner(model, slots=rows, length=args.prompt_tokens + args.answer_tokens + 1)
        timing = asdict(time_runner(runner, args.prompt_tokens, args.answer_tokens, repeats=3))
        timing["share_of_copy_bandwidth"] = timing["weight_bytes_per_second"] / bandwidth
        timing |= predicted(runner, rows, args.prompt_tokens)
        if args.profile:
            timing["profile"] = profiled(runner, rows, args.prompt_tokens, bandwidth)
        print({name: value for name, value in timing.items() if name != "profile"}, flush=True)
        timings.append(timing)
    report = {
        "model": f"random {args.size}",
        "parameters": config.num_parameters,
        "dtype": args.dtype,
        "weights": str(summarize(model)),
        "device": device.device_kind,
        "copy_bytes_per_second": bandwidth,
        "prompt_tokens": args.prompt_tokens,
        "versions": {name: version(name) for name in ("jax", "jaxlib", "flax")},
        "timings": timings,
    }
    if args.output:
        args.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
