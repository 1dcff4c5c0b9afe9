"""Loads weights from files to the device, tensor by tensor, and saves them.

Host memory while loading: one tensor; on a CPU also the weights loaded so far (the buffer that a tensor is read into
*becomes* the device's array).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from conversion.gguf.container.file import GGUFFile
from conversion.gguf.source import GGUFSource
from conversion.weights.decoder_weights import EMBEDDING, HEAD, Format, Parameter, axis_size, parameters, read_name
from conversion.weights.ggml_types import BY_NAME, GGMLType
from conversion.weights.safetensors_io import SafetensorsFiles, read_array, write_safetensors
from conversion.weights.stored_shapes import storable_shape
from conversion.weights.tensor_names import HuggingFaceText, MistralFormat, is_mistral_format
from conversion.weights.tensor_source import Array, TensorSource, WeightFileError
from conversion.weights.weight_files import is_gguf
from conversion.weights.weight_forms import Form, form_bytes, form_of
from mistral_jax.model.config import MistralConfig
from mistral_jax.model.mistral import Mistral
from mistral_jax.quant.array import PaddedArray, Undivided, Weight, dense
from mistral_jax.quant.grouped import can_group, grouped_bytes
from mistral_jax.quant.grouped_kernel import kernel_works
from mistral_jax.quant.interleaved import can_interleave, interleaved_bytes
from mistral_jax.quant.load_weight import load_weight
from mistral_jax.quant.native import native
from mistral_jax.quant.placement import Placement
from mistral_jax.quant.plan import Activations, BlockOrder, Quantization, stored_kind
from mistral_jax.quant.split import split_rows

Progress = Callable[[int, int], None]
"""Called with (bytes loaded so far, total bytes)."""


def choose_dtype(wanted: str, stored: str | None, platform: str) -> jnp.dtype:
    """The type to compute in.

    `auto` takes the checkpoint's type, but bfloat16 for float16 checkpoints on a CPU (XLA has no float16 dot there) and
    for checkpoints in 64 bits or in types that are not floating point.

    Raises:
      ValueError: `wanted` is not auto, float32, bfloat16 or float16.
    """
    names = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
    if wanted in names:
        return jnp.dtype(names[wanted])
    if wanted != "auto":
        raise ValueError(f"dtype is {wanted!r}; expected auto, float32, bfloat16 or float16")
    if stored == "float16" and platform == "cpu":
        stored = "bfloat16"
    return jnp.dtype(names.get(stored or "", jnp.bfloat16))


def open_weights(config: MistralConfig, paths: Iterable[Path | str]) -> TensorSource:
    """Open weight files: GGUF (one file, or its parts), or safetensors of either format, recognised by their tensor
    names."""
    found = [Path(path) for path in paths]
    if found and is_gguf(found[0]):
        gguf = GGUFFile(found[0])  # opens the other parts, too
        if surplus := [path for path in found[1:] if path.resolve() not in {part.resolve() for part in gguf.paths}]:
            raise WeightFileError(f"{found[0]} is a whole model; leave out {', '.join(map(str, surplus))}")
        return GGUFSource(gguf)
    files = SafetensorsFiles(found)
    if is_mistral_format(files.names()):
        return MistralFormat(files, num_heads=config.num_heads, num_kv_heads=config.num_kv_heads)
    return HuggingFaceText(files)


def stored_dtype(source: TensorSource) -> str | None:
    """The type of the checkpoint: that of its largest tensor; bfloat16 for packed blocks, whose values have fewer bits.

    Returns: None if there are no tensors.
    """
    largest = max(source.names(), key=lambda name: int(np.prod(source.shape(name))), default=None)
    if largest is None:
        return None
    return str(source.dtype(largest)) if stored_kind(source, largest) is None else "bfloat16"


@dataclass(frozen=True, kw_only=True)
class PlannedWeight:
    """One parameter: the tensors that it is read from, and the form that each takes on the device."""

    parameter: Parameter
    parts: tuple[tuple[str, Form], ...]
    """(tensor name, form) pairs in the order of their rows."""
    nbytes: int
    """Bytes on the device."""
    order: BlockOrder
    """Of packed blocks."""

    @property
    def name(self) -> str:
        """Our name, such as `layers.0.self_attn.qkv_proj.weight`."""
        return self.parameter.name


def plan_weights(
    config: MistralConfig,
    source: TensorSource,
    *,
    dtype: jax.typing.DTypeLike,
    quant: Quantization,
    activations: Activations = "float",
    placement: Placement | None = None,
) -> list[PlannedWeight]:
    """What `load_weights` will load, in its order; reads no tensors.

    Args:
      activations, placement: decide in which order packed blocks are held; some orders take a little more memory than
        the file's, which is that of no placement.

    Raises:
      WeightFileError: see `load_weights`.
      ValueError: see `block_order`.
    """
    _check_layers(config, source)
    declared = list(parameters(config, num_layers=config.num_layers))
    check_tensors(config, source, declared)
    forms: list[tuple[Parameter, list[tuple[str, Form]]]] = []
    for parameter in declared:
        is_output = parameter.weight.name == ("embed_tokens" if config.tie_word_embeddings else "lm_head")
        parts = [
            (name, form_of(stored_kind(source, name), source.shape(name), quant, is_output=is_output))
            for name, _ in parameter.tensors
        ]
        forms.append((parameter, parts))
    order: BlockOrder = "file"
    if placement is not None:
        kinds = {BY_NAME[form] for _, parts in forms for _, form in parts if form in BY_NAME}
        order = block_order(placement, dtype, kinds, activations)
    itemsize = jnp.dtype(dtype).itemsize
    planned: list[PlannedWeight] = []
    for parameter, parts in forms:
        used = _order_of(parameter, config, order)
        size = sum(_part_bytes(form, shape, itemsize, used) for form, shape in _stored_shapes(source, parts))
        planned.append(PlannedWeight(parameter=parameter, parts=tuple(parts), nbytes=size, order=used))
    return planned


def _order_of(parameter: Parameter, config: MistralConfig, order: BlockOrder) -> BlockOrder:
    """Rows of an embedding that nothing is multiplied by are unpacked faster in the order of the file."""
    only_looked_up = parameter.weight.name == "embed_tokens" and not config.tie_word_embeddings
    return "file" if order == "interleaved" and only_looked_up else order


def _part_bytes(form: Form, shape: tuple[int, ...], itemsize: int, order: BlockOrder) -> int:
    kind = BY_NAME.get(form)
    if kind is not None and len(shape) == 2:
        if order == "groups" and can_group(kind):
            return grouped_bytes(kind, (shape[0], shape[1]))
        if order == "interleaved" and can_interleave(kind):
            return interleaved_bytes(kind, (shape[0], shape[1]))
    return form_bytes(form, shape, itemsize)


def block_order(
    placement: Placement, dtype: jax.typing.DTypeLike, kinds: Collection[GGMLType], activations: Activations
) -> BlockOrder:
    """The order of packed blocks of these types that suits the device's kernels.

    Raises:
      ValueError: `activations` are "int8", and this device cannot multiply integers with packed weights.
    """
    reason = None
    if placement.platform != "cpu":
        reason = "activations of 8 bits are for CPUs"
    elif placement.count > 1:
        reason = "activations of 8 bits are not implemented for several devices"
    elif (problem := native.unavailable_because() if kinds else None) is not None:
        reason = f"activations of 8 bits need kernels that do not work here: {problem}"
    if activations == "int8" and reason is not None:
        raise ValueError(f"{reason}; set activations (--activations) to auto or float")
    if activations != "float" and reason is None:
        return "interleaved"
    return "groups" if kernel_works(placement, dtype, kinds) else "file"


def _stored_shapes(source: TensorSource, parts: list[tuple[str, Form]]) -> list[tuple[Form, tuple[int, ...]]]:
    """Forms and shapes that one weight is stored in: adjacent plain matrices are joined and padded."""
    stored: list[tuple[Form, tuple[int, ...]]] = []
    for form, group in groupby(parts, key=lambda part: part[1]):
        shapes = [source.shape(name) for name, _ in group]
        if form == "dense" and len(shapes[0]) == 2:
            stored.append((form, storable_shape(sum(rows for rows, _ in shapes), shapes[0][1])))
        else:
            stored += [(form, shape) for shape in shapes]
    return stored


def _check_layers(config: MistralConfig, source: TensorSource) -> None:
    """Refuse a number of layers far from that of the files, before building a structure whose time grows with it."""
    found = (read_name(name, Format.HF) for name in source.names())
    numbers = {tensor.layer for tensor in found if tensor is not None and tensor.layer is not None}
    if config.num_layers > 2 * len(numbers) + 8:
        raise WeightFileError(
            f"the weights do not fit the configuration: it has {config.num_layers} layers, "
            f"and the files have tensors of {len(numbers)}"
        )


def load_weights(
    config: MistralConfig,
    source: TensorSource,
    *,
    dtype: jax.typing.DTypeLike,
    quant: Quantization = "auto",
    activations: Activations = "auto",
    placement: Placement | None = None,
    progress: Progress | None = None,
) -> Mistral:
    """Build the model and fill it from `source`. Its `config` may differ in `tie_word_embeddings`: see `settle_tying`.

    Args:
      dtype: of activations, norms and plain weights.
      quant, activations: see `mistral_jax.quant.plan`.
      placement: None: JAX's default device.
    Raises:
      ValueError: see `block_order`.
      WeightFileError: lists the tensors that are missing, unknown, or of another shape than the configuration's.
    """
    placement = placement or Placement.default()
    first = Placement((placement.device,))
    config = settle_tying(config, source)
    planned = plan_weights(config, source, dtype=dtype, quant=quant, activations=activations, placement=placement)
    total = sum(weight.nbytes for weight in planned)
    done = 0
    loaded: dict[str, Weight] = {}
    for weight in planned:
        # Waits for the copy, so that at most one weight is in flight.
        array = load_weight(source, weight.parts, dtype=np.dtype(dtype), placement=first, order=weight.order)
        loaded[weight.name] = _placed(config, weight.parameter, array, placement)
        done += weight.nbytes
        if progress is not None:
            progress(done, total)
    graphdef, abstract = _abstract(config, jnp.dtype(dtype))
    structure = jax.tree.structure(abstract, is_leaf=lambda x: isinstance(x, PaddedArray))
    leaves = [loaded[".".join(map(str, path))] for path, _ in nnx.to_flat_state(abstract)]
    model = nnx.merge(graphdef, jax.tree.unflatten(structure, leaves))
    model.use_kernels(placement)
    return model


def _placed(config: MistralConfig, parameter: Parameter, weight: Undivided, placement: Placement) -> Weight:
    """Move a weight from the first device to all: sharded if its declaration and size allow it, else replicated."""
    if placement.count == 1:
        return weight
    declared = parameter.weight
    is_matrix = len(parameter.shape) == 2
    if not is_matrix or declared.split is None or not placement.divides(axis_size(declared.split, config)):
        return placement.put(weight)
    return split_rows(weight, declared.part_rows(config), placement, gathers=declared.gathers)


@lru_cache(maxsize=4)
def _abstract(config: MistralConfig, dtype: jnp.dtype) -> tuple[Any, Any]:
    """The model's structure and its state without values. Cached: Flax takes a tenth of a second."""
    return nnx.split(nnx.eval_shape(lambda: Mistral(config, param_dtype=dtype, rngs=nnx.Rngs(0))))


