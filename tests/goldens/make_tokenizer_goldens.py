"""Writes `tokenizers/<kind>/`: tiny tokenizers of three kinds, and what transformers makes of texts and conversations.

Run it in an environment of its own, with transformers 5 and jinja2; the tests need only what it writes:

    python tests/goldens/make_tokenizer_goldens.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

OUT = Path(__file__).parent / "tokenizers"

CORPUS = [
    "The quick brown fox jumps over the lazy dog. Hello world, hello there; how are you today?",
    "def encode(text):\n    return [token for token in text.split(' ') if token]\n",
    "Grüße aus Köln, naïve café. Die Straße ist größer als das Haus. Où est la bibliothèque ?",
    "user assistant system tool weather in Paris and Rome is 20 degrees",
    "one two three four five six seven eight nine ten 1 2 3 10 100 1000",
] * 4

TEXTS = [
    "Hello world",
    " Hello  world ",
    "\n\ntokens\n in lines \t",
    "def f(x):\n    return x  # größer",
    "日本語 😀 é",
    "12345 100",
    "▁ Ġ",
    "a <think> b </think>c",
    "<s></s><|eot_id|>[INST] text [/INST] <|end|> \n <unk>",
    "",
]

CONVERSATIONS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "Hello there"}]},
    {
        "messages": [
            {"role": "system", "content": "How are you?"},
            {"role": "user", "content": "Hello world"},
            {"role": "assistant", "content": " The lazy dog.\n"},
            {"role": "user", "content": "Grüße 😀\n\n"},
        ]
    },
    {
        "messages": [{"role": "user", "content": "weather in <Paris> & Rome?"}],
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": {"é": ["<x>", "'"]}}}],
    },
    {"messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}], "no_prompt": True},
]

HEADERS = """{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if tools %}{{ tools | tojson(indent=2) }}{% endif %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""
MARKERS = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{% generation %}{{ '<|assistant|>\n' + message.content }}{% endgeneration %}<|end|>

{% else %}
{{ '<|system|> ' ~ message.content ~ eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
<|assistant|>
{% endif %}
{% endfor %}
{{ tools | tojson if tools else '' }}"""
INST = """{%- set ns = namespace(system='') -%}
{{- bos_token -}}
{%- for message in messages -%}
    {%- if message.role == 'system' -%}{%- set ns.system = message.content ~ '\n\n' -%}{%- continue -%}{%- endif -%}
    {%- if message.role == 'user' -%}
        {%- if tools and loop.last -%}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{%- endif -%}
        {{- '[INST] ' ~ (ns.system if loop.last else '') ~ message.content ~ '[/INST]' -}}
    {%- else -%}
        {{- ' ' + message.content + eos_token -}}
    {%- endif -%}
{%- endfor -%}"""


def special(token_id: int, text: str, **flags: bool) -> dict[str, Any]:
    """An entry of `added_tokens`."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": token_id, "content": text, **plain, **flags}


def train(pre_tokenizer: Any, alphabet: list[str]) -> tuple[list[str], list[list[str]]]:
    """Pieces and merges of a small BPE vocabulary."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=len(alphabet) + 260, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    model = json.loads(backend.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].__getitem__), [list(merge) for merge in model["merges"]]


def byte_level() -> tuple[dict[str, Any], dict[str, Any]]:
    """Llama 3's kind."""
    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    split = pre_tokenizers.Split(Regex(words), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pieces, merges = train(pre_tokenizers.Sequence([split, to_bytes]), pre_tokenizers.ByteLevel.alphabet())
    pipeline = json.loads(_backend(pre_tokenizers.Sequence([split, to_bytes])).to_str())
    names = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    added = [special(len(pieces) + i, name) for i, name in enumerate(names)]
    added.append(special(len(pieces) + 4, "<think>", special=False))
    post = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": names[0], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {names[0]: {"id": names[0], "ids": [len(pieces)], "tokens": [names[0]]}},
    }
    data = {
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": pipeline["pre_tokenizer"],
        "post_processor": post,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "ignore_merges": True,
            "vocab": {piece: i for i, piece in enumerate(pieces)},
            "merges": merges,
        },
    }
    config = {"bos_token": names[0], "eos_token": names[1], "chat_template": HEADERS}
    return data, config


def byte_fallback(*, metaspace: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Llama 2's and Mistral 7B's kind: with the older pipeline, or with the newer one."""
    spaces = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    pieces, merges = train(spaces, [])
    names = ["<unk>", "<s>", "</s>"] + (
        ["[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"] if metaspace else []
    )
    listed = [*names, *(f"<0x{b:02X}>" for b in range(256)), *pieces]
    added = [special(i, name) for i, name in enumerate(names)]
    if not metaspace:
        added.append(special(len(listed), "<|end|>", rstrip=True))
    prepend = {"type": "Prepend", "prepend": "▁"}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    first = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None if metaspace else {"type": "Sequence", "normalizers": [prepend, replace]},
        "pre_tokenizer": first if metaspace else None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, strip]},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {piece: i for i, piece in enumerate(listed)},
            "merges": merges,
        },
    }
    config = {
        "bos_token": "<s>",
        "eos_token": {"__type": "AddedToken", "content": "</s>", "lstrip": False, "rstrip": False, "normalized": False},
        "unk_token": "<unk>",
        "pad_token": None,
        "chat_template": INST if metaspace else MARKERS,
    }
    return data, config


def _backend(pre_tokenizer: Any) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizer
    return backend


def goldens(folder: Path) -> dict[str, Any]:
    """What transformers says."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = []
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        texts.append({"text": text, "ids": ids, "decoded": tokenizer.decode(ids, skip_special_tokens=True)})
    chats = []
    for conversation in CONVERSATIONS:
        messages, tools = conversation["messages"], conversation.get("tools")
        prompt = not conversation.get("no_prompt", False)
        text = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=prompt, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        chats.append({"messages": messages, "tools": tools, "prompt": prompt, "text": text, "ids": ids})
    return {"transformers": transformers.__version__, "texts": texts, "chats": chats}


def main() -> None:
    """Writes a folder for each kind."""
    kinds = {
        "byte_level": byte_level(),
        "byte_fallback": byte_fallback(metaspace=False),
        "metaspace": byte_fallback(metaspace=True),
    }
    for name, (data, config) in kinds.items():
        folder = OUT / name
        folder.mkdir(parents=True, exist_ok=True)
        config |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        for file, content in (("tokenizer.json", data), ("tokenizer_config.json", config)):
            (folder / file).write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
        (folder / "goldens.json").write_text(json.dumps(goldens(folder), ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
