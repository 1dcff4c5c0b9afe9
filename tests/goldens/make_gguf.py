"""Makes GGUF files with llama.cpp itself, and records beside them what llama.cpp computes from them.

Run it in an environment of its own, with llama-cpp-python, torch, transformers 5, gguf and sentencepiece. The converter
is not in the wheel of llama-cpp-python but in its source archive:

    pip download llama-cpp-python==0.3.36 --no-deps --no-binary :all: && tar xf llama_cpp_python-0.3.36.tar.gz
    CONVERTER=llama_cpp_python-0.3.36/vendor/llama.cpp/convert_hf_to_gguf.py
    python tests/goldens/make_gguf.py $CONVERTER                                  # the random models, to
    tests/goldens/gguf python tests/goldens/make_gguf.py $CONVERTER mistral_jax/hub/bundled/demo OUT      # any model,
    to a folder OUT

Of each model it writes `<model>.<TYPE>.gguf` in each type; `<model>.<TYPE>.npz` with, for each prompt `i`,

- `tokens_i` [T]: ids that llama.cpp's tokenizer gives for the prompt;
- `positions_i` [P], `llama_i` and `exact_i` float32 [P, V]: logits after these tokens, `llama` by llama.cpp on the very
  file, `exact` by llama.cpp on the same weights unpacked to float32 (by `gguf.quants`);
- `greedy_llama_i`, `greedy_exact_i` [64]: the likeliest tokens after the prompt, one by one, past any end token, and
  `margin_llama_i` float32 [64]: by how much each led before the second likeliest;

and `<model>.json` with the prompts, the texts of `greedy_exact_i`, and the token ids of more texts.

Why two references: llama.cpp rounds the activations to 8 bits for each product with quantised weights, and to bfloat16
  for one with
bfloat16 weights. The distance between the two is what that costs. The cache is float32 in both. Of a file with metadata
that llama.cpp ignores there is only `exact`, by transformers.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parent))
from gguf_models import ALL_TYPES, MODELS, write_model

OUT = Path(__file__).parent / "gguf"
FTYPES = {
    **{"Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_M": 12, "Q4_K_M": 15},
    **{"Q5_K_M": 17, "Q6_K": 18, "IQ4_XS": 30, "BF16": 32},
}
GREEDY_TOKENS = 64
RANDOM_PROMPTS = ("the cat sat on the mat and said: Hello, World! 1 2 3 über 日本 😀", "what is the")
MODEL_PROMPTS = (
    "[INST]How do I start the server and send a request with curl?[/INST]",
    "[INST]Explain what a KV cache is.[/INST]",
    "[INST]Tell me a story.[/INST]",
    "Once upon a time",
)
TEXTS = (
    "",
    " ",
    "Hello, World!",
    "  two  spaces   three ",
    "the quick brown fox jumps over the lazy dog",
    "\n\n\ttabs and\r\nlines\n",
    "def f(x):\n    return {'a': [x ** 2, 3.14]}  # comment",
    "über naïve Straße ﬁ é é",
    "日本語 中文 한국어 العربية עברית",
    "😀 👩‍👩‍👧 🇫🇷",
    "<s></s>[INST] text [/INST] <unk> <0x41>",
    "<|begin_of_text|><|eot_id|><|start_header_id|>",
    "▁ Ġ ▁▁a",
    "1234567890 12 345",
    "'s 'T don't WE'LL",
    "a\u200bb\u00a0c\u3000d",
)


def convert(converter: Path, model: Path, out: Path, *, pre_tokenizer: str | None) -> None:
    """`model` to a float32 GGUF file, by llama.cpp's converter."""
    patch = f"TextModel.get_vocab_base_pre = lambda *_: {pre_tokenizer!r}" if pre_tokenizer else ""
    code = (
        f"import sys; sys.path.insert(0, {str(converter.parent)!r})\n"
        f"from conversion.base import TextModel\n{patch}\n"
        f"import convert_hf_to_gguf; convert_hf_to_gguf.main()"
    )
    command = [sys.executable, "-c", code, str(model), "--outtype", "f32", "--outfile", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=converter.parent)
    if done.returncode:
        raise SystemExit(f"the converter failed:\n{done.stderr[-2000:]}")


