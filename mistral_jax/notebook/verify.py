"""Compares two checkpoints: configurations, weights tensor by tensor, and predictions on a text.

    from mistral_jax.notebook.verify import verify
    print(verify("my-model", "my-model.Q4_K_M.gguf"))

The formats may differ: both are read as Hugging Face tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from conversion.gguf.config import hf_config
from conversion.gguf.container.file import GGUFFile
from mistral_jax.checkpoint.weights import open_weights
from mistral_jax.hub.files import ModelFiles, find_model
from mistral_jax.model.config import MistralConfig
from mistral_jax.notebook.language_model import LanguageModel
from mistral_jax.notebook.load import load
from mistral_jax.notebook.logit_differences import LogitDifference, compare_logits
from mistral_jax.notebook.tensor_differences import (
    TensorDifference,
    TensorMismatch,
    TiedSource,
    compare_tensors,
    match_names,
)
from mistral_jax.quant.plan import Quantization

Progress = Callable[[str, int, int], None]
"""Called with (name of the task, steps done, total steps)."""

TEXT = """\
The harbour wakes before the town does. At a quarter past four the first boats come round the mole, low in the water, and the
gulls follow them in. By five the auction hall is lit; crates of herring, plaice and crab stand in rows on the wet stone floor,
and a woman with a clipboard walks between them, writing down weights that nobody will dispute until much later in the day.

"How many?" she asks.
"Forty-two, less the three that fell," says the boy, and grins. "Mind the step, it's slippery."

In 1893 the railway reached the coast, and within ten years the catch that went inland had grown from 1,200 tonnes to 9,750. The
reasons are not hard to find: ice was cheap, wages were low, and a fish landed on Monday could be eaten on Tuesday in a city two
hundred kilometres away. What the figures do not show is how the work changed. Nets were mended by machine; families who had sold
at their own door sold to an agent instead; and the price was set by a telegram.

To estimate the yield y of a season from the number of days at sea, d, one may fit y = a * d + b by least squares:

    def fit(days, yields):
        n = len(days)
        mean_d, mean_y = sum(days) / n, sum(yields) / n
        a = sum((d - mean_d) * (y - mean_y) for d, y in zip(days, yields)) / sum((d - mean_d) ** 2 for d in days)
        return a, mean_y - a * mean_d