def settle_tying(config: MistralConfig, source: TensorSource) -> MistralConfig:
    """The configuration with `tie_word_embeddings` turned off if the files hold another output matrix.

    Wrappers of some models claim tied embeddings by a class default; the reference implementation compares, too.
    """
    if not config.tie_word_embeddings or not {EMBEDDING, HEAD} <= set(source.names()):
        return config
    if source.shape(EMBEDDING) == source.shape(HEAD) and source.dtype(EMBEDDING) == source.dtype(HEAD):
        ours, theirs = read_array(source, EMBEDDING), read_array(source, HEAD)
        # A few rows at a time: each comparison allocates an array.
        if all(np.array_equal(ours[i : i + 256], theirs[i : i + 256]) for i in range(0, len(ours), 256)):
            return config
    return replace(config, tie_word_embeddings=False)


def check_tensors(config: MistralConfig, source: TensorSource, declared: Iterable[Parameter]) -> None:
    """Raise one error for all tensors that do not fit. See `load_weights`."""
    present = set(source.names())
    wanted: set[str] = set()
    problems: list[str] = []
    for parameter in declared:
        names = [name for name, _ in parameter.tensors]
        wanted.update(names)
        missing = [name for name in names if name not in present]
        problems += [f"missing: {name}" for name in missing]
        if missing:
            continue
        problems += [
            f"wrong shape: {name} is {list(source.shape(name))}, expected {list(shape)}"
            for name, shape in parameter.tensors
            if source.shape(name) != shape
        ]
    surplus = present - wanted
    if config.tie_word_embeddings:
        surplus.discard(HEAD)
    problems += [f"surplus: {name}" for name in sorted(surplus)]
    if problems:
        shown = "\n  ".join(problems[:20]) + (f"\n  … and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise WeightFileError(f"the weights do not fit the configuration ({len(problems)} tensors):\n  {shown}")


def hf_tensors(model: Mistral) -> dict[str, Array]:
    """The model's weights as host arrays under Hugging Face names; fused matrices are split, packed ones unpacked."""
    held = {".".join(map(str, path)): value.get_value() for path, value in nnx.to_flat_state(nnx.state(model))}
    tensors: dict[str, Array] = {}
    for parameter in parameters(model.config, num_layers=model.config.num_layers):
        array = np.asarray(dense(held[parameter.name], model.dtype))
        rows = [shape[0] for _, shape in parameter.tensors]
        parts = np.split(array, np.cumsum(rows)[:-1])
        tensors.update({name: part for (name, _), part in zip(parameter.tensors, parts, strict=True)})
    return tensors


def save_pretrained(model: Mistral, folder: Path | str, *, dtype: Any = None) -> None:
    """Write `model.safetensors` and `config.json` in the usual Hugging Face layout.

    Args:
      dtype: type to store in; None: the model's.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = hf_tensors(model)
    if dtype is not None:
        tensors = {name: array.astype(np.dtype(dtype)) for name, array in tensors.items()}
    write_safetensors(folder / "model.safetensors", tensors)
    stored = str(next(iter(tensors.values())).dtype)
    text = json.dumps(hf_config(model.config, dtype=stored), indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def hf_config(config: MistralConfig, *, dtype: str) -> dict[str, Any]:
    """The `config.json` of a model; the inverse of `MistralConfig.from_hf` for plain and linear rope.

    Raises:
      WeightFileError: the configuration has a feature that this writer does not support.
    """
    rope, windows = config.rope, set(config.layer_windows)
    if rope.kind not in ("default", "linear") or len(windows) != 1 or config.attention_temperature_beta:
        raise WeightFileError(
            "writing a config.json is implemented for plain and linear rope and one sliding window for all layers"
        )
    scaling = {"rope_type": "linear", "factor": rope.factor} if rope.kind == "linear" else None
    is_llama = config.attention_bias or config.mlp_bias
    if is_llama and windows != {None}:
        raise WeightFileError("config.json cannot express projection biases together with a sliding window")
    return {
        "architectures": ["LlamaForCausalLM" if is_llama else "MistralForCausalLM"],
        "model_type": "llama" if is_llama else "mistral",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": rope.theta,
        "rope_scaling": scaling,
        "sliding_window": windows.pop(),
        "tie_word_embeddings": config.tie_word_embeddings,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_ids[0] if len(config.eos_token_ids) == 1 else list(config.eos_token_ids),
        "torch_dtype": dtype,
    }
