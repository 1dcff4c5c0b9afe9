"""How close we come to llama.cpp on GGUF files that llama.cpp itself made. The files and their maker:
`tests/goldens/make_gguf.py`.

    python -m tests.parity_gguf [FOLDER [QUANT]]

prints a Markdown table for all files of a folder (default: `tests/goldens/gguf`);
`tests/mistral_jax/model/test_gguf_parity.py` holds the committed files to bounds. Each file is loaded by itself, in
float32, its weights unpacked at load (or as QUANT of `mistral_jax.load` says), and compared with

- llama.cpp on the very file, where it rounds the activations to 8 bits for products with quantised weights, and to
  bfloat16 for those with bfloat16 weights;
- exact: llama.cpp on the same weights unpacked to float32, so that it computes in float32 throughout.

The columns:

- three distances, max (mean) |Δlogit| over the standard deviation of the logits. That of llama.cpp to its own exact
  result is what its rounding costs, and the tolerance that a comparison with it must grant;
- greedy = exact: of 64 tokens after each prompt, as many as are equal before the first that is not;
- greedy = llama.cpp: the same for each prompt. Once one token differs, the texts are different texts;
- next = llama.cpp: how many of our likeliest tokens are those of llama.cpp where both continue *its* text, and in
  brackets the largest lead, over the standard deviation, that a token of its choice had where ours is another.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jax
import numpy as np

import mistral_jax
from mistral_jax.notebook.language_model import LanguageModel

GOLDENS = Path(__file__).parent / "goldens" / "gguf"


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What is recorded of one prompt. Everything of `llama` is None where llama.cpp ignores what the file says."""

    tokens: list[int]
    positions: np.ndarray
    """int32 [P]: the positions of the prompt whose logits are recorded."""
    exact: np.ndarray
    """float32 [P, V]"""
    greedy_exact: list[int]
    llama: np.ndarray | None
    greedy_llama: list[int] | None
    margin_llama: np.ndarray | None
    """float32 [64]: the lead of each token of `greedy_llama` before the second likeliest."""


@dataclass(frozen=True)
class Golden:
    """A file and what is recorded of it."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name.removesuffix(".gguf")

    @cached_property
    def prompts(self) -> list[Prompt]:
        with np.load(self.path.with_suffix(".npz")) as file:
            arrays = dict(file)
        return [_prompt(arrays, i) for i in range(sum(name.startswith("tokens_") for name in arrays))]

    @cached_property
    def described(self) -> dict:
        """The JSON file of the model: prompts, greedy texts and token ids."""
        model, _ = self.name.split(".")
        return json.loads((self.path.parent / f"{model}.json").read_text())

    @property
    def greedy_texts(self) -> list[str]:
        """What llama.cpp's tokenizer makes of each `greedy_exact`."""
        _, kind = self.name.split(".")
        return self.described["greedy_texts"][kind]

    def load(self, quant: str = "none", activations: str = "float") -> LanguageModel:
        return mistral_jax.load(
            self.path,
            dtype="float32",
            quant=quant,  # type: ignore[arg-type]
            activations=activations,  # type: ignore[arg-type]
            slots=4,
            length=256,
            progress=False,
        )

    @cached_property
    def spread(self) -> float:
        """The standard deviation of the logits."""
        return float(np.concatenate([prompt.exact for prompt in self.prompts]).std())


def _prompt(arrays: dict[str, np.ndarray], i: int) -> Prompt:
    has_llama = f"llama_{i}" in arrays
    return Prompt(
        tokens=arrays[f"tokens_{i}"].tolist(),
        positions=arrays[f"positions_{i}"],
        exact=arrays[f"exact_{i}"],
        greedy_exact=arrays[f"greedy_exact_{i}"].tolist(),
        llama=arrays[f"llama_{i}"] if has_llama else None,
        greedy_llama=arrays[f"greedy_llama_{i}"].tolist() if has_llama else None,
        margin_llama=arrays[f"margin_llama_{i}"] if has_llama else None,
    )


