"""Training the classifier of an X-LoRA mixture: the model and its experts stay as they are.

The loss is the next-token loss of the scaled pass. The scaling pass, whose hidden states do not depend on the classifier, runs
without gradients, so one update costs about as much as one of a LoRA and a forward pass.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from conversion.adapters.errors import AdapterError
from conversion.adapters.lora_files import LoRAFiles
from conversion.adapters.ordering import derive_layers, derive_ordering, write_ordering
from conversion.adapters.writing import NewLoRA, write_xlora
from conversion.adapters.xlora_config import XLoRAConfig
from conversion.adapters.xlora_files import open_xlora
from mistral_jax.adapter_loading import open_adapters
from mistral_jax.adapters import AdapterSet
from mistral_jax.language_model import LanguageModel
from mistral_jax.lora import SHARED, AdapterBank, ScalingColumns, part_features
from mistral_jax.training.base import BaseModel
from mistral_jax.training.chat_data import Data
from mistral_jax.training.data_sets import prepare_data
from mistral_jax.training.lora_training import TrainedLoRA
from mistral_jax.training.losses import next_token_loss
from mistral_jax.training.output_folder import finish, prepare
from mistral_jax.training.settings import XLoRATrainingSettings
from mistral_jax.training.trainer import Fitted, Trainer
from mistral_jax.xlora import XLoRA

ORDERING_NAME = "ordering.json"


Expert = LoRAFiles | TrainedLoRA
"""A LoRA on disk, or one in memory."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedXLoRA:
    """A mixture in memory: `Runner(model.module, …, adapters=mixture.adapters, xlora=mixture.classifier)` runs it."""

    classifier: XLoRA
    adapters: AdapterSet
    """The experts, on the device."""
    experts: tuple[Expert, ...]
    """In the order of the classifier's columns."""
    base_model: str
    settings: XLoRATrainingSettings
    run: Fitted
    """Losses, and whether the run was finished."""

    def save(self, folder: Path | str, *, overwrite: bool = False) -> None:
        """Write it in the layout of the original library, with the experts, and an ordering file.

        Raises: see `conversion.adapters.writing.write_xlora`.
        """
        sources: dict[str, Path | NewLoRA] = {
            expert.name: expert.as_new() if isinstance(expert, TrainedLoRA) else expert.folder
            for expert in self.experts
        }
        layers = [
            (
                np.asarray(layer.weight.get_value()),
                None if layer.bias is None else np.asarray(layer.bias.get_value()),
            )
            for layer in self.classifier.layers
        ]
        write_xlora(
            folder,
            config=self.classifier.config,
            classifier=layers,
            adapters=sources,
            base_model=self.base_model,
            overwrite=overwrite,
        )
        written = open_xlora(folder)
        ordering = derive_ordering(written.adapters, base_model_id=self.base_model)
        written.close()
        write_ordering(Path(folder) / ORDERING_NAME, ordering, overwrite=True)