def quantise(source: Path, out: Path, kind: str) -> None:
    """A float32 GGUF file to one of `FTYPES`, by llama.cpp."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = FTYPES[kind], 2
    if llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), params):
        raise SystemExit(f"llama.cpp could not quantise {source} to {kind}")


def rewrite(source: Path, out: Path, *, unpack: bool, extra: Sequence[tuple[str, int]] = ()) -> None:
    """A copy of a GGUF file, with its tensors unpacked to float32 if asked for, and with more metadata."""
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(out, architecture)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            inner = field.types[1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], inner)
    for key, value in extra:
        writer.add_uint32(key, value)
    for tensor in reader.tensors:
        if unpack:
            writer.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        else:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class LlamaCpp:
    """llama.cpp on one file, with a float32 cache."""

    def __init__(self, path: Path) -> None:
        float32 = int(gguf.GGMLQuantizationType.F32)
        self.model = llama_cpp.Llama(
            str(path),
            n_ctx=512,
            n_batch=512,
            n_ubatch=512,
            n_threads=2,
            n_threads_batch=2,
            logits_all=True,
            type_k=float32,
            type_v=float32,
            flash_attn=False,
            verbose=False,
        )

    def tokens(self, text: str, *, special: bool) -> list[int]:
        """Ids of a text, after BOS where the model wants one; `special`: the names of control tokens stand for them."""
        return self.model.tokenize(text.encode(), add_bos=True, special=special)

    def text(self, tokens: list[int]) -> str:
        """Text of an answer's ids; control tokens have none."""
        return self.model.detokenize(tokens).decode(errors="replace")

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Float32 [T, V], from one batch."""
        self.model.reset()
        self.model.eval(list(tokens))
        return np.array(self.model.scores[: len(tokens)], np.float32)

    def greedy(self, tokens: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """The likeliest tokens after `tokens`, and their leads before the second likeliest."""
        last = self.logits(tokens)[-1]
        found: list[int] = []
        leads: list[float] = []
        while len(found) < GREEDY_TOKENS:
            second, first = np.sort(last)[-2:]
            leads.append(first - second)
            found.append(int(last.argmax()))
            self.model.eval(found[-1:])
            last = self.model.scores[self.model.n_tokens - 1]
        return np.array(found, np.int32), np.array(leads, np.float32)


class Transformers:
    """transformers in float32 on a folder: the reference where llama.cpp ignores what the file says."""

    def __init__(self, folder: Path) -> None:
        config = transformers.AutoConfig.from_pretrained(folder)
        self.model = getattr(transformers, config.architectures[0]).from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )

    @torch.no_grad()
    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        return self.model(torch.tensor([list(tokens)]), use_cache=False).logits[0].numpy()

    def greedy(self, tokens: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        text, leads = list(tokens), []
        for _ in range(GREEDY_TOKENS):
            last = self.logits(text)[-1]
            second, first = np.sort(last)[-2:]
            leads.append(first - second)
            text.append(int(last.argmax()))
        return np.array(text[len(tokens) :], np.int32), np.array(leads, np.float32)


def record(
    prompts: Sequence[list[int]], *, llama: LlamaCpp | None, exact: LlamaCpp | Transformers, positions: int | None
) -> dict[str, np.ndarray]:
    """The arrays of one file, for as many positions of each prompt (None: all)."""
    arrays: dict[str, np.ndarray] = {}
    for i, tokens in enumerate(prompts):
        chosen = np.linspace(0, len(tokens) - 1, min(positions or len(tokens), len(tokens))).round().astype(np.int32)
        arrays[f"tokens_{i}"], arrays[f"positions_{i}"] = np.array(tokens, np.int32), chosen
        arrays[f"exact_{i}"] = exact.logits(tokens)[chosen]
        arrays[f"greedy_exact_{i}"], _ = exact.greedy(tokens)
        if llama is not None:
            arrays[f"llama_{i}"] = llama.logits(tokens)[chosen]
            arrays[f"greedy_llama_{i}"], arrays[f"margin_llama_{i}"] = llama.greedy(tokens)
    return arrays


def json_text(described: dict[str, Any]) -> str:
    """JSON with an item of a list on a line."""
    text = json.dumps(described, indent=1, ensure_ascii=False)
    return re.sub(r"\n {4,}|(?<=\d)\n {3}(?=\])", " ", text) + "\n"


def make(
    converter: Path,
    model: Path,
    out: Path,
    name: str,
    *,
    types: Sequence[str],
    prompts: Sequence[str],
    positions: int | None = None,
    pre_tokenizer: str | None = None,
    extra: Sequence[tuple[str, int]] = (),
) -> None:
    """Files and references of one model in all wanted types."""
    out.mkdir(parents=True, exist_ok=True)
    greedy_texts: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        plain, unpacked, draft = (Path(scratch) / f"{part}.gguf" for part in ("plain", "unpacked", "draft"))
        convert(converter, model, plain, pre_tokenizer=pre_tokenizer)
        for kind in types:
            path = out / f"{name}.{kind}.gguf"
            if kind == "F32":
                rewrite(plain, draft, unpack=False)
            else:
                quantise(plain, draft, kind)
            if extra:
                rewrite(draft, path, unpack=False, extra=extra)
            else:
                path.write_bytes(draft.read_bytes())
            rewrite(path, unpacked, unpack=True)
            llama = LlamaCpp(path)
            ids = [llama.tokens(prompt, special=True) for prompt in prompts]
            if extra:
                arrays = record(ids, llama=None, exact=Transformers(model), positions=positions)
            else:
                arrays = record(ids, llama=llama, exact=LlamaCpp(unpacked), positions=positions)
            np.savez_compressed(path.with_suffix(".npz"), **arrays)
            greedy_texts[kind] = [llama.text(arrays[f"greedy_exact_{i}"].tolist()) for i in range(len(prompts))]
            print(f"{path.name}: {path.stat().st_size:,} bytes", flush=True)
        float32 = LlamaCpp(plain)
        described: dict[str, Any] = {
            "prompts": list(prompts),
            "greedy_texts": greedy_texts,
            "tokens": [{"text": text, "ids": float32.tokens(text, special=False)} for text in TEXTS],
            "versions": {"llama_cpp_python": llama_cpp.__version__, "transformers": transformers.__version__},
        }
        if not extra:
            reference = Transformers(model)
            ours, theirs = (side.logits(ids[0]) for side in (float32, reference))
            described["llama_cpp_to_transformers_float32"] = float(np.abs(ours - theirs).max() / theirs.std())
    (out / f"{name}.json").write_text(json_text(described))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("converter", type=Path, help="convert_hf_to_gguf.py of llama.cpp")
    parser.add_argument("model", type=Path, nargs="?", help="a Hugging Face folder; without it, the random models")
    parser.add_argument("out", type=Path, nargs="?", default=OUT)
    parser.add_argument("--types", default=",".join(ALL_TYPES), help="for a model of your own")
    parser.add_argument("--only", help="one of the random models")
    args = parser.parse_args()
    torch.set_num_threads(1)
    converter = args.converter.resolve()
    if args.model is not None:
        types = args.types.split(",")
        make(converter, args.model.resolve(), args.out, args.model.name, types=types, prompts=MODEL_PROMPTS)
        return
    for seed, (name, random) in enumerate(MODELS.items(), start=1):
        if args.only not in (None, name):
            continue
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / f"random-{name}"
            write_model(folder, random, seed=seed)
            make(
                converter,
                folder,
                args.out,
                name,
                types=random.types,
                prompts=RANDOM_PROMPTS,
                positions=3,
                pre_tokenizer=random.pre_tokenizer,
                extra=random.extra_metadata,
            )


if __name__ == "__main__":
    main()
