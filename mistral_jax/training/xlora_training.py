"""Training the classifier of an X-LoRA mixture: the model is frozen, and so are its experts unless they are trained
too.

The loss is the next-token loss of the scaled pass. The scaling pass, whose hidden states do not depend on the
classifier, runs without gradients, so an update costs about as much as one of a LoRA plus a forward pass.

Experts that were trained separately have never seen the keys and values of a mixture, and every text begins with tokens
that do not reveal its subject to a classifier. Trained together, they learn to continue from these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from conversion.adapters.errors import AdapterError
from conversion.adapters.lora.files import LoRAFiles
from conversion.adapters.writing import write_xlora
from conversion.adapters.xlora.config import XLoRAConfig
from conversion.adapters.xlora.files import open_xlora
from conversion.adapters.xlora.ordering import ORDERING_NAME, derive_layers, derive_ordering, write_ordering
from mistral_jax.adapters.bank import AdapterSet
from mistral_jax.adapters.xlora import XLoRA
from mistral_jax.model.low_rank import SHARED, AdapterBank, Mixture, ScalingColumns
from mistral_jax.notebook.language_model import LanguageModel
from mistral_jax.quant.array import dense
from mistral_jax.training.base import BaseModel
from mistral_jax.training.chat_data import Data
from mistral_jax.training.data_sets import prepare_data
from mistral_jax.training.experts import (
    Expert,
    GivenExpert,
    open_experts,
    retrained,
    to_write,
    trainable,
    with_factors,
)
from mistral_jax.training.lora_training import TrainedLoRA, fingerprint
from mistral_jax.training.losses import next_token_loss
from mistral_jax.training.output_folder import finish, prepare
from mistral_jax.training.settings import XLoRATrainingSettings
from mistral_jax.training.trainer import Fitted, Trainer

CLASSIFIER, EXPERTS = "classifier", "experts"
"""Parts of the parameters."""


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
        layers = [
            (
                np.asarray(dense(layer.weight.get_value(), jnp.float32)),
                None if layer.bias is None else np.asarray(layer.bias.get_value()),
            )
            for layer in self.classifier.layers
        ]
        write_xlora(
            folder,
            config=self.classifier.config,
            classifier=layers,
            adapters={expert.name: to_write(expert) for expert in self.experts},
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
    """Train the classifier of a mixture, and its experts if the settings say so, on chat data that needs all of them.

    Ctrl-C ends the run after the current update, and saves a checkpoint; `run.finished` of the result is then False,
    and no mixture is written.

    Args:
      model: not changed. Its weights may be packed, but not as int8.
      adapters: the experts by name, in the order of the classifier's columns: LoRA folders, Hub ids, or LoRAs in
        memory.
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
        folder = prepare(output, resume=resume, overwrite=overwrite)
        rate = settings.adapter_learning_rate
        along = rate is not None
        dtype = base.module.dtype
        bank = AdapterSet(config, experts, dtype="float32" if along else dtype, placement=base.placement, apart=along)
        classifier = new_classifier(config.hidden_size, experts, settings)
        structure, state = nnx.split(classifier)
        params: dict[str, Any] = {CLASSIFIER: state} | ({EXPERTS: trainable(bank.bank)} if along else {})
        graph, weights = nnx.split(base.module)
        trainer = Trainer(
            loss=XLoRALoss(graph=graph, classifier=structure, remat=settings.remat, alone=settings.chosen_alone),
            frozen=(weights, bank.bank),
            settings=settings,
            data=sets,
            folder=folder,
            describes=base.identity | {"adapters": [f"{expert.name} {fingerprint(expert)}" for expert in experts]},
            rates={EXPERTS: rate / settings.learning_rate} if along else {},
            shown=tuple(f"share/{expert.name}" for expert in experts),
            progress=progress,
        )
        run = trainer.fit(params, resume=resume)
        final: tuple[Expert, ...] = experts
        if along:
            learnt = jax.device_get(run.params[EXPERTS])
            final = tuple(retrained(expert, bank, learnt) for expert in experts)
        trained = TrainedXLoRA(
            classifier=nnx.merge(structure, run.params[CLASSIFIER]),
            adapters=AdapterSet(config, final, dtype=dtype, placement=base.placement) if along else bank,
            experts=final,
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
    """The loss as a function of the classifier's parameters, and of the experts' factors if they are trained; the
    frozen part is the state of the model, and the bank of the experts.

    It also gives the sum of each expert's weight, averaged over the modules.
    """

    graph: Any
    """The model's structure."""
    classifier: Any
    """The classifier's."""
    remat: bool = False
    alone: float = 0.0
    """Fraction of the texts that run with a single expert, in training."""

    def __call__(
        self,
        params: dict[str, Any],
        frozen: tuple[Any, AdapterBank],
        tokens: jax.Array,
        weights: jax.Array,
        key: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array]:
        model = nnx.merge(self.graph, frozen[0])
        bank = with_factors(frozen[1], params[EXPERTS], model.dtype) if EXPERTS in params else frozen[1]
        classifier: XLoRA = nnx.merge(self.classifier, params[CLASSIFIER])
        mixture, _ = classifier.mixture(model, bank, tokens[:, :-1], dropout=key)
        shares = jnp.mean(mixture.weights, axis=2)  # [B, T, E]
        sums = jnp.einsum("bt,bte->e", weights, shares)
        if self.alone and key is not None:
            drawn = jax.random.bernoulli(jax.random.fold_in(key, 2**31 - 1), self.alone, weights.shape[:1])
            mixture, weights = _with_one_expert(mixture, shares, weights, drawn)
        hidden = model.hidden_states(tokens[:, :-1], mixture, remat=self.remat)
        return next_token_loss(model, hidden, tokens, weights), sums


def _with_one_expert(
    mixture: Mixture, shares: jax.Array, weights: jax.Array, drawn: jax.Array
) -> tuple[Mixture, jax.Array]:
    """Give some texts to the expert with most of the weight on the tokens that count, if there is one. In these texts,
    tokens for which another expert is preferred no longer count.

    Args:
      shares: float32 [B, T, E].
      weights: float32 [B, T], of the tokens in the loss.
      drawn: bool [B]: which texts.
    Returns: the mixture, and the weights of the tokens.
    """
    received = jnp.einsum("bt,bte->be", weights, shares)
    preferred = jnp.argmax(received, axis=-1)
    # An untrained classifier should not give texts to the wrong expert.
    drawn &= jnp.max(received, axis=-1) > 0.5 * jnp.sum(received, axis=-1)
    only = jax.nn.one_hot(preferred, shares.shape[-1], dtype=jnp.float32)[:, None, None]
    foreign = drawn[:, None] & (jnp.argmax(shares, axis=-1) != preferred[:, None])
    alone = replace(mixture, weights=jnp.where(drawn[:, None, None, None], only, mixture.weights))
    return alone, jnp.where(foreign, 0.0, weights)


def new_classifier(hidden_size: int, experts: tuple[GivenExpert, ...], settings: XLoRATrainingSettings) -> XLoRA:
    """A classifier with random weights, determined by the seed."""
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
