"""Which token type loads right for the user-defined pieces of a sentencepiece model: 4, or the 1 of llama.cpp's
converter.

`[REFERENCE_DOC_7]` of Mistral's models v3 and v7 is such a piece: sentencepiece takes it out of a text before it merges
anything.
- Our reader gives sentencepiece's ids for both: 4 says so, and 1 is recognised by the place and the score of such
  pieces.
- llama.cpp takes tokens of type 4 out of a text, too. Of type 1 they are merged like words, and since no two tokens
  make up `[REFERENCE_DOC_7]`, that token never occurs. After a token of type 4, llama.cpp puts a space before the text,
  which sentencepiece does not; that is so for every token that is added to a vocabulary, and does not depend on the
  file.

So 4 is written.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor

from conversion.gguf.writing.from_tokenizer import tokenizer_to_gguf
from mistral_jax.tokenizer.gguf import tokenizer_from_gguf
from tests.mistral_jax.tokenizer.gguf_vocabularies import LLAMA, NORMAL, USER_DEFINED, Metadata, converted_sentencepiece
from tests.mistral_jax.tokenizer.tokenizer_corpus import SENTENCEPIECE

VERSIONS = {"v3": 20, "v7": 22}
"""With the number of user-defined pieces."""
versions = pytest.mark.parametrize("version", VERSIONS)


@cache
def reference(version: str) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_file=str(SENTENCEPIECE[version]))


def written(version: str, folder: Path) -> Metadata:
    """What we write of a model of Mistral's."""
    path = SENTENCEPIECE[version]
    (folder / f"tokenizer.model.{version}").write_bytes(path.read_bytes())
    return {
        "general.architecture": "llama",
        **tokenizer_to_gguf(folder, vocab_size=reference(version).vocab_size()),
    }


def texts(pieces: Sequence[str]) -> list[str]:
    chance = random.Random(3)
    parts = [*pieces, *pieces, "a", "b ", "word", " the", "\n", " ", "[REF", "_7]"]
    return ["".join(chance.choices(parts, k=6)) for _ in range(60)]


def user_defined(metadata: Metadata) -> list[int]:
    return [i for i, kind in enumerate(metadata[LLAMA + "token_type"]) if kind == USER_DEFINED]


@versions
def test_our_reader_gives_the_ids_of_sentencepiece_for_both_types(version: str, tmp_path: Path) -> None:
    ours = written(version, tmp_path)
    special = user_defined(ours)
    assert len(special) == VERSIONS[version]
    assert {converted_sentencepiece(version)[LLAMA + "token_type"][i] for i in special} == {NORMAL}
    pieces = [ours[LLAMA + "tokens"][i] for i in special]
    for metadata in (ours, converted_sentencepiece(version)):
        tokenizer = tokenizer_from_gguf(metadata)
        for text in texts(pieces):
            assert tokenizer.encode(text) == reference(version).encode(text), text


@versions
def test_llama_cpp_finds_the_tokens_only_if_they_have_type_4(version: str, tmp_path: Path) -> None:
    ours = written(version, tmp_path)
    special = set(user_defined(ours))
    pieces = [ours[LLAMA + "tokens"][i] for i in special]

    def found(ids: Sequence[int]) -> list[int]:
        return [i for i in ids if i in special]

    expected = {text: found(reference(version).encode(text)) for text in texts(pieces)}
    assert sum(map(len, expected.values())) > 100
    for text, ids in expected.items():
        assert found(encode_as_llama_cpp(ours, text)) == ids, text
        assert found(encode_as_llama_cpp(converted_sentencepiece(version), text)) == [], text


@versions
def test_the_model_of_llama_cpp_is_right_where_no_such_piece_occurs(version: str) -> None:
    for text in ("Hello", "  two spaces", "The quick brown fox.\n\n    x = 1", "Grüße 日本語 🙂", "[REF ERENCE]"):
        assert encode_as_llama_cpp(converted_sentencepiece(version), text) == reference(version).encode(text)


def encode_as_llama_cpp(metadata: Metadata, text: str) -> list[int]:
    """What llama.cpp makes of a text in which control tokens are no tokens: user-defined ones are taken out first, the
    longest before the others, then each stretch between them gets a space in front and its best pair is merged again
    and again."""
    tokens: list[str] = metadata[LLAMA + "tokens"]
    id_of = {token: i for i, token in enumerate(tokens)}
    stretches: list[str | int] = [text]
    for i in sorted(user_defined(metadata), key=lambda i: -len(tokens[i].encode())):
        cut: list[str | int] = []
        for stretch in stretches:
            parts = stretch.split(tokens[i]) if isinstance(stretch, str) else [stretch]
            for number, part in enumerate(parts):
                cut += ([i] if number else []) + ([part] if part != "" else [])
        stretches = cut
    ids: list[int] = []
    after_token = True
    for stretch in stretches:
        if isinstance(stretch, int):
            ids.append(stretch)
        else:
            symbols = _merged((" " if after_token else "") + stretch, id_of, metadata[LLAMA + "scores"])
            for symbol in symbols:
                ids += [id_of[symbol]] if symbol in id_of else [id_of[f"<0x{byte:02X}>"] for byte in symbol.encode()]
        after_token = isinstance(stretch, int)
    return ids


def _merged(text: str, id_of: dict[str, int], scores: Sequence[float]) -> list[str]:
    symbols = list(text.replace(" ", "▁"))
    before, after = list(range(-1, len(symbols) - 1)), [*range(1, len(symbols)), -1]
    queue: list[tuple[float, int, int, str]] = []

    def consider(left: int, right: int) -> None:
        if left >= 0 and right >= 0 and (pair := symbols[left] + symbols[right]) in id_of:
            heapq.heappush(queue, (-scores[id_of[pair]], left, right, pair))

    for i in range(1, len(symbols)):
        consider(i - 1, i)
    while queue:
        _, left, right, pair = heapq.heappop(queue)
        if not symbols[left] or not symbols[right] or symbols[left] + symbols[right] != pair:
            continue
        symbols[left], symbols[right] = pair, ""
        after[left] = after[right]
        if after[right] >= 0:
            before[after[right]] = left
        consider(before[left], left)
        consider(left, after[left])
    return [symbol for symbol in symbols if symbol]
