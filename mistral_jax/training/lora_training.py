"""Training one LoRA on a frozen model.

Training computes what serving computes: the factors lie in an `AdapterBank` of one adapter, and the loss runs the same
operation as serving, with the weight 1 for every token. The factors are float32; the loss rounds them to the model's
type, as loading does.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx

from conversion.adapters.errors import AdapterError
from conversion.adapters.lora.files import LoRAFiles, LoRAModule
from conversion.adapters.modules import ModuleKey, torch_order
from conversion.adapters.writing import Factors, NewLoRA, write_lora
from conversion.weights.tensor_source import Array
from mistral_jax.adapters.load_adapters import open_adapters
from mistral_jax.model.config import MistralConfig
from mistral_jax.model.low_rank import PROJECTIONS, AdapterBank, LayerMixture, LowRank, Mixture, part_features
from mistral_jax.notebook.language_model import LanguageModel
from mistral_jax.quant.array import padded
from mistral_jax.training.base import BaseModel
from mistral_jax.training.chat_data import Data
from mistral_jax.training.data_sets import prepare_data
from mistral_jax.training.losses import next_token_loss
from mistral_jax.training.output_folder import finish, prepare
from mistral_jax.training.settings import LoRATrainingSettings
from mistral_jax.training.trainer import Fitted, Trainer

BankFactors = tuple[dict[str, dict[str, Any]], ...]
"""Laid out as in an `AdapterBank`. For each layer and projection: "a" [P * R, in] and "b", [out_p, R] for each of its P
parts; float32."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedLoRA:
    """A LoRA in memory. `AdapterSet` takes it as an adapter."""

    name: str
    rank: int
    factors: Factors
    """float32 A [R, in] and B [out, R] of each module."""
    settings: LoRATrainingSettings
    base_model: str
    run: Fitted
    """Losses, and whether the run was finished."""

    @property
    def modules(self) -> Mapping[ModuleKey, LoRAModule]:
        return {
            key: LoRAModule(rank=self.rank, scale=self.settings.scale, in_features=a.shape[1], out_features=b.shape[0])
            for key, (a, b) in self.factors.items()
        }

    def read(self, key: ModuleKey) -> tuple[Array, Array]:
        return self.factors[key]

    def as_new(self) -> NewLoRA:
        """In the form that the writers take, in the type to save."""
        dtype = ml_dtypes.bfloat16 if self.settings.save_dtype == "bfloat16" else np.dtype(self.settings.save_dtype)
        return NewLoRA(
            factors={key: (a.astype(dtype), b.astype(dtype)) for key, (a, b) in self.factors.items()},
            rank=self.rank,
            alpha=self.settings.chosen_alpha,
            use_rslora=self.settings.use_rslora,
            dropout=self.settings.dropout,
        )

    def save(self, folder: Path | str, *, overwrite: bool = False) -> None:
        """Write it in PEFT's format. Raises: see `conversion.adapters.writing.write_lora`."""
        write_lora(folder, self.as_new(), base_model=self.base_model, overwrite=overwrite)


