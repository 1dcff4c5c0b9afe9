"""Records what the bundled model completes, to the bit: run it before and after a change that must not change a bit.

    python -m tests.record_completions before.json        # in the one tree
    python -m tests.record_completions after.json         # in the other
    cmp before.json after.json

50 prompts, conversations and raw texts, short and long, greedy and sampled, with the base, single adapters, mixtures
by hand, X-LoRA and X-LoRA with frozen weights, in float32, bfloat16, q8_0 and int8: texts, tokens, log-probabilities
and adapter weights, as hexadecimal digits of their bits. A file holds for one machine and one version of jaxlib. Only
what `import mistral_jax` exports is used, so that this file runs with other versions of the code as well.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import mistral_jax

QUESTIONS = (
    *("Hello!", "What is JAX?", "What is 12 plus 25?", "How do I start a GGUF model?", "How many feet are 3 metres?"),
    *(
        "Spell cat backwards.",
        "What is the capital of Peru?",
        "And of Spain?",
        "Tell me a joke.",
        "What is a KV cache?",
    ),
)
TEXTS = ("Once upon a time", "The capital of", "1 2 3 4", "def f(x):", "Ünïcode 日本 😀")
SETTINGS = (
    {"temperature": 0.0},
    {"temperature": 0.8, "seed": 7, "top_p": 0.9},
    {"temperature": 1.0, "seed": 11, "top_k": 20, "repetition_penalty": 1.2, "presence_penalty": 0.5},
)
ADAPTED = (
    {"adapter": "base"},
    {"adapter": "arithmetic"},
    {"adapters": {"text": 0.7, "translation": -0.4}},
    {},
    {"freeze_after": 3},
)
FORMS = (("float32", "auto"), ("bfloat16", "auto"), ("bfloat16", "q8_0"), ("float32", "int8"))


def requests() -> list[tuple[Any, dict[str, Any]]]:
    """50 prompts with their settings."""
    found: list[tuple[Any, dict[str, Any]]] = []
    for number in range(50):
        question = QUESTIONS[number % len(QUESTIONS)]
        if number % 5 == 4:
            prompt: Any = TEXTS[number // 10] * (1 + 12 * (number % 2))
        else:
            earlier = [QUESTIONS[(number + i) % len(QUESTIONS)] for i in range(number % 4)]
            turns = [({"role": "user", "content": text}, {"role": "assistant", "content": "Well."}) for text in earlier]
            prompt = [*(message for turn in turns for message in turn), {"role": "user", "content": question}]
        found.append((prompt, {**SETTINGS[number % len(SETTINGS)], **ADAPTED[number % len(ADAPTED)]}))
    return found


def digits(values: Any) -> str:
    return np.ascontiguousarray(values, np.float32).tobytes().hex()


def record(dtype: str, quant: str) -> list[dict[str, Any]]:
    model = mistral_jax.load("demo-xlora", dtype=dtype, quant=quant, slots=3, length=512, progress=False)
    recorded: list[dict[str, Any]] = []
    for prompt, settings in requests():
        made = model.generate(prompt, max_tokens=32, logprobs=4, keep_weights=True, **settings)
        recorded.append(
            {
                "text": made.text,
                "tokens": [sampled.token for sampled in made.tokens],
                "logprobs": digits([sampled.logprob for sampled in made.tokens]),
                "top": [digits([logprob for _, logprob in sampled.top]) for sampled in made.tokens],
                "weights": digits(made.adapter_weights),
                "finish_reason": made.finish_reason,
            }
        )
    return recorded


def main() -> None:
    found = {f"{dtype} {quant}": record(dtype, quant) for dtype, quant in FORMS}
    Path(sys.argv[1]).write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print({name: len(recorded) for name, recorded in found.items()})


if __name__ == "__main__":
    main()
