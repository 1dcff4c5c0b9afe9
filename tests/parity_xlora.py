"""How close LoRA and X-LoRA come to PEFT, for every golden of `tests/goldens/xlora`.

    python -m tests.parity_xlora

prints a Markdown table; `tests/mistral_jax/adapters/test_xlora_parity.py` holds the same numbers to bounds. Base,
adapters and mixtures are opened by the ordinary readers, the mixtures in the layout of the original library. All is
computed in float32, in two ways:

- whole: the whole text at once, without caches;
- cached: through the caches, 2 chunks of 4 tokens and then token by token.

Errors of logits are max |Δlogit| / max |logit|, over a prompt of two rows and, at its last token, the greedy text after
it. Errors of scalings are max |Δscaling| / max |scaling|; what the cached way gives is not the scalings but the weights
that follow from them, so there the error is that of the weights. The greedy texts are 32 tokens after each of two
prompts, by the compiled programs of a `Runner`, both in one batch; PEFT computes every token anew, without a cache.
PEFT's rounding is the error of its own logits, from those that it gives in float64.
"""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from conversion.weights.weight_files import find_weight_files
from mistral_jax.adapters.bank import AdapterSet
from mistral_jax.adapters.choice import AdapterChoice
from mistral_jax.adapters.load_adapters import load_adapters, open_adapters
from mistral_jax.adapters.xlora import XLoRA
from mistral_jax.checkpoint.weights import load_weights, open_weights
from mistral_jax.model.config import MistralConfig
from mistral_jax.model.kv_cache import LOOP, KVCache
from mistral_jax.model.low_rank import AdapterBank, Mixture
from mistral_jax.model.mistral import Mistral
from mistral_jax.runtime.mixing import AdaptedModel, Caches, MixingRows, RowMixing
from mistral_jax.runtime.runner import Runner
from mistral_jax.runtime.sampling.params import SamplingParams
from mistral_jax.runtime.sampling.sample import Features, unpack

GOLDENS = Path(__file__).parent / "goldens" / "xlora"
SETTINGS: dict[str, Any] = json.loads((GOLDENS / "settings.json").read_text())
MIXTURES: dict[str, dict[str, Any]] = SETTINGS["mixtures"]
"""Settings of each mixture by its number."""
PAIRS = list(MIXTURES)[: SETTINGS["pairs"]]
"""Mixtures in which each pair of values of two settings occurs."""
LORAS: dict[str, dict[str, float]] = {
    "base": {},
    **{name: {name: 1.0} for name in SETTINGS["sum"]},
    "sum": SETTINGS["sum"],
}
"""Weight of each adapter, for each file of `lora/`."""

BOUND = 1e-4
_BORDERS = (0, 4, 8)
"""Where chunks begin in the cached way; then come single tokens."""


def load_base() -> Mistral:
    folder = GOLDENS / "base"
    config = MistralConfig.from_folder(folder)
    return load_weights(config, open_weights(config, find_weight_files(folder)), dtype=jnp.float32)


