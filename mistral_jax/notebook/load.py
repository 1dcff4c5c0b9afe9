"""Loads a model by name for generation: finds and checks its files, and loads them to the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from mistral_jax.adapters.bank import SPARE_RANK
from mistral_jax.adapters.load_adapters import load_adapters, open_adapters
from mistral_jax.checkpoint.description import describe
from mistral_jax.checkpoint.load_module import load_module
from mistral_jax.checkpoint.progress import progress_bar
from mistral_jax.hub.files import DEMO, DEMO_XLORA, find_model
from mistral_jax.notebook.language_model import LanguageModel
from mistral_jax.quant.placement import Device, Placement
from mistral_jax.quant.plan import Activations, Quantization


def load(
    name: str | Path = DEMO,
    *,
    dtype: str = "auto",
    quant: Quantization = "auto",
    activations: Activations = "auto",
    device: Device | Placement | None = None,
    slots: int = 8,
    length: int | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    weight_files: Sequence[str] = (),
    tokenizer: str | None = None,
    chat_template: str | None = None,
    xlora: str | Path | None = None,
    ordering: str | Path | None = None,
    loras: Mapping[str, str | Path] | Sequence[str | Path] = (),
    spare_adapters: int = 0,
    spare_rank: int = SPARE_RANK,
    progress: bool = True,
) -> LanguageModel:
    """Load a model and its adapters: the bundled "demo", a folder, a GGUF file, a safetensors file, or a Hub id.

    "demo-xlora" is the bundled model with its bundled mixture of adapters; `loras={"tools": "demo-tools"}` adds the one
    that calls tools.

    Args:
      device: one of `jax.devices()`, or a `Placement`; None: JAX's default device.
      slots: maximum number of concurrent sequences.
      length: maximum tokens of prompt and completion together; None: the model's, at most
        `mistral_jax.notebook.language_model.DEFAULT_LENGTH`.
      tokenizer: Hub id or folder whose tokenizer and chat template replace the model's.
      xlora: Hub id or folder of an X-LoRA model: its adapters, and the classifier that mixes them.
      ordering: its ordering file, if it has one.
      loras: Hub ids or folders of LoRA adapters by adapter name; in a list, folder names are the adapter names.
      spare_adapters: number of adapters, of at most `spare_rank`, that `LanguageModel.load_adapter` may add later.
      Others: see `find_model`, `describe`, `load_module` and `mistral_jax.adapters.load_adapters.open_adapters`.
    """
    if name == DEMO_XLORA:
        if xlora is not None:
            raise ValueError(
                f"{DEMO_XLORA} has a mixture of its own; for another one load {DEMO!r} with xlora={xlora!r}"
            )
        name, xlora = DEMO, DEMO_XLORA
    placement = device if isinstance(device, Placement | None) else Placement((device,))
    files = find_model(str(name), revision=revision, token=token, weight_files=weight_files, tokenizer_id=tokenizer)
    description = describe(files, chat_template=chat_template)
    # A GGUF file's name is not that of the model that it was made from.
    base_model = files.name if files.gguf is None else None
    # Before the weights are read, so that adapters that do not fit fail early.
    opened = open_adapters(
        description.config, xlora=xlora, ordering=ordering, loras=_named(loras), base_model=base_model, token=token
    )
    with closing(opened):
        with progress_bar("loading weights", unit="B", shown=progress) as bar:

            def show(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            module = load_module(
                description, dtype=dtype, quant=quant, activations=activations, placement=placement, progress=show
            )
        adapters = classifier = None
        if opened.loras or spare_adapters:
            adapters, classifier = load_adapters(
                opened, dtype=module.dtype, placement=placement, spare=spare_adapters, spare_rank=spare_rank
            )
    return LanguageModel(description, module, slots=slots, length=length, adapters=adapters, xlora=classifier)


def _named(loras: Mapping[str, str | Path] | Sequence[str | Path]) -> dict[str, str | Path]:
    if isinstance(loras, str | Path):
        raise TypeError(f"loras is {loras!r}; expected a list of folders or Hub ids, or a mapping of names to them")
    if isinstance(loras, Mapping):
        return dict(loras)
    named = {Path(source).name: source for source in loras}
    if len(named) < len(loras):
        raise ValueError(
            f"of {[str(source) for source in loras]} two have one name; give names: loras={{name: folder}}"
        )
    return named
