"""The vocabulary in a GGUF file's metadata (`tokenizer.ggml.*`), read and checked.

Keys and defaults: docs/gguf.md of ggml, and llama-vocab.cpp of llama.cpp for what that does not specify.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from conversion.tokenizer.byte_level import from_letters
from conversion.tokenizer.files import TokenizerError, check_lengths
from conversion.tokenizer.sentencepiece_model import SPACE, PieceType
from conversion.tokenizer.special_tokens import is_turn_marker

_log = logging.getLogger(__name__)

PREFIX = "tokenizer.ggml."
USE_OVERRIDE = "Give the tokenizer of the original model instead: -t/--tok-model-id with a folder or a model id."

# Values of `tokenizer.ggml.model`, and our names of those that are not implemented.
_MODELS = ("llama", "gpt2")
_OTHER_MODELS = {
    "bert": "WordPiece, of BERT",
    "t5": "sentencepiece unigram, of T5",
    "rwkv": "RWKV's own",
    "plamo2": "PLaMo's own",
    "gemma4": "Gemma 4's own",
    "no_vocab": "the file has no vocabulary",
    "none": "the file has no vocabulary",
}
# Ids by the names of tokenizer_config.json. Without the first four a model cannot be served as intended.
_IDS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "eot_token": "eot_token_id",
    "eom_token": "eom_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
_NEEDED = ("bos_token", "eos_token", "eot_token", "eom_token")
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_FILLER = re.compile(r"\[PAD\d+\]|<dummy\d+>|\[EMPTY_\d+\]|<unused[ _]?\d+>")


@dataclass(frozen=True, kw_only=True)
class GGUFVocabulary:
    """A vocabulary as the file has it. All sequences have one entry for each id."""

    model: str
    """ "llama" (sentencepiece BPE) or "gpt2" (byte-level BPE)."""
    pre: str | None
    """`tokenizer.ggml.pre`: the word split of byte-level BPE."""
    tokens: list[str]
    """All different and not empty: invalid entries are replaced and UNUSED."""
    types: list[int]
    """A `PieceType` for each token."""
    scores: list[float] | None
    merges: list[tuple[str, str]] | None
    ids: Mapping[str, int]
    """Control tokens that the file names, by "bos_token", "eos_token", "eot_token", "eom_token", "unk_token",
    "pad_token"."""
    add_bos: bool | None
    """None where the file does not say; likewise below."""
    add_eos: bool | None
    add_space_prefix: bool | None

    def is_filler(self, token_id: int) -> bool:
        """Whether an id only pads the model's matrix and stands for nothing."""
        return self.types[token_id] == PieceType.UNUSED or _FILLER.fullmatch(self.tokens[token_id]) is not None

    def is_special(self, token_id: int) -> bool:
        """Whether an id is a control token, by its type or because it looks like a `<|turn marker|>`."""
        kind = self.types[token_id]
        if kind == PieceType.USER_DEFINED:
            return is_turn_marker(self.tokens[token_id])
        return kind in (PieceType.CONTROL, PieceType.UNKNOWN)

    def spelled(self, token_id: int) -> bytes:
        """The bytes of an id: the text that it adds to a completion, or its own name if it is special."""
        text, kind = self.tokens[token_id], self.types[token_id]
        if kind == PieceType.BYTE and (byte := _BYTE.fullmatch(text)):
            return bytes([int(byte[1], 16)])
        if self.model == "gpt2":
            return from_letters(text) if kind in (PieceType.NORMAL, PieceType.BYTE) else text.encode()
        return text.encode() if self.is_special(token_id) else text.replace(SPACE, " ").encode()


