"""What the programs of a model would do on an NVIDIA GPU: kernels, bytes moved, memory, compile time. Needs no GPU.

usage: python -m benchmarks.gpu_programs [--gpu h100] [--size 7b] [--weights bfloat16,Q4_K] [--programs decode,prefill]
  [--rows 1,8,64] [--keys 1024,4096,32768] [--layers all | --warm-up] [--output FILE.json]

XLA compiles each program for a described GPU. A program's bytes are set against those that it needs: its weights once,
the keys and values that its rows hold, and its logits. Programs are compiled with one layer and with two, and a model's
figures extrapolated; `--layers all` compiles all of them, for the time that takes. `--warm-up` compiles instead
everything that a server compiles at its start, with all layers, and prints the seconds.

The predicted time is the larger of bytes over bandwidth and operations over peak rate, plus a launch for each kernel.
It is a bound of what the program could reach, not a measurement.

Needs an environment with `jax[cuda12]`, about 3 GB; any machine.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.decode_with_adapters import RandomLoRA, random_xlora
from benchmarks.gpu.devices import GPU, GPUS, LAUNCH
from benchmarks.make_random_model import SHAPES, shape
from conversion.weights.ggml_types import BY_NAME
from mistral_jax.adapters.bank import AdapterSet
from mistral_jax.model.config import MistralConfig
from mistral_jax.model.layers import Embedding, Linear
from mistral_jax.model.mistral import Mistral
from mistral_jax.quant.array import Int8Array, QuantizedArray
from mistral_jax.quant.grouped import can_group, grouped
from mistral_jax.runtime.buckets import DEFAULT_CHUNKS
from mistral_jax.runtime.calls import Call, RunnerState
from mistral_jax.runtime.device_memory import temporary_bytes
from mistral_jax.runtime.runner import Runner
from mistral_jax.runtime.sampling.sample import COMMON_FEATURES
from mistral_jax.runtime.step import SEVERAL
from mistral_jax.runtime.warming.empty_calls import EmptyCalls

if TYPE_CHECKING:
    from benchmarks.gpu.described import DescribedPlacement
    from benchmarks.gpu.report import Report

CHUNK = 512
RANK = 16
"""Of each adapter."""
SAMPLERS = dict(zip(("greedy", "drawn", "truncated", "any-sampling"), (*COMMON_FEATURES, None), strict=True))
"""Programs of sampling, by the features that they have work for; None: all, decided at run time."""
_XLORA = ("xlora", "xlora-ahead", "xlora-prefill")
PROGRAMS = ("decode", "several", "prefill", "score", "run", "lora", *_XLORA, *SAMPLERS)
_OF_CHUNKS = ("prefill", "xlora-prefill", "score")
MIB = 2**20
COLUMNS = ("weights", "program", "rows", "keys", "kernels", "of a layer", "moved, MiB", "needed, MiB", "moved / needed")
COLUMNS += ("temporary, MiB", "compiling, s", "predicted, ms")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One program of a model."""

    size: str
    weights: str
    """A plain type, int8, or a ggml type."""
    program: str
    """One of `PROGRAMS`; several: decode steps, sampling included; run: rows that take several tokens without a choice
    at once."""
    rows: int
    keys: int
    """Tokens that each row holds, and the length of the tables."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Of a whole model."""

    kernels: int
    kernels_of_a_layer: int
    conditionals: int
    copies: int
    """Kernels that do nothing but copy or transpose."""
    moved: int
    """Bytes that are read and written in device memory."""
    needed: int
    """Bytes that have to be."""
    temporary: int
    """Bytes of temporary memory; of two layers, as it does not grow with them."""
    temporary_estimate: int
    """What `mistral_jax.runtime.device_memory` expects at most, of the model's largest program."""
    operations: int
    compile_seconds: float
    """Of the layers that were compiled."""

    @property
    def ratio(self) -> float:
        return self.moved / self.needed

    def seconds(self, gpu: GPU) -> float:
        return gpu.seconds(moved=self.moved, operations=self.operations, kernels=self.kernels)


def model_of(config: MistralConfig, weights: str, placement: DescribedPlacement) -> Mistral:
    """A model of shapes only, on a described device."""
    from benchmarks.gpu.described import shapes_on

    plain = weights in ("bfloat16", "float32", "float16")
    dtype = jnp.dtype(weights if plain else "bfloat16")
    model = nnx.eval_shape(lambda: Mistral(config, param_dtype=dtype, rngs=nnx.Rngs(0)))
    if not plain:
        for _, module in nnx.iter_modules(model):
            if isinstance(module, Linear | Embedding):
                module.weight = nnx.Param(_packed(module.weight.get_value().shape, weights))
    for module in (*(model.matrices() if dtype.itemsize == 2 else ()), *model.norms()):
        module.by_kernel = True
    graphdef, state = nnx.split(model)
    return nnx.merge(graphdef, shapes_on(state, placement))


