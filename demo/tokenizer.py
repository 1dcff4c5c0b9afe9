"""Trains the tokenizer of the demo model: sentencepiece BPE of 2,048 pieces with byte fallback.

    python -m demo.tokenizer          # writes tokenizer.model, tokenizer.json and tokenizer_config.json

There is no dummy prefix and no normalisation: a text is encoded exactly as it is written, wherever it stands, so that
every implementation gives the same ids for the same prompt, and no space needs to be taken off the answers again.
"""

from __future__ import annotations

import argparse
import io
import json
import string
from collections.abc import Iterator
from pathlib import Path

import sentencepiece as spm
import tokenizers

from demo.corpus import Conversations

VOCAB_SIZE = 2048
SEED = 7
MODEL_FOLDER = Path(__file__).parent.parent / "mistral_jax" / "hub" / "bundled" / "demo"

# Mistral's format: system text in front of the user's first message, [INST] and [/INST] round each message of a user.
# Tools, which it does not have, come between them, as one line each; calls and their results are written as by Hermes.
CHAT_TEMPLATE = """\
{%- if messages[0]['role'] == 'system' -%}
    {%- set system = messages[0]['content'] + '\\n\\n' -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set system = '' -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- macro signature(function) -%}
    {%- set parameters = function['parameters'] -%}
    {{- function['name'] + '(' -}}
    {%- for name, schema in (parameters['properties'] or {}).items() -%}
        {{- (', ' if not loop.first else '') + name + ('' if name in (parameters['required'] or []) else '?') -}}
        {{- ': ' + schema['type'] if schema is mapping and schema['type'] is string else '' -}}
    {%- endfor -%}
    {{- ')' + (': ' + function['description'] if function['description'] else '') + '\\n' -}}
{%- endmacro -%}
{{- bos_token -}}
{%- set expected = namespace(roles=['user']) -%}
{%- for message in turns -%}
    {%- if message['role'] not in expected.roles -%}
        {{- raise_exception('After an optional system message, the roles user and assistant must alternate. \
Results of tools follow their calls.') -}}
    {%- endif -%}
    {%- if message['role'] == 'user' -%}
        {{- '[INST]' + (system if loop.first else '') -}}
        {%- if loop.first and tools -%}
            {{- 'Tools:\\n' -}}
            {%- for tool in tools -%}
                {{- signature(tool['function']) -}}
            {%- endfor -%}
            {{- '\\n' -}}
        {%- endif -%}
        {{- message['content'] + '[/INST]' -}}
        {%- set expected.roles = ['assistant'] -%}
    {%- elif message['role'] == 'tool' -%}
        {{- '\\n' if loop.previtem['role'] == 'tool' else '[INST]' -}}
        {{- '<tool_response>\\n' + message['content'] + '\\n</tool_response>' -}}
        {{- '[/INST]' if loop.last or loop.nextitem['role'] != 'tool' else '' -}}
        {%- set expected.roles = ['tool', 'assistant'] -%}
    {%- elif message['tool_calls'] -%}
        {{- message['content'] + '\\n' if message['content'] else '' -}}
        {%- for call in message['tool_calls'] -%}
            {{- '<tool_call>\\n{"name": ' + call['function']['name'] | tojson -}}
            {{- ', "arguments": ' + call['function']['arguments'] | tojson + '}\\n</tool_call>' -}}
            {{- '\\n' if not loop.last else '' -}}
        {%- endfor -%}
        {{- eos_token -}}
        {%- set expected.roles = ['tool'] -%}
    {%- else -%}
        {{- message['content'] + eos_token -}}
        {%- set expected.roles = ['user'] -%}
    {%- endif -%}
{%- endfor -%}
"""


def corpus_text(conversations: int) -> Iterator[str]:
    """What users and model say in the given number of conversations."""
    source = Conversations(SEED)
    for _ in range(conversations):
        chat = source.chat()
        if chat.system:
            yield chat.system
        for turn in chat.turns:
            yield from turn


def train(folder: Path, conversations: int) -> None:
    """Write `tokenizer.model`, with `tokenizer.json` and `tokenizer_config.json` that say the same."""
    folder.mkdir(parents=True, exist_ok=True)
    serialised = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=corpus_text(conversations),
        # Not `model_prefix`: the file would keep the path.
        model_writer=serialised,
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        character_coverage=0.99995,
        required_chars=string.digits + string.ascii_letters + string.punctuation,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        control_symbols=["[INST]", "[/INST]"],
        num_threads=1,
        minloglevel=1,
    )
    (folder / "tokenizer.model").write_bytes(serialised.getvalue())
    model = spm.SentencePieceProcessor(model_proto=serialised.getvalue())
    _as_tokenizer_json(model).save(str(folder / "tokenizer.json"), pretty=False)
    special = [model.id_to_piece(i) for i in range(5)]
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {str(i): _added_token(piece) for i, piece in enumerate(special)},
        "bos_token": "<s>",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "legacy": False,
        "model_max_length": 2048,
        "pad_token": None,
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": "<unk>",
    }
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def _added_token(piece: str) -> dict[str, object]:
    return {
        "content": piece,
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": True,
    }


def _as_tokenizer_json(model: spm.SentencePieceProcessor) -> tokenizers.Tokenizer:
    """The same tokenizer for libraries that read `tokenizer.json`.

    Sentencepiece keeps no merges: a pair may merge if the result is a piece; the piece with the smaller id goes first.
    """
    pieces = [model.id_to_piece(i) for i in range(model.vocab_size())]
    ids = {piece: i for i, piece in enumerate(pieces)}
    merges: list[tuple[str, str]] = []
    for i, piece in enumerate(pieces):
        if model.is_byte(i) or model.is_control(i) or model.is_unknown(i):
            continue
        pairs = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        pairs = [pair for pair in pairs if pair[0] in ids and pair[1] in ids]
        merges += sorted(pairs, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab=ids, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    tokenizer.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
        ]
    )
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", ids["<s>"])]
    )
    special = [tokenizers.AddedToken(pieces[i], special=True, normalized=False) for i in range(5)]
    tokenizer.add_special_tokens(special)
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=MODEL_FOLDER)
    parser.add_argument("--conversations", type=int, default=60_000, help="size of the corpus to learn the pieces from")
    args = parser.parse_args()
    train(args.folder, args.conversations)
    print(f"wrote tokenizer.model, tokenizer.json and tokenizer_config.json to {args.folder}")


if __name__ == "__main__":
    main()