It is a poor model, since the sea keeps no calendar, but it is a start. Die Fischer wussten das schon immer; les pêcheurs aussi.
"""
"""The default text for comparing predictions: prose, speech, numbers, code, other languages."""


@dataclass(frozen=True, kw_only=True)
class ConfigDifference:
    """A field of `MistralConfig` in which the checkpoints differ."""

    name: str
    a: Any
    b: Any


@dataclass(frozen=True, kw_only=True)
class Verification:
    """How checkpoint B differs from checkpoint A."""

    a: str
    b: str
    config: tuple[ConfigDifference, ...]
    mismatched: tuple[TensorMismatch, ...]
    tensors: tuple[TensorDifference, ...]
    """All tensors that both have in the same shape, in the order of A."""
    logits: LogitDifference | None
    """None: not compared."""

    @property
    def relative_rms(self) -> float:
        """The largest relative RMS of all tensors without NaNs; 0 if there are none."""
        return max((tensor.relative_rms for tensor in self.tensors if not math.isnan(tensor.rms)), default=0.0)

    def failures(self, *, max_rms: float | None = None, max_kl: float | None = None) -> list[str]:
        """Reasons why B is not the same model as A, in words; empty if there are none.

        Args:
          max_rms: maximum relative RMS of any tensor.
          max_kl: maximum mean KL divergence, in nats; a failure also if predictions were not compared.
        """
        found: list[str] = []
        if self.mismatched:
            found.append(f"{len(self.mismatched)} tensors do not match")
        broken = [tensor.name for tensor in self.tensors if math.isnan(tensor.max_abs)]
        if broken:
            found.append(f"{len(broken)} tensors have values that are not numbers, {broken[0]} among them")
        if max_rms is not None and self.relative_rms > max_rms:
            worst = next(tensor for tensor in self.tensors if tensor.relative_rms == self.relative_rms)
            found.append(f"{worst.name} has a relative RMS of {worst.relative_rms:.3g}, more than {max_rms:g}")
        if max_kl is not None and self.logits is None:
            found.append("predictions were not compared, so nothing is known of their KL divergence")
        elif max_kl is not None and self.logits is not None and not self.logits.mean_kl <= max_kl:
            found.append(f"the mean KL divergence is {self.logits.mean_kl:.3g} nats, more than {max_kl:g}")
        return found

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def verify(
    a: str | Path,
    b: str | Path,
    *,
    text: str | None = None,
    logits: bool = True,
    max_tokens: int = 1024,
    dtype: str = "float32",
    quant: Quantization = "auto",
    progress: Progress | None = None,
) -> Verification:
    """Compare two checkpoints: folders, GGUF files, safetensors files or Hub ids, in any combination.

    Memory: one tensor of each checkpoint; for predictions, one whole model at a time.

    Args:
      text: the text for comparing predictions; None: `TEXT`.
      logits: False compares only configurations and tensors, which needs no tokenizer.
      max_tokens: maximum tokens of the text.
      dtype: the type in which the models compute.
      quant: the form of their weights, see `mistral_jax.quant.plan.Quantization`; "auto" keeps each weight as stored.
        Activations are not rounded.
    Raises:
      ModelNotFoundError, ConfigError, WeightFileError, TokenizerError: a checkpoint cannot be read.
      VocabularyMismatchError, ValueError: see `compare_logits`.
    """
    files_a, files_b = find_model(str(a)), find_model(str(b))
    config_a, config_b = read_config(files_a), read_config(files_b)
    source_a = TiedSource(open_weights(config_a, files_a.fetch_weights()))
    source_b = TiedSource(open_weights(config_b, files_b.fetch_weights()))
    names, mismatched = match_names(source_a, source_b)
    tensors: list[TensorDifference] = []
    for difference in compare_tensors(source_a, source_b, names):
        tensors.append(difference)
        if progress is not None:
            progress("comparing tensors", len(tensors), len(names))
    predictions = None
    if logits and not mismatched:

        def model(name: str | Path, number: int) -> LanguageModel:
            if progress is not None:
                progress("running models", number, 2)
            return load(name, dtype=dtype, quant=quant, activations="float", slots=1, progress=False)

        predictions = compare_logits(
            lambda: model(a, 0), lambda: model(b, 1), TEXT if text is None else text, max_tokens=max_tokens
        )
        if progress is not None:
            progress("running models", 2, 2)
    return Verification(
        a=str(a),
        b=str(b),
        config=_config_differences(config_a, config_b),
        mismatched=tuple(mismatched),
        tensors=tuple(tensors),
        logits=predictions,
    )


def read_config(files: ModelFiles) -> MistralConfig:
    """The configuration of a model, without its tokenizer."""
    if files.gguf is None:
        return MistralConfig.from_folder(files.folder)
    with GGUFFile(files.gguf) as gguf:
        return MistralConfig.from_hf(hf_config(gguf))


def _config_differences(a: MistralConfig, b: MistralConfig) -> tuple[ConfigDifference, ...]:
    # The class name and the storage type of a checkpoint do not affect what it computes.
    names = [field.name for field in fields(MistralConfig) if field.name not in ("architecture", "dtype")]
    pairs = [(name, getattr(a, name), getattr(b, name)) for name in names]
    return tuple(ConfigDifference(name=name, a=in_a, b=in_b) for name, in_a, in_b in pairs if in_a != in_b)


def _lines(v: Verification) -> list[str]:
    lines = [f"A  {v.a}", f"B  {v.b}", "", "Configuration: " + ("differs in" if v.config else "the same")]
    lines += [f"  {difference.name:<28} A {difference.a}   B {difference.b}" for difference in v.config]
    lines += ["", "Tensors"]
    lines += [f"  MISMATCH  {mismatch}" for mismatch in v.mismatched]
    equal = sum(tensor.equal for tensor in v.tensors)
    lines.append(f"  {equal} of {len(v.tensors)} are equal to the bit")
    if equal < len(v.tensors):
        width = max(len(tensor.name) for tensor in v.tensors)
        lines.append(f"  {'':<{width}}  {'max abs':>10} {'RMS':>10} {'relative':>9}")
        lines += [
            f"  {t.name:<{width}}  {t.max_abs:>10.3g} {t.rms:>10.3g} {t.relative_rms:>9.2%}"
            for t in v.tensors
            if not t.equal
        ]
    lines.append("")
    if v.logits is None:
        return [*lines, "Predictions: not compared" + (", since tensors do not match" if v.mismatched else "")]
    p = v.logits
    return [
        *lines,
        f"Predictions of {p.tokens:,} tokens",
        f"  perplexity        A {p.perplexity_a:,.4f}   B {p.perplexity_b:,.4f} "
        f"({p.perplexity_b / p.perplexity_a - 1:+.2%})",
        f"  logits            largest difference {p.max_abs:.3g}, mean {p.mean_abs:.3g}",
        f"  KL divergence     mean {p.mean_kl:.3g}, largest {p.max_kl:.3g} nats",
        f"  top-1 agreement   {p.top1_agreement:.2%}",
    ]