def train_xlora(
    model: LanguageModel | BaseModel,
    adapters: Mapping[str, Path | str | TrainedLoRA],
    data: Data,
    *,
    settings: XLoRATrainingSettings | None = None,
    validation: Data | None = None,
    output: Path | str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> TrainedXLoRA:
    """Train the classifier of a mixture on chat data that needs all of its experts.

    Ctrl-C ends the run after the update that is under way, and saves a checkpoint; `run.finished` of the result is then False, and
    no mixture is written.

    Args:
      model: stays as it is. Its weights may be packed, but not as int8.
      adapters: the experts by name, in the order of the classifier's columns: LoRA folders, Hub ids, or LoRAs in memory.
      output: folder for the mixture in the layout of the original library, with its adapters and `ordering.json`; for
        `training_log.jsonl`, and for checkpoints while the run goes on. None: nothing is written.
      data, validation, resume, overwrite: see `train_lora`.
    Raises:
      AdapterError, WeightFileError: an expert is missing, broken, or does not fit the model.
      Others: see `train_lora`.
    """
    settings = settings or XLoRATrainingSettings()
    base = BaseModel.of(model)
    base.check_differentiable()
    config = base.module.config
    _check_experts(adapters, settings)
    sets = prepare_data(base, data, validation, settings)
    experts = open_experts(base, adapters)
    try:
        folder = None if output is None else Path(output).expanduser()
        if folder is not None:
            prepare(folder, resume=resume, overwrite=overwrite)
        bank = AdapterSet(config, experts, dtype=base.module.dtype, device=base.device)
        classifier = new_classifier(config.hidden_size, experts, settings)
        structure, params = nnx.split(classifier)
        graph, weights = nnx.split(base.module)
        trainer = Trainer(
            loss=XLoRALoss(graph=graph, classifier=structure, remat=settings.remat),
            frozen=(weights, bank.bank),
            settings=settings,
            train=sets.train,
            validation=sets.validation,
            folder=folder,
            describes={
                "base model": base.name,
                "dtype": str(base.module.dtype),
                "adapters": [f"{expert.name} {_fingerprint(expert)}" for expert in experts],
            },
            shown=tuple(f"share/{expert.name}" for expert in experts),
            progress=progress,
        )
        run = trainer.fit(params, resume=resume)
        trained = TrainedXLoRA(
            classifier=nnx.merge(structure, run.params),
            adapters=bank,
            experts=experts,
            base_model=base.name,
            settings=settings,
            run=run,
        )
        if folder is not None and run.finished:
            finish(folder, trained.save)
    finally:
        for expert in experts:
            if isinstance(expert, LoRAFiles):
                expert.close()
    return trained


@dataclass(frozen=True, kw_only=True)
class XLoRALoss:
    """The loss as a function of the classifier's parameters; what is frozen is the state of the model, and the experts.

    It also gives the sum of each expert's weight, averaged over the modules.
    """

    graph: Any
    """The model's structure."""
    classifier: Any
    """The classifier's."""
    remat: bool = False

    def __call__(
        self,
        params: Any,
        frozen: tuple[Any, AdapterBank],
        tokens: jax.Array,
        weights: jax.Array,
        key: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array]:
        model = nnx.merge(self.graph, frozen[0])
        classifier: XLoRA = nnx.merge(self.classifier, params)
        hidden, scalings = classifier.hidden_states(model, frozen[1], tokens[:, :-1], dropout=key, remat=self.remat)
        shares = jnp.mean(classifier.weights(scalings, classifier.num_experts), axis=2)  # [B, T, E]
        return next_token_loss(model, hidden, tokens, weights), jnp.einsum("bt,bte->e", weights, shares)


def open_experts(base: BaseModel, adapters: Mapping[str, Path | str | TrainedLoRA]) -> tuple[Expert, ...]:
    """The experts under their names, checked to fit the model, in their order."""
    for name, adapter in adapters.items():
        if isinstance(adapter, TrainedLoRA):
            _check_shapes(name, adapter, base)
    paths = {name: str(adapter) for name, adapter in adapters.items() if not isinstance(adapter, TrainedLoRA)}
    opened = {lora.name: lora for lora in open_adapters(base.module.config, loras=paths, base_model=base.name).loras}
    return tuple(
        replace(adapter, name=name) if isinstance(adapter, TrainedLoRA) else opened[name]
        for name, adapter in adapters.items()
    )


def new_classifier(hidden_size: int, experts: tuple[Expert, ...], settings: XLoRATrainingSettings) -> XLoRA:
    """A classifier with random weights, which follow from the seed."""
    columns = SHARED
    if settings.layerwise:
        index = derive_layers(key for expert in experts for key in expert.modules)
        columns = ScalingColumns(count=len(index), index=tuple(index.items()))
    config = XLoRAConfig(
        hidden_size=hidden_size,
        layerwise_scalings=settings.layerwise,
        xlora_depth=settings.depth,
        xlora_size=settings.size,
        use_bias=settings.bias,
        xlora_dropout_p=settings.dropout,
        enable_softmax=settings.softmax,
        softmax_temperature=settings.temperature,
        top_k_lora=settings.top_k,
        enable_softmax_topk=settings.softmax_topk,
        scaling_pass_value=settings.scaling_pass_value,
        global_scaling_weight=settings.global_weight,
    )
    return XLoRA(config, num_experts=len(experts), columns=columns, rngs=nnx.Rngs(settings.seed))


def _check_experts(adapters: Mapping[str, Any], settings: XLoRATrainingSettings) -> None:
    if len(adapters) < 2:
        raise AdapterError(f"a mixture needs at least two adapters, and {len(adapters)} are given")
    if settings.top_k is not None and settings.top_k > len(adapters):
        raise AdapterError(f"top_k is {settings.top_k}, and there are {len(adapters)} adapters")


def _check_shapes(name: str, lora: TrainedLoRA, base: BaseModel) -> None:
    features = part_features(base.module.config)
    for key, (a, b) in lora.factors.items():
        if key.layer >= base.module.config.num_layers or (b.shape[0], a.shape[1]) != features[key.part]:
            raise AdapterError(f"adapter {name} does not fit the model at {key.path}: it was trained for another model")


def _fingerprint(expert: Expert) -> str:
    """Names the values of an adapter."""
    digest = hashlib.sha256()
    for key, module in expert.modules.items():
        digest.update(f"{key.path} {module.scale}".encode())
        for factor in expert.read(key):
            digest.update(np.ascontiguousarray(factor).tobytes())
    return digest.hexdigest()[:16]