def read_vocabulary(metadata: Mapping[str, Any]) -> GGUFVocabulary:
    """Reads `tokenizer.ggml.*` of a file's metadata.

    Raises:
      TokenizerError: there is none, it is of a kind that is not implemented, or its parts contradict each other.
    """
    model = _typed(metadata, "model", str)
    if model is None:
        raise TokenizerError(f"The GGUF file has no tokenizer ({PREFIX}model is absent). {USE_OVERRIDE}")
    if model not in _MODELS:
        kind = _OTHER_MODELS.get(model, "a kind that we do not know")
        raise TokenizerError(
            f"The GGUF file's tokenizer is {model!r} ({kind}); implemented are 'llama' (sentencepiece BPE) and 'gpt2' "
            f"(byte-level BPE). {USE_OVERRIDE}"
        )
    tokens = _texts(metadata, "tokens")
    if not tokens:
        raise TokenizerError(f"The GGUF file lists no tokens ({PREFIX}tokens). {USE_OVERRIDE}")
    check_lengths(tokens, "The GGUF file")
    ids = _ids(metadata, len(tokens))
    types = _types(metadata, tokens, ids)
    for name, i in list(ids.items()):
        if types[i] in (PieceType.NORMAL, PieceType.USER_DEFINED):
            if name in _NEEDED:
                types[i] = PieceType.CONTROL
            else:
                del ids[name]  # many files name token 0 for padding, even if it is "!"
    scores = _scores(metadata, len(tokens))
    if model == "llama":
        _restore_user_defined(types, scores)
    tokens, types = _unique(tokens, types, ids.values(), spaces=model == "llama")
    return GGUFVocabulary(
        model=model,
        pre=_typed(metadata, "pre", str),
        tokens=tokens,
        types=types,
        scores=scores,
        merges=_merges(metadata),
        ids=ids,
        add_bos=_typed(metadata, "add_bos_token", bool),
        add_eos=_typed(metadata, "add_eos_token", bool),
        add_space_prefix=_typed(metadata, "add_space_prefix", bool),
    )


def _typed[T](metadata: Mapping[str, Any], key: str, kind: type[T]) -> T | None:
    value = metadata.get(PREFIX + key)
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or type(value) is kind:
        return value
    raise TokenizerError(f"{PREFIX}{key} in the GGUF file is {value!r}; expected a {kind.__name__}.")


def _texts(metadata: Mapping[str, Any], key: str) -> list[str]:
    value = metadata.get(PREFIX + key, [])
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TokenizerError(f"{PREFIX}{key} in the GGUF file is no list of texts.")
    texts = list(cast("Sequence[Any]", value))
    try:
        # One pass over all of them finds values that are not text, or not UTF-8.
        "".join(texts).encode()
    except (TypeError, UnicodeEncodeError) as error:
        raise TokenizerError(
            f"{PREFIX}{key} in the GGUF file holds something that is no UTF-8 text: {error}."
        ) from error
    return cast("list[str]", texts)


def _numbers(metadata: Mapping[str, Any], key: str, count: int) -> np.ndarray[Any, np.dtype[Any]] | None:
    value = metadata.get(PREFIX + key)
    if value is None:
        return None
    numbers = np.asarray(value)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iuf":
        raise TokenizerError(f"{PREFIX}{key} in the GGUF file is no list of numbers.")
    if len(numbers) != count:
        raise TokenizerError(f"The GGUF file lists {count} tokens but {len(numbers)} {key}. {USE_OVERRIDE}")
    return numbers


def _scores(metadata: Mapping[str, Any], count: int) -> list[float] | None:
    scores = _numbers(metadata, "scores", count)
    if scores is None:
        return None
    if not np.isfinite(scores).all():
        raise TokenizerError(f"A score in {PREFIX}scores of the GGUF file is no finite number. {USE_OVERRIDE}")
    return scores.astype(np.float64).tolist()


