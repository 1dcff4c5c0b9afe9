"""Decode speed of mistral.rs on a model, and on an X-LoRA mixture over it. Needs the mistralrs wheel.

usage: python time_mistralrs_xlora.py MODEL_DIR XLORA_DIR {float32|bfloat16} ANSWER_TOKENS

XLORA_DIR is in the original library's layout, with an ordering.json for this same MODEL_DIR. Version 0.9.5 takes some
care. It panics on a mixture in a local folder, so one is put into a cache of the Hub, by links. And on a CPU it fails
in prompts of more than one token ("RoPE positions length 1 does not match token count"); so the prompt is one token,
and one row is all there is. The time of the steps is separated from that of the start by two completions of different
lengths.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

REPOSITORY, COMMIT = "random/xlora", "0" * 40


def hub_cache(folder: Path, cache: Path) -> None:
    """Links to the files of `folder`, as if they had been downloaded."""
    repository = cache / f"models--{REPOSITORY.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for file in folder.resolve().rglob("*"):
        if file.is_file():
            link = repository / "snapshots" / COMMIT / file.relative_to(folder.resolve())
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)


def shortest_prompt(runner: Any, bos: str) -> str:
    """A text of one token: BOS, whether or not the tokenizer adds it itself."""
    for text in ("", bos):
        if len(runner.tokenize_text(text, add_special_tokens=True, enable_thinking=None)) == 1:
            return text
    raise SystemExit(f"neither an empty text nor {bos!r} is one token")


def seconds(runner: Any, prompt: str, tokens: int) -> float:
    """Seconds of one greedy completion."""
    import mistralrs

    request = mistralrs.CompletionRequest(
        model="default", prompt=prompt, max_tokens=tokens, temperature=0.0, ignore_eos=True
    )
    start = time.perf_counter()
    usage = runner.send_completion_request(request).usage
    if (usage.prompt_tokens, usage.completion_tokens) != (1, tokens):
        raise SystemExit(f"{prompt!r} and its answer are {usage.prompt_tokens} + {usage.completion_tokens} tokens")
    return time.perf_counter() - start


def main(folder: str, xlora: str, dtype: str, answer_tokens: str) -> None:
    # Before the library is loaded.
    os.environ["HF_HUB_OFFLINE"] = "1"
    import mistralrs

    configuration = json.loads((Path(folder) / "tokenizer_config.json").read_text())
    bos, answer = configuration["bos_token"], int(answer_tokens)
    precision = {"float32": mistralrs.ModelDType.F32, "bfloat16": mistralrs.ModelDType.BF16}[dtype]
    timings: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as cache:
        hub_cache(Path(xlora), Path(cache))
        # The first model that is loaded decides where the cache is.
        shared = {"arch": mistralrs.Architecture.Mistral, "dtype": precision, "hf_cache_path": cache}
        kinds = {
            "base": mistralrs.Which.Plain(model_id=folder, **shared),
            "X-LoRA": mistralrs.Which.XLora(
                xlora_model_id=REPOSITORY, order=str(Path(xlora) / "ordering.json"), model_id=folder, **shared
            ),
        }
        for kind, which in kinds.items():
            runner = mistralrs.Runner(which=which, max_seqs=1, prefix_cache_n=0)
            prompt = shortest_prompt(runner, bos)
            seconds(runner, prompt, 2)
            step = (seconds(runner, prompt, answer + 2) - seconds(runner, prompt, 2)) / answer
            timings.append({"kind": kind, "rows": 1, "prompt_tokens": 1, "decode_step_ms": step * 1e3})
            del runner
    print(json.dumps({"dtype": dtype, "versions": {"mistralrs": version("mistralrs")}, "timings": timings}))


if __name__ == "__main__":
    main(*sys.argv[1:])