def _packed(sizes: tuple[int, ...], form: str) -> Any:
    out, columns = sizes
    if form == "int8":
        return Int8Array(jax.ShapeDtypeStruct((out, columns), jnp.int8), jax.ShapeDtypeStruct((out,), jnp.float32))
    kind = BY_NAME[form]
    raw = jax.ShapeDtypeStruct((out, kind.row_bytes(columns)), jnp.uint8)
    return jax.eval_shape(partial(grouped, kind=kind), raw) if can_group(kind) else QuantizedArray(raw, kind)


def runner_of(
    case: Case, layers: int, placement: DescribedPlacement, chunks: Sequence[int] = (CHUNK,)
) -> tuple[Runner, RunnerState]:
    """A runner of shapes only, and its state."""
    from benchmarks.gpu.described import shapes_on

    config = replace(shape(case.size), num_layers=layers, layer_windows=(), max_position_embeddings=2**17)
    model = model_of(config, case.weights, placement)
    adapters, classifier = None, None
    if case.program in ("lora", *_XLORA):
        count = 1 if case.program == "lora" else 9
        adapters = AdapterSet(
            config, [RandomLoRA(name=f"{i}", config=config, rank=RANK) for i in range(count)], dtype=model.dtype
        )
        adapters.bank = shapes_on(adapters.bank, placement)
    if adapters is not None and case.program != "lora":
        graphdef, state = nnx.split(nnx.eval_shape(partial(random_xlora, config, adapters.capacity)))
        classifier = nnx.merge(graphdef, shapes_on(state, placement))
    runner = Runner(
        model,
        slots=case.rows,
        length=case.keys,
        chunks=chunks,
        adapters=adapters,
        xlora=classifier,
        gpu_kernels=True,
    )
    runner.programs.placement = placement
    return runner, RunnerState(*shapes_on(jax.eval_shape(runner.programs.allocate), placement))


def call_of(case: Case, runner: Runner, state: RunnerState) -> Call[Any]:
    calls = EmptyCalls(runner)
    bucket = runner.buckets.rows[-1]
    match case.program:
        case "score":
            return calls.prefill(state, size=runner.buckets.score, length=case.keys, scaling=False, score=True)
        case "prefill" | "xlora-prefill":
            scaling = case.program == "xlora-prefill"
            return calls.prefill(state, size=runner.buckets.chunks[-1], length=case.keys, scaling=scaling)
        case name if name in SAMPLERS:
            return calls.sample(state, bucket=bucket, only=SAMPLERS[name])
        case "several":
            return calls.several(state, bucket=bucket, length=case.keys, only=SAMPLERS["drawn"])
        case "run":
            return calls.forward(state, bucket=bucket, length=case.keys, run=True)
        case "xlora" | "xlora-ahead":
            ahead = case.program == "xlora-ahead"
            return calls.forward(state, bucket=bucket, length=case.keys - 1, scaling=True, speculative=ahead)
        case _:
            return calls.forward(state, bucket=bucket, length=case.keys)


def nbytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def compile_case(case: Case, layers: int, gpu: GPU, placement: DescribedPlacement) -> tuple[Report, int, int, float]:
    """Returns: what the program does, the bytes that it needs, its operations, and the seconds that compiling took."""
    from benchmarks.gpu.described import compile_for
    from benchmarks.gpu.report import pool_reads, report

    runner, state = runner_of(case, layers, placement)
    call = call_of(case, runner, state)
    start = time.perf_counter()
    compiled = compile_for(gpu, call.program, *call.arguments, **call.static)
    seconds = time.perf_counter() - start
    prefills = case.program in _OF_CHUNKS
    rows = 1 if prefills else runner.buckets.rows[-1]
    tokens = runner.buckets.chunks[-1] if prefills else rows
    reads = pool_reads(state.caches.scaled.layers[0], rows * case.keys)
    figures = report(compiled, reads)
    live = next(iter(reads.values()))
    passes = 2 if case.program in ("xlora", "xlora-prefill") else 1
    caches = 2 if case.program in _XLORA else 1
    weights, head = weight_bytes(runner.model)
    needed = passes * (weights + nbytes(runner.programs.extra())) + caches * layers * 2 * live
    config = runner.config
    parameters = config.num_parameters - config.vocab_size * config.hidden_size
    logits = rows * config.vocab_size * 4
    if case.program in SAMPLERS:
        needed, parameters = logits, 0
    elif case.program not in ("prefill", "xlora-prefill"):
        needed += head * passes + logits
    if case.program == "several":
        needed, tokens = needed * SEVERAL, tokens * SEVERAL
    operations = 2 * passes * parameters * (8 if case.program == "run" else caches // passes) * tokens
    return figures, needed, operations, seconds


def weight_bytes(model: Mistral) -> tuple[int, int]:
    """Of the layers, and of the output matrix."""
    head = model.embed_tokens if model.lm_head is None else model.lm_head
    return nbytes(nnx.state(model.layers)), nbytes(nnx.state(head))


def measure(case: Case, gpu: GPU, placement: DescribedPlacement, *, whole: bool) -> Figures:
    """Args:
    whole: compile all layers.
    """
    layers = shape(case.size).num_layers
    two, needed_two, operations_two, seconds = compile_case(case, 2, gpu, placement)
    one, needed_one, operations_one, _ = compile_case(case, 1, gpu, placement)

    def extrapolated(one: int, two: int) -> int:
        return one + (layers - 1) * (two - one)

    kernels, moved = extrapolated(one.launches, two.launches), extrapolated(one.moved, two.moved)
    temporary = two.temporary
    if whole:
        all_layers, _, _, seconds = compile_case(case, layers, gpu, placement)
        kernels, moved, temporary = all_layers.launches, all_layers.moved, all_layers.temporary
    return Figures(
        kernels=kernels,
        kernels_of_a_layer=two.launches - one.launches,
        conditionals=two.conditionals,
        copies=len(two.copies),
        moved=moved,
        needed=extrapolated(needed_one, needed_two),
        temporary=temporary,
        temporary_estimate=_estimate(case),
        operations=extrapolated(operations_one, operations_two),
        compile_seconds=round(seconds, 1),
    )


def _estimate(case: Case) -> int:
    experts = {"lora": 1} | dict.fromkeys(_XLORA, 9)
    return temporary_bytes(
        shape(case.size),
        slots=case.rows,
        chunks=(CHUNK,),
        itemsize=4 if case.weights == "float32" else 2,
        rank_rows=RANK * experts.get(case.program, 0),
        layerwise=case.program in _XLORA,
    )


def warm_up(case: Case, gpu: GPU, placement: DescribedPlacement) -> list[dict[str, Any]]:
    """Compile all programs of a server, one after another, as a GPU's server does."""
    from benchmarks.gpu.described import compile_for

    runner, state = runner_of(case, shape(case.size).num_layers, placement, chunks=DEFAULT_CHUNKS)
    compiled: list[dict[str, Any]] = []
    for make in EmptyCalls(runner).all():
        call = make(state)
        start = time.perf_counter()
        compile_for(gpu, call.program, *call.arguments, **call.static)
        compiled.append({"program": call.program.__name__, "seconds": round(time.perf_counter() - start, 1)})
        print(compiled[-1], flush=True)
    print(f"{len(compiled)} programs, {sum(each['seconds'] for each in compiled):.1f} s")
    return compiled


def cases(args: argparse.Namespace) -> Sequence[Case]:
    def named(text: str) -> list[str]:
        return text.split(",")

    found = [
        Case(size=args.size, weights=weights, program=program, rows=int(rows), keys=int(keys))
        for weights in named(args.weights)
        for program in named(args.programs)
        for rows in named(args.rows)
        for keys in named(args.keys)
    ]
    # A chunk is of one row.
    return [case for case in found if case.program not in _OF_CHUNKS or case.rows == int(named(args.rows)[0])]


def main() -> None:
    from benchmarks.gpu.described import described

    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("--gpu", default="h100", choices=GPUS)
    parser.add_argument("--size", default="7b", choices=SHAPES)
    parser.add_argument("--weights", default="bfloat16")
    parser.add_argument("--programs", default="decode,prefill", help=f"some of {', '.join(PROGRAMS)}")
    parser.add_argument("--rows", default="1,8,64")
    parser.add_argument("--keys", default="1024,4096,32768")
    parser.add_argument("--layers", choices=["extrapolated", "all"], default="extrapolated")
    parser.add_argument("--warm-up", action="store_true")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    gpu = GPUS[args.gpu]
    placement = described(gpu)
    if args.warm_up:
        results = [asdict(case) | {"warm_up": warm_up(case, gpu, placement)} for case in cases(args)]
        _write(args.output, gpu, results)
        return
    print(f"| {' | '.join(COLUMNS)} |")
    print("|---" * len(COLUMNS) + "|")
    results: list[dict[str, Any]] = []
    for case in cases(args):
        found = measure(case, gpu, placement, whole=args.layers == "all")
        predicted = found.seconds(gpu)
        print(
            f"| {case.weights} | {case.program} | {case.rows} | {case.keys} | {found.kernels} | "
            f"{found.kernels_of_a_layer} | {found.moved // MIB} | {found.needed // MIB} | {found.ratio:.3f} | "
            f"{found.temporary // MIB} | {found.compile_seconds} | {predicted * 1e3:.2f} |",
            flush=True,
        )
        results.append(asdict(case) | asdict(found) | {"predicted_seconds": predicted})
    _write(args.output, gpu, results)


def _write(output: Path | None, gpu: GPU, results: list[dict[str, Any]]) -> None:
    if output is not None:
        report = {
            "gpu": gpu.name,
            "described": True,
            "versions": {name: version(name) for name in ("jax", "jaxlib", "jax-cuda12-plugin", "flax")},
            "launch_seconds_assumed": LAUNCH,
            "programs": results,
        }
        output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