def assemble(number: str, folder: Path) -> Path:
    """A mixture as people download it: its own two files, and the adapters of its list beside them."""
    shutil.copytree(GOLDENS / "mixtures" / number, folder, ignore=shutil.ignore_patterns("*.npz"))
    for name in json.loads((folder / "xlora_config.json").read_text())["adapters"]:
        shutil.copytree(GOLDENS / "adapters" / name, folder / name)
    return folder


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model, and what is mixed into it."""

    model: Mistral
    adapters: AdapterSet
    choice: AdapterChoice
    xlora: XLoRA | None = None

    @classmethod
    def of_loras(cls, model: Mistral, weights: dict[str, float]) -> Subject:
        """All adapters at hand, and fixed weights of those in `weights`."""
        files = open_adapters(model.config, loras={name: GOLDENS / "adapters" / name for name in SETTINGS["sum"]})
        adapters, _ = load_adapters(files, dtype=jnp.float32)
        chosen = tuple((adapters.entries[name].number, weight) for name, weight in weights.items())
        return cls(model=model, adapters=adapters, choice=AdapterChoice(weights=chosen))

    @classmethod
    def of_mixture(cls, model: Mistral, folder: Path) -> Subject:
        adapters, xlora = load_adapters(open_adapters(model.config, xlora=folder), dtype=jnp.float32)
        return cls(model=model, adapters=adapters, choice=AdapterChoice(xlora=True), xlora=xlora)


@dataclass(frozen=True)
class Ours:
    """What one of the ways gives for B rows of T tokens."""

    logits: np.ndarray
    """[B, T, V]"""
    scalings: np.ndarray | None
    """[B, T, M, A] of the way `whole`; None without a classifier."""
    weights: np.ndarray | None
    """[B, T, M, A] of the way `cached`; None without a classifier."""


def whole(subject: Subject, tokens: np.ndarray) -> Ours:
    """Without caches, for tokens [B, T]."""
    graphdef, state = nnx.split((subject.model, subject.xlora))
    capacity = subject.adapters.capacity
    fixed = RowMixing.of(subject.choice, capacity, tokens.shape[1]).weights

    @jax.jit
    def run(state: Any, bank: AdapterBank, tokens: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        model, xlora = nnx.merge(graphdef, state)
        if xlora is None:
            mixture = Mixture(bank=bank, weights=jnp.asarray(fixed)[None, None, None])
            return model.logits(model.hidden_states(tokens, mixture)), None
        hidden, scalings = xlora.hidden_states(model, bank, tokens)
        return model.logits(hidden), scalings

    logits, scalings = run(state, subject.adapters.bank, tokens)
    return Ours(np.asarray(logits), None if scalings is None else np.asarray(scalings), None)


def cached(subject: Subject, tokens: np.ndarray) -> Ours:
    """Through the caches, for tokens [B, T]."""
    B, T = tokens.shape
    graphdef, state = nnx.split((subject.model, subject.xlora))
    capacity, xlora = subject.adapters.capacity, subject.xlora
    mixing = MixingRows.allocate(slots=B, columns=1 if xlora is None else xlora.columns.count, adapters=capacity)
    for slot in range(B):
        mixing = mixing.admit(jnp.int32(slot), RowMixing.of(subject.choice, capacity, T))

    @jax.jit
    def run(
        state: Any, bank: AdapterBank, caches: Caches, tokens: jax.Array, start: jax.Array
    ) -> tuple[jax.Array, Caches, jax.Array | None]:
        model, xlora = nnx.merge(graphdef, state)
        adapted = AdaptedModel(model=model, bank=bank, adapters=capacity, xlora=xlora)
        hidden, caches, weights = adapted(
            tokens,
            caches,
            jnp.arange(B),
            positions=jnp.broadcast_to(start + jnp.arange(tokens.shape[1]), tokens.shape),
            valid=jnp.ones(tokens.shape, jnp.bool_),
            mixing=mixing,
            plan=LOOP,
            scaling=xlora is not None,
        )
        return adapted.logits(hidden), caches, weights

    model = subject.model
    cache = partial(KVCache.allocate, model.config, slots=B, length=T, chunk=_BORDERS[1], dtype=model.dtype)
    caches = Caches(cache(), cache())
    logits: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    for start, stop in itertools.pairwise((*_BORDERS, *range(_BORDERS[-1] + 1, T + 1))):
        out, caches, used = run(state, subject.adapters.bank, caches, tokens[:, start:stop], jnp.int32(start))
        logits.append(np.asarray(out))
        if used is not None:
            weights.append(np.asarray(used))
    return Ours(np.concatenate(logits, axis=1), None, np.concatenate(weights, axis=1) if weights else None)


def generate(subject: Subject, prompts: Sequence[Sequence[int]], length: int) -> list[list[int]]:
    """Greedy texts of `length` tokens after the prompts, all in one batch."""
    runner = Runner(
        subject.model,
        slots=len(prompts),
        length=len(prompts[0]) + length,
        chunks=(4,),
        repeat_last_n=0,
        adapters=subject.adapters,
        xlora=subject.xlora,
    )
    state = runner.new_state()
    params = SamplingParams(temperature=0.0, seed=0)
    scaling = subject.choice.xlora
    for slot, prompt in enumerate(prompts):
        state = runner.admit(state, slot, prompt, params, subject.choice)
        for chunk in runner.chunks(len(prompt)):
            state = runner.prefill(state, slot, prompt, chunk, scaling=scaling).state
    texts: list[list[int]] = [[] for _ in prompts]
    slots = range(len(prompts))
    for step in range(length):
        longest = len(prompts[0]) + step
        stepped = runner.decode(state, slots, Features.of(params), longest=longest, scaling=scaling)
        state = stepped.state
        for slot, text in enumerate(texts):
            text.append(unpack(np.asarray(stepped.packed)[slot], 0).token)
    return texts


def weights_of(scalings: np.ndarray, number: str) -> np.ndarray:
    """What the reference makes of scalings [..., A], for the settings of a mixture."""
    settings = MIXTURES[number]
    weights = scalings.astype(np.float64)
    if settings["top_k"] is not None:
        order = np.argsort(-weights, axis=-1, kind="stable")
        np.put_along_axis(weights, order[..., settings["top_k"] :], 0.0, axis=-1)
    if settings["softmax_topk"]:
        powers = np.where(weights != 0, np.exp(weights), 0.0)
        weights = powers / powers.sum(axis=-1, keepdims=True)
    return weights * settings["global_weight"]


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    """max |Δ| / max |theirs|"""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@dataclass(frozen=True)
class Errors:
    """Of one way."""

    logits: float
    scalings: float | None
    """Of the weights in the cached way; None without a classifier."""


class Golden:
    """What PEFT computes in one case."""

    def __init__(self, path: Path, number: str | None = None) -> None:
        """Args:
        number: of a mixture.
        """
        with np.load(path) as file:
            arrays = dict(file)
        self.number = number
        self.tokens: np.ndarray = arrays["tokens"]
        """int32 [B, T]"""
        self.logits: np.ndarray = arrays["logits"]
        self.greedy: np.ndarray = arrays["greedy"]
        """int32 [B, 32]"""
        self.last_logits: np.ndarray = arrays["last_logits"]
        """[B, V]: those that chose the last token of `greedy`."""
        self.scalings: np.ndarray | None = arrays.get("scalings")
        self.rounding = float(arrays["rounding"])
        """Error of `logits` and `last_logits` themselves, from the same model in float64."""

    @classmethod
    def of_lora(cls, name: str) -> Golden:
        return cls(GOLDENS / "lora" / f"{name}.npz")

    @classmethod
    def of_mixture(cls, number: str) -> Golden:
        return cls(GOLDENS / "mixtures" / number / "expected.npz", number)

    @property
    def whole_text(self) -> np.ndarray:
        """Prompt and greedy text, but the last token: int32 [B, T + 31]."""
        return np.concatenate([self.tokens, self.greedy[:, :-1]], axis=1)

    def errors(self, ours: Ours) -> Errors:
        """Of what one of the ways gives for `whole_text`."""
        T = self.tokens.shape[1]
        logits = np.concatenate([ours.logits[:, :T], ours.logits[:, -1:]], axis=1)
        theirs = np.concatenate([self.logits, self.last_logits[:, None]], axis=1)
        scalings = None
        if self.number is not None and self.scalings is not None:
            if ours.scalings is not None:
                # One that is not layerwise says the same for all modules.
                scalings = relative(np.broadcast_to(ours.scalings[:, :T], self.scalings.shape), self.scalings)
            else:
                assert ours.weights is not None
                expected = weights_of(self.scalings, self.number)
                scalings = relative(np.broadcast_to(ours.weights[:, :T], expected.shape), expected)
        return Errors(relative(logits, theirs), scalings)

    def chosen(self, ours: Ours) -> list[list[int]]:
        """The likeliest token at each place of the greedy text, given what the reference has before it."""
        return ours.logits[:, self.tokens.shape[1] - 1 :].argmax(-1).tolist()

    def generated(self, subject: Subject) -> bool:
        """Whether the greedy texts are equal."""
        return generate(subject, self.tokens.tolist(), self.greedy.shape[1]) == self.greedy.tolist()


COLUMNS = (
    *("case", "adapters", "depth", "layerwise", "temperature", "top-k", "softmax of top-k", "scaling pass"),
    *("global weight", "dropout", "ReLU", "bias", "logits: whole", "cached", "scalings: whole", "weights: cached"),
    *("PEFT's rounding", "greedy text"),
)
_SHOWN = (
    *("depth", "layerwise", "temperature", "top_k", "softmax_topk", "scaling_pass"),
    *("global_weight", "dropout", "relu", "bias"),
)


def _cell(value: object) -> str:
    return {True: "yes", False: "no", None: "–"}[value] if value is None or isinstance(value, bool) else str(value)


def _row(cells: list[str], golden: Golden, subject: Subject) -> str:
    found = [golden.errors(way(subject, golden.whole_text)) for way in (whole, cached)]
    cells += [f"{errors.logits:.1e}" for errors in found]
    cells += ["" if errors.scalings is None else f"{errors.scalings:.1e}" for errors in found]
    cells.append(f"{golden.rounding:.1e}")
    cells.append("equal" if golden.generated(subject) else "differs")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    versions = ", ".join(f"{name} {version}" for name, version in SETTINGS["versions"].items())
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}; {versions}.\n")
    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
    model = load_base()
    for name, weights in LORAS.items():
        cells = [name, " + ".join(f"{weight:g} {adapter}" for adapter, weight in weights.items()), *[""] * len(_SHOWN)]
        print(_row(cells, Golden.of_lora(name), Subject.of_loras(model, weights)), flush=True)
    for number, settings in MIXTURES.items():
        with tempfile.TemporaryDirectory() as folder:
            path = assemble(number, Path(folder) / number)
            names = json.loads((path / "xlora_config.json").read_text())["adapters"]
            cells = [number, " ".join(names), *(_cell(settings[name]) for name in _SHOWN)]
            print(_row(cells, Golden.of_mixture(number), Subject.of_mixture(model, path)), flush=True)


if __name__ == "__main__":
    main()