def goldens(folder: Path = GOLDENS) -> list[Golden]:
    return [Golden(path) for path in sorted(folder.glob("*.gguf"))]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What our model makes of one prompt, without a cache."""

    logits: np.ndarray
    """float32 [P, V] at the recorded positions."""
    after_exact: list[int]
    """The likeliest token after the prompt and each beginning of `greedy_exact`."""
    after_llama: list[int] | None


def answer(model: LanguageModel, prompt: Prompt) -> Answer:
    last = len(prompt.tokens) - 1

    def logits(greedy: list[int]) -> np.ndarray:
        return np.asarray(model.logits(prompt.tokens + greedy[:-1]))

    exact = logits(prompt.greedy_exact)
    return Answer(
        logits=exact[prompt.positions],
        after_exact=exact[last:].argmax(-1).tolist(),
        after_llama=logits(prompt.greedy_llama)[last:].argmax(-1).tolist() if prompt.greedy_llama else None,
    )


@dataclass(frozen=True, kw_only=True)
class Distance:
    """max and mean |Δlogit| over the standard deviation of the logits."""

    max: float
    mean: float

    def __str__(self) -> str:
        return f"{self.max:.1e} ({self.mean:.1e})"


def distance(golden: Golden, left: list[np.ndarray], right: list[np.ndarray]) -> Distance:
    difference = np.abs(np.concatenate(left) - np.concatenate(right)) / golden.spread
    return Distance(max=float(difference.max()), mean=float(difference.mean()))


def same(left: list[int], right: list[int]) -> int:
    """How many tokens are equal before the first that is not."""
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=True)) if a != b), len(left))


def leads_lost(answer: Answer, prompt: Prompt) -> list[float]:
    """The leads that llama.cpp's tokens had over its second choices where ours, after the same text, are others."""
    if prompt.greedy_llama is None or answer.after_llama is None or prompt.margin_llama is None:
        return []
    choices = zip(answer.after_llama, prompt.greedy_llama, prompt.margin_llama, strict=True)
    return [float(lead) for ours, theirs, lead in choices if ours != theirs]


def generate(model: LanguageModel, prompts: list[Prompt]) -> list[mistral_jax.Generation]:
    """Greedy answers as `greedy_exact` is made: as many tokens, past any end token; through the cache."""
    return [model.generate(p.tokens, temperature=0.0, max_tokens=len(p.greedy_exact), ignore_eos=True) for p in prompts]


def row(golden: Golden, quant: str) -> str:
    """A row of the table."""
    model = golden.load(quant)
    prompts = golden.prompts
    answers = [answer(model, prompt) for prompt in prompts]
    generated = [[token.token for token in g.tokens] for g in generate(model, prompts)]
    ours = [a.logits for a in answers]
    exact = [p.exact for p in prompts]
    llama = [p.llama for p in prompts if p.llama is not None]
    total = sum(len(p.greedy_exact) for p in prompts)
    as_exact = sum(same(g, p.greedy_exact) for g, p in zip(generated, prompts, strict=True))
    cells = [golden.name, str(distance(golden, ours, exact))]
    if llama:
        cells += [str(distance(golden, llama, exact)), str(distance(golden, ours, llama)), f"{as_exact} of {total}"]
        cells.append(" ".join(str(same(g, p.greedy_llama or [])) for g, p in zip(generated, prompts, strict=True)))
        leads = [lead for a, p in zip(answers, prompts, strict=True) for lead in leads_lost(a, p)]
        shown = f" ({max(leads) / golden.spread:.1e})" if leads else ""
        cells.append(f"{total - len(leads)} of {total}{shown}")
    else:
        cells += ["", "", f"{as_exact} of {total}", "", ""]
    return f"| {' | '.join(cells)} |"


COLUMNS = (
    *("file", "ours to exact", "llama.cpp to exact", "ours to llama.cpp"),
    *("greedy = exact", "greedy = llama.cpp", "next = llama.cpp"),
)


def main(folder: str | None = None, quant: str = "none") -> None:
    found = goldens(Path(folder) if folder else GOLDENS)
    if not found:
        raise SystemExit(f"no GGUF files in {folder}; tests/goldens/make_gguf.py writes them")
    versions = found[0].described["versions"]
    print(
        f"jax {jax.__version__} on {jax.devices()[0].device_kind}; llama-cpp-python {versions['llama_cpp_python']}.\n"
    )
    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
    for golden in found:
        print(row(golden, quant), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
