"""`mistral-jax inspect`, `convert` and `verify`: tools for model files, without a server.

Each calls its Python entry point and prints the result; long operations show a progress bar on standard error.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

from conversion.files.regular_file import exists, is_file
from conversion.inspection import Inspection, find_models, inspect
from conversion.inspection.report import render, size, table
from conversion.weights.tensor_source import WeightFileError
from conversion.weights.weight_files import is_gguf

if TYPE_CHECKING:
    from mistral_jax.quant.plan import Quantization

_DIFFERENT = 1
"""Exit status of `verify` if the checkpoints are not the same model."""


def run_inspect(source: str, *, as_json: bool, tensors: bool) -> int:
    """Print what is in a file or folder; for a folder with several GGUF models, one line each, broken ones
    included."""
    path = _inspected_path(source)
    models = find_models(path)
    if len(models) == 1:
        found = inspect(models[0])
        print(json.dumps(_without_nan(found.as_json()), indent=2) if as_json else render(found, tensors=tensors))
        return 0
    inspections = [_inspected(model) for model in models]
    if as_json:
        data = [i.as_json() if isinstance(i, Inspection) else {"path": str(p), "problem": i} for p, i in inspections]
        print(json.dumps(_without_nan(data), indent=2))
        return 0
    rows = [("file", "parameters", "bits per weight", "size", "largest part")]
    problems: list[str] = []
    for model, i in inspections:
        if isinstance(i, Inspection):
            largest = i.types[0].type if i.types else "-"
            rows.append((model.name, f"{i.parameters:,}", f"{i.bits_per_weight:.2f}", size(i.nbytes), largest))
        else:
            rows.append((model.name, "-", "-", "-", "-"))
            problems.append(i)
    print("\n".join([str(path), *table(rows, right=frozenset({1, 2, 3})), *(f"PROBLEM  {text}" for text in problems)]))
    return 0


def _inspected_path(source: str) -> Path:
    """The file or folder to inspect: a local one, or the local copy of a bundled or Hub model."""
    from conversion.hub_id import is_hub_id
    from mistral_jax.hub.files import BUNDLED_ADAPTERS, DEMO, find_adapter, find_model

    path = Path(source).expanduser()
    if source in BUNDLED_ADAPTERS:
        return find_adapter(source)
    if source != DEMO and (exists(path) or not is_hub_id(source)):
        return path
    if source == DEMO:
        return find_model(source).folder
    adapter = find_adapter(source)  # fetches no weights of models
    if any(adapter.rglob("*adapter_config.json")) or any(adapter.rglob("*xlora_config.json")):
        return adapter
    return _local(source)


def _inspected(model: Path) -> tuple[Path, Inspection | str]:
    """What is in a file, or why it cannot be read."""
    try:
        return model, inspect(model)
    except WeightFileError as error:
        return model, str(error)


def run_convert(
    source: str,
    destination: Path,
    *,
    type: str | None,
    name: str | None,
    overwrite: bool,
    compilation_cache: Path | None,
) -> int:
    """Convert, in the direction that the names imply, and print the result."""
    destination = destination.expanduser()
    to_gguf = destination.suffix.lower() == ".gguf"
    path = _local(source)
    _keep_programs(compilation_cache)
    from_gguf = is_file(path) and is_gguf(path)
    start = time.perf_counter()
    with _stopped_by_sigterm(), _byte_bar(f"writing {destination.name}") as progress:
        if from_gguf and not to_gguf:
            if name is not None:
                raise ValueError("--name is for GGUF files; a folder's name is its own")
            from conversion.to_safetensors import convert_to_safetensors

            dtype = None if type is None else type.lower()
            convert_to_safetensors(path, destination, dtype=dtype, overwrite=overwrite, progress=progress)
        else:
            if not to_gguf:
                raise ValueError(f"{destination} does not end in .gguf, which is what a model folder is converted to")
            from conversion.to_gguf import convert_to_gguf

            convert_to_gguf(path, destination, type=type or "q8_0", name=name, overwrite=overwrite, progress=progress)
    result = inspect(destination)
    print(
        f"{destination}: {size(sum(result.files.values()))}, {result.bits_per_weight:.2f} bits per weight, "
        f"in {time.perf_counter() - start:.1f} s"
    )
    return 0


def run_convert_ordering(
    folder: Path, destination: Path, *, base_model_id: str | None, order: tuple[str, ...] | None, overwrite: bool
) -> int:
    """Write the ordering file derived from an X-LoRA model's files, and print a summary.

    Args:
      base_model_id, order: override those in the model's files; None: keep them.
    """
    from conversion.adapters.xlora.files import open_xlora
    from conversion.adapters.xlora.ordering import derive_ordering, write_ordering

    xlora = open_xlora(folder.expanduser())
    xlora.close()
    base = base_model_id or xlora.config.base_model_id
    if base is None:
        raise ValueError(f"{folder} does not say which base model it is for; give its Hub id with --base-model-id")
    ordering = derive_ordering(xlora.adapters, base_model_id=base)
    if order is not None:
        if sorted(order) != sorted(ordering.order):
            raise ValueError(
                f"--order is {','.join(order)}; expected each of these names once: {','.join(ordering.order)}"
            )
        ordering = replace(ordering, order=order)
    destination = destination.expanduser()
    write_ordering(destination, ordering, overwrite=overwrite)
    modules = 0 if ordering.layers is None else len(ordering.layers)
    print(f"{destination}: {len(ordering.order)} adapters ({', '.join(ordering.order)}), {modules} modules, for {base}")
    return 0


def run_verify(
    a: str,
    b: str,
    *,
    text: Path | None,
    logits: bool,
    max_tokens: int,
    dtype: str,
    quant: str,
    max_rms: float | None,
    max_kl: float | None,
    as_json: bool,
    compilation_cache: Path | None,
) -> int:
    """Compare two checkpoints and print the differences; 1 if tensors do not match or a limit is exceeded."""
    from mistral_jax.checkpoint.progress import progress_bar
    from mistral_jax.checkpoint.weights import choose_dtype
    from mistral_jax.notebook.verify import verify
    from mistral_jax.quant.plan import QUANTIZATIONS

    if quant not in QUANTIZATIONS:
        raise ValueError(f"--quant is {quant!r}; expected one of {', '.join(QUANTIZATIONS)}")
    choose_dtype(dtype, None, "cpu")  # refuses an invalid type before minutes are spent on the tensors
    _keep_programs(compilation_cache)
    with progress_bar("comparing") as bar:

        def show(doing: str, done: int, total: int) -> None:
            bar.set_description(doing, refresh=False)
            bar.total = total
            bar.update(done - bar.n)

        result = verify(
            a,
            b,
            text=None if text is None else _text(text),
            logits=logits,
            max_tokens=max_tokens,
            dtype=dtype,
            quant=cast("Quantization", quant),
            progress=show,
        )
    failures = result.failures(max_rms=max_rms, max_kl=max_kl)
    if as_json:
        data = asdict(result) | {"relative_rms": result.relative_rms, "failures": failures}
        print(json.dumps(_without_nan(data), indent=2, default=str))
    else:
        print("\n".join([str(result), *(f"FAILED: {failure}" for failure in failures)]))
    return _DIFFERENT if failures else 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error.reason} at byte {error.start}") from error


def _local(source: str) -> Path:
    """The folder or GGUF file of a model; for a Hub model, its local copy."""
    from mistral_jax.hub.files import find_model

    files = find_model(source)
    if files.weight_files:
        raise ValueError(
            f"{source} holds weights only; give the folder that it is in, with configuration and tokenizer"
        )
    files.fetch_weights()
    return files.gguf or files.folder


def _keep_programs(folder: Path | None) -> None:
    """Enable the compilation cache, so that a second conversion to a type compiles nothing. Skipped if the folder
    cannot be used."""
    from mistral_jax.runtime.warming.compilation_cache import enable_compilation_cache

    if folder is not None:
        with suppress(OSError):
            enable_compilation_cache(folder)


@contextmanager
def _byte_bar(title: str) -> Generator[Callable[[int, int], None]]:
    from mistral_jax.checkpoint.progress import progress_bar

    with progress_bar(title, unit="B") as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


@contextmanager
def _stopped_by_sigterm() -> Generator[None]:
    """Make SIGTERM raise, like Ctrl-C, so that partly written files are removed."""

    def stop(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _without_nan(value: Any) -> Any:
    """Replace NaN by null and infinity by a string: JSON has neither."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
