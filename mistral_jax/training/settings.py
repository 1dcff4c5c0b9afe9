"""The settings of training. The command line makes its options from these declarations; nothing here needs JAX.

A field's `Annotated` text is its help text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from conversion.adapters.modules import PARTS

SAVED_TYPES = ("float32", "bfloat16", "float16")
TOO_LONG = ("refuse", "skip", "cut")


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Settings of every training. Raises ValueError for an invalid value."""

    steps: Annotated[int | None, "Updates of the parameters; none: as many as `epochs` takes."] = None
    epochs: Annotated[float, "Passes over the data, where `steps` is not given."] = 3.0
    learning_rate: Annotated[float, "Learning rate of AdamW after warm-up; it then decays along a cosine."] = 1e-3
    final_learning_rate: Annotated[float, "Final learning rate, as a fraction of `learning_rate`."] = 0.0
    warmup_steps: Annotated[int | None, "Updates until the full learning rate; none: a tenth, at most 100."] = None
    weight_decay: Annotated[float, "Weight decay of AdamW."] = 0.0
    beta2: Annotated[float, "Beta2 of AdamW: decay of the mean squared gradient."] = 0.99
    clip_norm: Annotated[float, "Maximum norm of the gradient; larger ones are scaled down. 0: no clipping."] = 1.0
    batch_tokens: Annotated[int, "Approximate tokens of a batch, padding included."] = 2048
    accumulate: Annotated[int, "Batches whose gradients are added up for one update."] = 1
    max_length: Annotated[int | None, "Longest example, in tokens; none: as the model's, at most 1024."] = None
    too_long: Annotated[
        Literal["refuse", "skip", "cut"],
        "Longer examples: refuse the run, skip them, or cut them.",
    ] = "refuse"
    buckets: Annotated[int, "Most lengths to which examples are padded; each compiles a program."] = 6
    seed: Annotated[int, "Seed of the data order, the initial parameters and dropout."] = 0
    validation_split: Annotated[float, "Fraction of the data to hold out for validation."] = 0.0
    validate_every: Annotated[int, "Updates between two validations; 0: only before and after the run."] = 100
    checkpoint_every: Annotated[int, "Updates between two checkpoints; 0: only when the run is interrupted."] = 200
    remat: Annotated[bool, "Recompute activations in the backward pass: less memory, a third slower."] = False

    def __post_init__(self) -> None:
        self.at_least(1, "steps", "warmup_steps", "batch_tokens", "accumulate", "buckets")
        self.at_least(
            0, "validate_every", "checkpoint_every", "weight_decay", "clip_norm", "final_learning_rate", "seed"
        )
        self.at_least(2, "max_length")
        self.above_zero("epochs", "learning_rate")
        self.below_one("validation_split", "beta2")
        self.one_of(TOO_LONG, "too_long")
        if self.final_learning_rate > 1:
            raise ValueError(f"final_learning_rate is {self.final_learning_rate}; expected a fraction from 0 to 1")
        if self.steps is not None and (self.warmup_steps or 0) > self.steps:
            raise ValueError(f"warmup_steps is {self.warmup_steps}, and there are only {self.steps} steps")

    def at_least(self, least: float, *names: str) -> None:
        for name in names:
            value: Any = getattr(self, name)
            if value is not None and not least <= value < math.inf:
                raise ValueError(f"{name} is {value}; expected at least {least}")

    def above_zero(self, *names: str) -> None:
        for name in names:
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number above 0")

    def below_one(self, *names: str) -> None:
        for name in names:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number from 0 to below 1")

    def one_of(self, choices: tuple[str, ...], *names: str) -> None:
        for name in names:
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(choices)}")


@dataclass(frozen=True, kw_only=True)
class LoRATrainingSettings(TrainingSettings):
    """How to train one LoRA."""

    rank: Annotated[int, "Rank of the factors."] = 16
    alpha: Annotated[
        float | None, "LoRA alpha: the factors' product is scaled by alpha / rank; none: twice the rank."
    ] = None
    use_rslora: Annotated[bool, "Scale by alpha / sqrt(rank) instead of alpha / rank."] = False
    targets: Annotated[tuple[str, ...], "Linear layers to adapt, in every decoder layer."] = PARTS
    dropout: Annotated[float, "Dropout on the input of the factors."] = 0.0
    save_dtype: Annotated[Literal["float32", "bfloat16", "float16"], "Type of the factors in the file."] = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "rank")
        self.below_one("dropout")
        self.one_of(SAVED_TYPES, "save_dtype")
        if self.alpha is not None:
            self.above_zero("alpha")
        unknown = [part for part in self.targets if part not in PARTS]
        if unknown or not self.targets or len(set(self.targets)) < len(self.targets):
            found = repr(unknown[0]) if unknown else "empty" if not self.targets else "naming a layer twice"
            raise ValueError(f"targets is {found}; expected some of {', '.join(PARTS)}, each once")

    @property
    def chosen_alpha(self) -> float:
        return 2.0 * self.rank if self.alpha is None else self.alpha

    @property
    def scale(self) -> float:
        """Scale of the factors' product."""
        return self.chosen_alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)


@dataclass(frozen=True, kw_only=True)
class XLoRATrainingSettings(TrainingSettings):
    """How to train the classifier of an X-LoRA mixture. The fields of the classifier mean what they do in
    `XLoRAConfig`."""

    depth: Annotated[int, "Linear layers of the classifier."] = 1
    size: Annotated[int, "Width between the classifier's layers."] = 2048
    layerwise: Annotated[bool, "Whether each adapted module gets scalings of its own."] = True
    bias: Annotated[bool, "Whether the classifier's layers have a bias."] = True
    dropout: Annotated[float, "Dropout between the classifier's layers."] = 0.2
    softmax: Annotated[bool, "Softmax over the scalings of a token and module, so that they add up to 1."] = True
    temperature: Annotated[float, "Temperature of that softmax."] = 1.0
    top_k: Annotated[int | None, "Adapters kept for each token and module; none: all."] = None
    softmax_topk: Annotated[bool, "A second softmax over the adapters that `top_k` left."] = False
    scaling_pass_value: Annotated[
        float, "Weight of every adapter while the scalings are computed; 0: the base model."
    ] = 0.0
    global_weight: Annotated[float, "Factor of the adapters' contribution."] = 1.0
    adapter_learning_rate: Annotated[
        float | None, "Train the experts too, at this learning rate; none: they stay frozen."
    ] = None
    alone: Annotated[
        float | None,
        "While experts are trained: fraction of the texts that run with a single expert, the one that the "
        "classifier prefers. It keeps experts usable by themselves. None: a quarter.",
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adapter_learning_rate is not None:
            self.above_zero("adapter_learning_rate")
        if self.alone is not None:
            self.below_one("alone")
            if self.adapter_learning_rate is None:
                raise ValueError(
                    "alone is for experts that are trained; give adapter_learning_rate as well, or leave it out"
                )
        self.at_least(1, "depth", "size", "top_k")
        self.below_one("dropout")
        self.above_zero("temperature")

    @property
    def chosen_alone(self) -> float:
        """0 where experts are not trained."""
        if self.adapter_learning_rate is None:
            return 0.0
        return 0.25 if self.alone is None else self.alone