def train_lora(
    model: LanguageModel | BaseModel,
    data: Data,
    *,
    settings: LoRATrainingSettings | None = None,
    validation: Data | None = None,
    output: Path | str | None = None,
    name: str | None = None,
    start: Path | str | TrainedLoRA | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> TrainedLoRA:
    """Train a LoRA on chat data.

    Ctrl-C ends the run after the current update, and saves a checkpoint; `run.finished` of the result is then False,
    and no adapter is written.

    Args:
      model: not changed. Its weights may be packed, but not as int8.
      data: see `mistral_jax.training.chat_data`.
      validation: held out; None: what `settings.validation_split` says.
      output: folder for the adapter in PEFT's format, `training_log.jsonl`, and checkpoints while the run goes on.
        None: nothing is written.
      name: of the adapter; None: the folder's.
      start: an adapter whose training is continued: a folder, a Hub id, or one in memory. It must have the rank, alpha
        and targets of `settings`. None: a new adapter, which begins with the base model.
      resume: continue the run whose checkpoint is in `output`.
      overwrite: replace what is in `output`.
    Raises:
      DataError: a line of the data cannot be trained on.
      ValueError: the settings are invalid, those of `start` differ, or the weights have an unsuitable form.
      TrainingError, CheckpointError, OutputError: see their classes.
    """
    settings = settings or LoRATrainingSettings()
    base = BaseModel.of(model)
    base.check_differentiable()
    initial, identity = _beginning(start, base, settings)
    sets = prepare_data(base, data, validation, settings)
    folder = prepare(output, resume=resume, overwrite=overwrite)
    graph, weights = nnx.split(base.module)
    trainer = Trainer(
        loss=LoRALoss.of(graph, settings),
        frozen=weights,
        settings=settings,
        data=sets,
        folder=folder,
        describes=base.identity | identity,
        progress=progress,
    )
    run = trainer.fit(initial, resume=resume)
    trained = TrainedLoRA(
        name=name or ("lora" if folder is None else folder.name),
        rank=settings.rank,
        factors=by_module(run.params, settings),
        settings=settings,
        base_model=base.name,
        run=run,
    )
    if folder is not None and run.finished:
        finish(folder, trained.save)
    return trained


@dataclass(frozen=True, kw_only=True)
class LoRALoss:
    """The loss as a function of the factors; the frozen part is the state of the model."""

    graph: Any
    """The model's structure."""
    rank: int
    scale: float
    targets: tuple[str, ...]
    dropout: float = 0.0
    remat: bool = False

    @classmethod
    def of(cls, graph: Any, settings: LoRATrainingSettings) -> LoRALoss:
        return cls(
            graph=graph,
            rank=settings.rank,
            scale=settings.scale,
            targets=settings.targets,
            dropout=settings.dropout,
            remat=settings.remat,
        )

    def __call__(
        self, params: BankFactors, frozen: Any, tokens: jax.Array, weights: jax.Array, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        model = nnx.merge(self.graph, frozen)
        bank = self.bank(params, model.config, model.dtype)
        ones = jnp.ones((1, 1, 1, 1), jnp.float32)
        mixture = Mixture(bank=bank, weights=ones)
        if self.dropout and key is not None:
            mixture = _DroppingMixture(bank=bank, weights=ones, key=key, rate=self.dropout)
        hidden = model.hidden_states(tokens[:, :-1], mixture, remat=self.remat)
        return next_token_loss(model, hidden, tokens, weights), jnp.zeros((0,), jnp.float32)

    def bank(self, params: BankFactors, config: MistralConfig, dtype: jax.typing.DTypeLike) -> AdapterBank:
        """The factors as a bank of one adapter, in the model's type."""
        features = part_features(config)
        layers: list[dict[str, LowRank]] = []
        for projections in params:
            made: dict[str, LowRank] = {}
            for projection, factors in projections.items():
                parts = _adapted(projection, self.targets)
                made[projection] = LowRank(
                    a=padded(factors["a"].astype(dtype)),
                    b=tuple(padded(b.astype(dtype)) for b in factors["b"]),
                    scale=jnp.full((len(parts), self.rank), self.scale, jnp.float32),
                    parts=parts,
                    out_features=tuple((part, features[part][0]) for part in PROJECTIONS[projection]),
                )
            layers.append(made)
        return AdapterBank(owner=jnp.zeros((self.rank,), jnp.int32), layers=tuple(layers))


def initial_factors(config: MistralConfig, settings: LoRATrainingSettings) -> BankFactors:
    """A uniform between -1 / sqrt(in) and 1 / sqrt(in), as PEFT has it; B zero, so that training begins with the base
    model."""
    key = jax.random.fold_in(jax.random.key(settings.seed), 2**31 - 1)
    features = part_features(config)
    layers: list[dict[str, dict[str, Any]]] = []
    for layer in range(config.num_layers):
        projections: dict[str, dict[str, Any]] = {}
        for number, projection in enumerate(PROJECTIONS):
            if parts := _adapted(projection, settings.targets):
                columns = features[parts[0]][1]
                own = jax.random.fold_in(jax.random.fold_in(key, layer), number)
                bound = 1 / math.sqrt(columns)
                shape = (len(parts) * settings.rank, columns)
                projections[projection] = {
                    "a": jax.random.uniform(own, shape, jnp.float32, -bound, bound),
                    "b": tuple(jnp.zeros((features[part][0], settings.rank), jnp.float32) for part in parts),
                }
        layers.append(projections)
    return tuple(layers)


def _beginning(
    start: Path | str | TrainedLoRA | None, base: BaseModel, settings: LoRATrainingSettings
) -> tuple[BankFactors, dict[str, str]]:
    """The factors that training begins with, and what tells them from others."""
    config = base.module.config
    if start is None:
        return initial_factors(config, settings), {}
    if isinstance(start, TrainedLoRA):
        check_shapes(start.name, start, base)
        return factors_of(start, config, settings), {"start": fingerprint(start)}
    with closing(open_adapters(config, loras={"start": str(start)}, base_model=base.name)) as opened:
        return factors_of(opened.loras[0], config, settings), {"start": fingerprint(opened.loras[0])}


def check_shapes(name: str, lora: TrainedLoRA, base: BaseModel) -> None:
    """Check that an adapter in memory fits the model.

    Raises:
      AdapterError: it does not.
    """
    features = part_features(base.module.config)
    for key, (a, b) in lora.factors.items():
        if key.layer >= base.module.config.num_layers or (b.shape[0], a.shape[1]) != features[key.part]:
            raise AdapterError(f"adapter {name} does not fit the model at {key.path}: it was trained for another model")


def factors_of(lora: LoRAFiles | TrainedLoRA, config: MistralConfig, settings: LoRATrainingSettings) -> BankFactors:
    """The factors of an adapter, to train them further.

    Raises:
      ValueError: it has other modules, another rank or another scale than the settings give to a new one.
    """
    wanted = {ModuleKey(layer, part) for layer in range(config.num_layers) for part in settings.targets}
    if (found := set(lora.modules)) != wanted:
        parts = sorted({key.part for key in found})
        raise ValueError(
            f"{lora.name}: an adapter of {len(found)} modules ({', '.join(parts)}) cannot be trained further as one of "
            f"{len(wanted)} ({', '.join(sorted(settings.targets))}); give its own targets, and one for all layers"
        )
    for key, module in lora.modules.items():
        if module.rank != settings.rank or not math.isclose(module.scale, settings.scale, rel_tol=1e-6):
            raise ValueError(
                f"{lora.name}: {key.path} has the rank {module.rank} and the scale {module.scale:g}, the settings have "
                f"{settings.rank} and {settings.scale:g}; give the adapter's own rank and alpha"
            )
    layers: list[dict[str, dict[str, Any]]] = []
    for layer in range(config.num_layers):
        projections: dict[str, dict[str, Any]] = {}
        for projection in PROJECTIONS:
            if parts := _adapted(projection, settings.targets):
                pairs = [lora.read(ModuleKey(layer, part)) for part in parts]
                projections[projection] = {
                    "a": jnp.concatenate([jnp.asarray(a, jnp.float32) for a, _ in pairs]),
                    "b": tuple(jnp.asarray(b, jnp.float32) for _, b in pairs),
                }
        layers.append(projections)
    return tuple(layers)


def fingerprint(lora: LoRAFiles | TrainedLoRA) -> str:
    """A digest of an adapter's values."""
    digest = hashlib.sha256()
    for key, module in lora.modules.items():
        digest.update(f"{key.path} {module.scale}".encode())
        for factor in lora.read(key):
            digest.update(np.ascontiguousarray(factor).tobytes())
    return digest.hexdigest()[:16]


def by_module(params: BankFactors, settings: LoRATrainingSettings) -> Factors:
    """The factors of each module, on the host, in torch's order."""
    found: dict[ModuleKey, tuple[Array, Array]] = {}
    for layer, projections in enumerate(params):
        for projection, factors in projections.items():
            parts = _adapted(projection, settings.targets)
            pieces = np.split(np.asarray(factors["a"]), len(parts))
            for part, a, b in zip(parts, pieces, factors["b"], strict=True):
                found[ModuleKey(layer, part)] = (a, np.asarray(b))
    return {key: found[key] for key in sorted(found, key=torch_order)}


def _adapted(projection: str, targets: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(part for part in PROJECTIONS[projection] if part in targets)


@dataclass(frozen=True, kw_only=True)
class _DroppingMixture(Mixture):
    """A mixture with dropout on the input of the factors. The parts of a fused projection share it."""

    key: jax.Array
    rate: float

    def layer(self, index: int) -> LayerMixture:
        plain = super().layer(index)
        key = jax.random.fold_in(self.key, index)
        return _DroppingLayer(factors=plain.factors, weights=plain.weights, key=key, rate=self.rate)


@partial(jax.tree_util.register_dataclass, data_fields=["factors", "weights", "key"], meta_fields=["rate"])
@dataclass(frozen=True, kw_only=True)
class _DroppingLayer(LayerMixture):
    key: jax.Array
    rate: float

    def add(self, projection: str, x: jax.Array, y: jax.Array, *, by_kernel: bool = False) -> jax.Array:
        key = jax.random.fold_in(self.key, list(PROJECTIONS).index(projection))
        kept = jax.random.bernoulli(key, 1 - self.rate, x.shape)
        dropped = jnp.where(kept, x.astype(jnp.float32) / (1 - self.rate), 0).astype(x.dtype)
        return super().add(projection, dropped, y, by_kernel=by_kernel)