def _ids(metadata: Mapping[str, Any], count: int) -> dict[str, int]:
    ids: dict[str, int] = {}
    for name, key in _IDS.items():
        token_id = _typed(metadata, key, int)
        if token_id is None:
            continue
        if 0 <= token_id < count:
            ids[name] = token_id
        elif name in _NEEDED:
            raise TokenizerError(
                f"{PREFIX}{key} is {token_id}, outside the GGUF file's vocabulary of {count} tokens. {USE_OVERRIDE}"
            )
        else:
            _log.warning("%s%s is %d, outside the vocabulary of %d tokens: ignored", PREFIX, key, token_id, count)
    return ids


def _types(metadata: Mapping[str, Any], tokens: list[str], ids: Mapping[str, int]) -> list[int]:
    """The file's token types; where it has none, types inferred from texts and named ids."""
    numbers = _numbers(metadata, "token_type", len(tokens))
    if numbers is not None:
        if ((numbers < 0) | (numbers > 6)).any():
            raise TokenizerError(f"{PREFIX}token_type in the GGUF file has values beyond 0 to 6. {USE_OVERRIDE}")
        # 0 is "undefined".
        return np.where(numbers == 0, PieceType.NORMAL, numbers).tolist()
    control = {ids[name] for name in ids if name not in ("unk_token", "pad_token")}
    types: list[int] = []
    for i, text in enumerate(tokens):
        if _BYTE.fullmatch(text):
            types.append(PieceType.BYTE)
        elif i == ids.get("unk_token") or text == "<unk>":
            types.append(PieceType.UNKNOWN)
        elif i in control or text in ("<s>", "</s>", "<pad>") or is_turn_marker(text):
            types.append(PieceType.CONTROL)
        else:
            types.append(PieceType.UNUSED if _FILLER.fullmatch(text) else PieceType.NORMAL)
    return types


def _restore_user_defined(types: list[int], scores: list[float] | None) -> None:
    """Finds the user-defined pieces of a sentencepiece model, which llama.cpp's converter writes as normal ones.

    Sentencepiece's trainer puts control and user-defined pieces first, all with a score of 0, then the 256 bytes, then
    the learned pieces.
    """
    if scores is None or PieceType.BYTE not in types:
        return
    first = types.index(PieceType.BYTE)
    meta = range(first)
    if types[first : first + 256] == [PieceType.BYTE] * 256 and all(
        scores[i] == 0 for i in meta if types[i] == PieceType.NORMAL
    ):
        for i in meta:
            if types[i] == PieceType.NORMAL:
                types[i] = PieceType.USER_DEFINED


def _unique(tokens: list[str], types: list[int], ids: Iterable[int], *, spaces: bool) -> tuple[list[str], list[int]]:
    """The tokens, made distinct and not empty.

    Of several tokens with the same text the one with a special id stays, else the first; a tokenizer can never produce
    the others, so they become UNUSED under names of their own.
    """
    # A sentencepiece model has one spelling of spaces; files have two.
    keys = [text.replace(" ", SPACE) for text in tokens] if spaces else tokens
    if all(tokens) and len(set(keys)) == len(keys):
        return tokens, types
    tokens, types = list(tokens), list(types)
    seen: set[str] = {""}
    doubled = 0
    for i in dict.fromkeys([*ids, *range(len(tokens))]):
        if keys[i] in seen:
            doubled += bool(keys[i])
            tokens[i] = f"<unused {i}>"
            types[i] = PieceType.UNUSED
        seen.add(keys[i])
    if doubled:
        _log.warning("the GGUF file lists %d tokens twice; the first of each is used", doubled)
    return tokens, types


def _merges(metadata: Mapping[str, Any]) -> list[tuple[str, str]] | None:
    if PREFIX + "merges" not in metadata:
        return None
    merges: list[tuple[str, str]] = []
    for text in _texts(metadata, "merges"):
        # The separating space is never the first character: a piece may itself be a space.
        left, _, right = text[1:].partition(" ")
        if not right:
            raise TokenizerError(f"{PREFIX}merges in the GGUF file has {text!r}, which is no pair. {USE_OVERRIDE}")
        merges.append((text[0] + left, right))
    return merges
