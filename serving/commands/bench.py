"""`mistral-jax bench`: prefill and decode speed of a model, on this machine, without the server."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mistral_jax import __version__
from mistral_jax.adapters.choice import BASE, AdapterChoice
from mistral_jax.checkpoint.description import describe
from mistral_jax.checkpoint.summary import summarize
from mistral_jax.quant.placement import Device
from mistral_jax.runtime.runner import Runner
from mistral_jax.runtime.sampling.params import SamplingParams
from mistral_jax.runtime.sampling.sample import Features
from serving.api.service.served_models import ServedModels
from serving.build.build_adapters import open_adapter_files, served_models, with_base_model
from serving.build.build_service import load_runner, model_files, use_compilation_cache
from serving.build.gpus import choose_device
from serving.settings.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Medians for one number of rows."""

    rows: int
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    """Of all rows together."""
    decode_step_ms: float
    weight_bytes_per_second: float
    """Weight bytes divided by step time: the memory bandwidth needed if nothing else were read."""


def run_bench(
    settings: Settings, *, rows: tuple[int, ...], prompt_tokens: int, answer_tokens: int, repeats: int, as_json: bool
) -> int:
    """Time each number of rows and print a table, or one JSON object. Returns the exit status."""
    use_compilation_cache(settings)
    settings = with_base_model(settings)
    description = describe(model_files(settings), chat_template=settings.chat_template)
    placement = choose_device(settings)
    device = placement.device
    length = prompt_tokens + answer_tokens + 1
    if length > description.config.max_position_embeddings:
        raise ValueError(
            f"{prompt_tokens} + {answer_tokens} tokens are more than the model's "
            f"{description.config.max_position_embeddings}"
        )
    adapters = open_adapter_files(settings, description.config)
    first = load_runner(
        settings, description, placement, length=length, slots=max(rows), report=lambda *_: None, adapters=adapters
    )
    choices = _choices(served_models(settings, adapters, created=0))
    # All runners share the same weights; only the shapes differ.
    runners = [
        type(first)(
            first.model,
            slots=count,
            length=length,
            chunks=first.chunk_sizes,
            adapters=first.adapters,
            xlora=first.xlora,
        )
        for count in rows
    ]
    timings = [time_runner(runner, prompt_tokens, answer_tokens, repeats, choices) for runner in runners]
    bandwidth = copy_bandwidth(device)
    result: dict[str, Any] = {
        "model": settings.served_id,
        "parameters": description.config.num_parameters,
        "dtype": str(first.dtype),
        "quant": settings.quant,
        "activations": settings.activations,
        "weight_bytes": first.weight_bytes,
        "weights": str(summarize(first.model)),
        "adapters": [] if adapters is None else list(adapters.names),
        "xlora": first.xlora is not None,
        "device": device.device_kind if device.platform != "cpu" else platform.processor() or platform.machine(),
        "platform": device.platform,
        "copy_bytes_per_second": bandwidth,
        "prompt_tokens": prompt_tokens,
        "answer_tokens": answer_tokens,
        "versions": {"mistral-jax": __version__, **{name: version(name) for name in ("jax", "jaxlib", "flax")}},
        "timings": [asdict(timing) for timing in timings],
    }
    print(json.dumps(result) if as_json else _table(result, timings))
    return 0


def _table(result: dict[str, Any], timings: list[Timing]) -> str:
    lines = [
        f"{result['model']}: {result['parameters'] / 1e6:,.0f} M weights in {result['weights']}",
        f"computing in {result['dtype']} on {result['device']}; memory is read and written at "
        f"{result['copy_bytes_per_second'] / 1e9:.1f} GB/s",
        f"prompt {result['prompt_tokens']} tokens, completion {result['answer_tokens']} tokens; medians",
        *_adapter_lines(result),
        "",
        f"{'rows':>5} {'prefill tok/s':>14} {'decode tok/s':>13} {'ms/step':>9} {'weights GB/s':>13}",
    ]
    lines += [
        f"{t.rows:>5} {t.prefill_tokens_per_second:>14,.1f} {t.decode_tokens_per_second:>13,.2f} "
        f"{t.decode_step_ms:>9,.2f} "
        f"{t.weight_bytes_per_second / 1e9:>13,.1f}"
        for t in timings
    ]
    return "\n".join(lines)


def _adapter_lines(result: dict[str, Any]) -> list[str]:
    count = len(result["adapters"])
    if result["xlora"]:
        return [
            f"X-LoRA, adapters: {count}; two passes for each token; a server decodes faster where speculation succeeds"
        ]
    return [f"LoRA adapters, one for each row in turn: {count}"] if count else []


def _choices(models: ServedModels) -> list[AdapterChoice]:
    """Adapter choices for the rows, in turn: the mixture, or one adapter each, or the model alone."""
    if models.has_mixture or not models.adapters:
        default = models.find(None)
        assert default is not None
        return [default.choice]
    return [model.choice for model in models.models if model.kind == "adapter"]


def time_runner(
    runner: Runner, prompt_tokens: int, answer_tokens: int, repeats: int, choices: Sequence[AdapterChoice] = (BASE,)
) -> Timing:
    """Args:
    choices: adapter choices for the rows, in turn.
    """
    state = runner.warm_up(runner.new_state())
    rng = np.random.default_rng(0)
    params = SamplingParams(temperature=0.0, seed=0)
    prefills: list[float] = []
    steps: list[float] = []
    slots = list(range(runner.slots))
    for _ in range(repeats):
        for slot in slots:
            # One token more than is timed: the first decode step processes the last one.
            prompt = rng.integers(0, runner.config.vocab_size, prompt_tokens + 1).tolist()
            choice = choices[slot % len(choices)]
            state = runner.admit(state, slot, prompt, params, choice)
            jax.block_until_ready(state.rows)
            start = time.perf_counter()
            done = None
            for chunk in runner.chunks(len(prompt)):
                state, done, *_ = runner.prefill(state, slot, prompt, chunk, scaling=choice.xlora)
            jax.block_until_ready(done)
            prefills.append(time.perf_counter() - start)
        # Like the server: each step is dispatched before the tokens of the previous one are read.
        pending = None
        last = time.perf_counter()
        for step in range(answer_tokens - 1):
            scaling = any(choice.needs_scaling(step) for choice in choices)
            longest = prompt_tokens + 1 + step
            state, packed, *_ = runner.decode(state, slots, Features(), longest=longest, scaling=scaling)
            if pending is not None:
                np.asarray(pending)
                now = time.perf_counter()
                steps.append(now - last)
                last = now
            pending = packed
        jax.block_until_ready(pending)
    step_time = statistics.median(steps)
    return Timing(
        rows=runner.slots,
        prefill_tokens_per_second=prompt_tokens / statistics.median(prefills),
        decode_tokens_per_second=runner.slots / step_time,
        decode_step_ms=step_time * 1e3,
        weight_bytes_per_second=runner.weight_bytes / step_time,
    )


def copy_bandwidth(device: Device, size: int = 256 * 2**20) -> float:
    """Bytes read and written per second by an in-place pass over `size` bytes on the device; allocates no memory."""
    with jax.default_device(device):
        x = jnp.zeros((size // 4,), jnp.float32)
        touch = jax.jit(lambda x: x + 1, donate_argnums=0)
        times: list[float] = []
        for _ in range(8):
            start = time.perf_counter()
            x = touch(x).block_until_ready()
            times.append(time.perf_counter() - start)
    return 2 * size / statistics.median(times[1:])
