"""What may be chosen in training. The command line makes its options from these declarations; nothing here needs JAX.

A field's `Annotated` text says what it means.
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
    """What every training has. Raises ValueError where a value makes no sense."""

    steps: Annotated[int | None, "Updates of the parameters; none: as many as `epochs` takes."] = None
    epochs: Annotated[float, "Passes over the data, where `steps` is not given."] = 3.0
    learning_rate: Annotated[float, "Of AdamW, once warmed up; it then falls along a cosine."] = 1e-3
    final_learning_rate: Annotated[float, "Where the cosine ends, as a fraction of `learning_rate`."] = 0.0
    warmup_steps: Annotated[int | None, "Updates until the full learning rate; none: a tenth, at most 100."] = None
    weight_decay: Annotated[float, "Of AdamW."] = 0.0
    beta2: Annotated[float, "Of AdamW: memory of the squared gradients."] = 0.99
    clip_norm: Annotated[float, "Longest gradient; longer ones are shortened to it. 0: none are."] = 1.0
    batch_tokens: Annotated[int, "Tokens of a batch, padding included, about."] = 2048
    accumulate: Annotated[int, "Batches whose gradients are added up for one update."] = 1
    max_length: Annotated[int | None, "Longest example, in tokens; none: as the model's, at most 1024."] = None
    too_long: Annotated[
        Literal["refuse", "skip", "cut"],
        "What becomes of longer examples: the run is refused, or they are left out or cut.",
    ] = "refuse"
    buckets: Annotated[int, "Most lengths to which examples are padded; each is compiled once."] = 6
    seed: Annotated[int, "Decides the order of the data, the initial parameters and what dropout drops."] = 0
    validation_split: Annotated[float, "Fraction of the data to hold out for validation."] = 0.0
    validate_every: Annotated[int, "Updates between two validations; 0: only before and after the run."] = 100
    checkpoint_every: Annotated[int, "Updates between two checkpoints; 0: only when the run is interrupted."] = 200
    remat: Annotated[bool, "Keep less for the gradients and compute it again: less memory, a third slower."] = False

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
        float | None, "What the factors' product is multiplied by, times the rank; none: twice the rank."
    ] = None
    use_rslora: Annotated[bool, "Scale by alpha / sqrt(rank) instead of alpha / rank."] = False
    targets: Annotated[tuple[str, ...], "Linear layers to adapt, in every decoder layer."] = PARTS
    dropout: Annotated[float, "Of what goes into the factors, in training."] = 0.0
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
        """Factor of the product of the factors."""
        return self.chosen_alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)


@dataclass(frozen=True, kw_only=True)
class XLoRATrainingSettings(TrainingSettings):
    """How to train the classifier of an X-LoRA mixture. The fields of the classifier mean what they do in
    `XLoRAConfig`."""

    depth: Annotated[int, "Linear layers of the classifier."] = 1
    size: Annotated[int, "Width between them."] = 2048
    layerwise: Annotated[bool, "Whether each adapted module gets scalings of its own."] = True
    bias: Annotated[bool, "Whether the classifier's layers have a bias."] = True
    dropout: Annotated[float, "Between the classifier's layers, in training."] = 0.2
    softmax: Annotated[bool, "Whether the scalings of a token and module are made positive and to add up to 1."] = True
    temperature: Annotated[float, "Of that softmax."] = 1.0
    top_k: Annotated[int | None, "Adapters kept for each token and module; none: all."] = None
    softmax_topk: Annotated[bool, "Softmax once more over what `top_k` left."] = False
    scaling_pass_value: Annotated[
        float, "Weight of every adapter while the scalings are computed; 0: the base model."
    ] = 0.0
    global_weight: Annotated[float, "Factor of what the adapters add."] = 1.0
    adapter_learning_rate: Annotated[
        float | None, "Train the experts along, at this rate; none: they stay as they are."
    ] = None
    alone: Annotated[
        float | None,
        "Fraction of the texts that run with one expert alone, the one that the classifier prefers, "
        "while experts are trained: it keeps them usable by themselves. None: a quarter.",
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
