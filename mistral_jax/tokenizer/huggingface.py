"""Tokenizers in Hugging Face's tokenizer.json.

Two kinds: byte-level BPE (Llama 3, Mistral Nemo) and BPE with byte fallback (Llama 2, Mistral 7B).
"""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer

from conversion.files.json_fields import shown
from conversion.files.regular_file import plain, reason_of
from conversion.tokenizer.byte_level import from_letters
from conversion.tokenizer.files import TokenizerError, check_ids, known_form, read_json_object, token_id
from conversion.tokenizer.special_tokens import AddedToken, SpecialTokens, read_special_tokens
from conversion.tokenizer.word_splits import TEKKEN, is_tekken
from mistral_jax.tokenizer.byte_table import ByteTableTokenizer
from mistral_jax.tokenizer.cuts import cuts_of_json
from mistral_jax.tokenizer.pipeline_bounds import check_pipeline

type Json = dict[str, Any]

_SPACE = "▁"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class HuggingFaceTokenizer(ByteTableTokenizer):
    """A tokenizer.json, run by the `tokenizers` library.

    Its added tokens are control tokens where a side file flags them as special (or they are `<|turn markers|>`); the
    others, such as `<think>`, are text that is matched as one token.
    """

    def __init__(self, data: Json, *, special: SpecialTokens | None = None, source: str = "tokenizer.json") -> None:
        """Builds the tokenizer from the parsed file.

        Args:
          data: The content of tokenizer.json; not changed.
          special: What the side files say.
          source: The file's name in error messages.

        Raises:
          TokenizerError: the file is broken, of a kind that we do not implement, or disagrees with its side files.
        """
        with known_form(source):
            self._build(data, special or SpecialTokens(), source)

    def _build(self, data: Json, special: SpecialTokens, source: str) -> None:
        model = cast("Json", data["model"])
        if model.get("type") not in ("BPE", None):
            raise TokenizerError(f"{source} holds a {plain(str(model['type']))} vocabulary; only BPE is implemented.")
        listed: Any = model.get("vocab")
        if not isinstance(listed, dict):
            raise TokenizerError(f"{source} is no tokenizer.json with a BPE vocabulary.")
        vocab = {piece: token_id(i, piece) for piece, i in cast("Json", listed).items()}
        byte_level = _mentions(data, "ByteLevel")
        if not byte_level and not _mentions(data, _SPACE):
            raise TokenizerError(
                f"{source} is neither byte-level BPE nor BPE with {_SPACE} for spaces, the two kinds we know."
            )

        check_pipeline(data, source)
        data = {**data, "truncation": None, "padding": None}  # settings left over from a training run
        data["added_tokens"] = added = _merge_added(data.get("added_tokens") or [], special, vocab)
        check_ids(max([*vocab.values(), *(token["id"] for token in added)], default=0), len(vocab) + len(added), source)
        if byte_level and _is_tekken(vocab, added):
            data["pre_tokenizer"] = TEKKEN.pre_tokenizer()
        without_prefix = _without_prefix(data)
        self._at_start = _backend(data, source)
        self._inside = self._at_start if without_prefix == data else _backend(without_prefix, source)
        # Metaspace's scheme "first" puts the dummy prefix before a prompt but not after a control token.
        self._prefix_after_control = not _metaspaces(data, "first")

        ids: dict[str, int] = self._at_start.get_vocab(with_added_tokens=True)
        pieces = [f"<unused {i}>" for i in range(max(ids.values(), default=-1) + 1)]
        table = [b""] * len(pieces)
        for piece, i in ids.items():
            pieces[i] = piece
            table[i] = from_letters(piece) if byte_level else _spell(piece)
        control: dict[str, int] = {}
        self._strips: dict[int, tuple[bool, bool]] = {}
        for token in added:
            own, text = int(token["id"]), str(token["content"])
            if ids.get(text) != own:
                raise TokenizerError(
                    f"The added token {shown(text)} should have id {own}, but in {source} its id is {ids.get(text)}. "
                    "The tokenizer's files belong to different models: fetch them from the same repository."
                )
            table[own] = b"" if token["special"] else text.encode()
            if token["special"]:
                control[text] = own
                self._strips[own] = bool(token.get("lstrip")), bool(token.get("rstrip"))
        unk = model.get("unk_token")
        for text in {*special.others, *([unk] if unk else [])} & ids.keys():
            control[text] = ids[text]
            table[ids[text]] = b""

        bos_id = special.name_id("bos_token", ids, _first_of(control, "<s>", "<|begin_of_text|>"))
        super().__init__(
            pieces=pieces,
            table=table,
            control_tokens=control,
            bos_id=bos_id,
            eos_id=special.name_id("eos_token", ids, _first_of(control, "</s>", "<|end_of_text|>", "<|endoftext|>")),
            unk_id=special.name_id("unk_token", ids, ids.get(unk) if unk else None),
            pad_id=special.name_id("pad_token", ids, _first_of(control, "<pad>")),
            add_bos=self._starts_with(bos_id) if special.add_bos is None else special.add_bos,
            strips_leading_space=not byte_level and _decoder_strips(data.get("decoder")),
            cuts=cuts_of_json(data, byte_level=byte_level, has_prefix=self._inside is not self._at_start),
        )

    @classmethod
    def from_file(cls, path: str | Path, *, special: SpecialTokens | None = None) -> HuggingFaceTokenizer:
        """Reads tokenizer.json, and the side files next to it unless `special` is given.

        Raises:
          TokenizerError: a file is absent, broken, or of a kind that we do not implement.
        """
        path = Path(path)
        special = read_special_tokens(path.parent) if special is None else special
        return cls(read_json_object(path, vocabulary=True), special=special, source=str(path))

    def starts_after_control(self, text: str) -> bool:
        """The dummy prefix follows the file's own pipeline."""
        del text
        return self._prefix_after_control

    def control_strips(self, token_id: int) -> tuple[bool, bool]:
        """Whether a control token consumes the whitespace (before, after) it, by its `lstrip` and `rstrip`."""
        return self._strips.get(token_id, (False, False))

    def _encode_text(self, text: str, at_start: bool) -> list[int]:
        backend = self._at_start if at_start else self._inside
        return backend.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def _starts_with(self, bos_id: int | None) -> bool:
        """Whether the file's post-processor puts BOS before a text."""
        ids: list[int] = self._at_start.encode("a", add_special_tokens=True).ids
        return bos_id is not None and ids[:1] == [bos_id]


def _backend(data: Json, source: str) -> Tokenizer:
    try:
        backend = Tokenizer.from_str(json.dumps(data, ensure_ascii=False))
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(f"{source} cannot be used by the tokenizers library: {reason_of(error)}.") from error
    backend.encode_special_tokens = True  # that is, in a text they are ordinary text
    return backend


def _merge_added(listed: list[Json], special: SpecialTokens, vocab: dict[str, int]) -> list[Json]:
    """The file's added tokens and those of the side files, by id, each flagged `special` if it is a control token."""
    merged = {token_id(token["id"], str(token["content"])): dict(token) for token in listed}
    known = {str(token["content"]) for token in listed}
    flagged = {token.text for token in special.added if token.special}
    for token in special.added:
        if token.id not in merged and token.text not in known:
            plain = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
            merged[token.id] = {"id": token.id, "content": token.text, **plain, "special": token.special}
    for i, token in merged.items():
        text = str(token["content"])
        is_special = bool(token.get("special")) or text in flagged
        token["special"] = special.is_control(AddedToken(id=i, text=text, special=is_special))
    # Entries of the model's own vocabulary keep their ids; the others are numbered in this order.
    return [merged[i] for i in sorted(merged, key=lambda i: (str(merged[i]["content"]) not in vocab, i))]


def _is_tekken(vocab: dict[str, int], added: list[Json]) -> bool:
    """Whether the ids are those of Mistral's tekken vocabulary.

    Many repositories of 2024 and 2025 have a wrong regular expression beside this vocabulary, which splits words where
    they were not split in training (transformers warns about it and repairs it with `fix_mistral_regex=True`).
    """
    return is_tekken(vocab | {str(token["content"]): int(token["id"]) for token in added})


def _without_prefix(data: Json) -> Json:
    """The same tokenizer without the dummy prefix."""
    normalizer, words = copy.deepcopy(data.get("normalizer")), copy.deepcopy(data.get("pre_tokenizer"))
    if normalizer and normalizer.get("type") == "Sequence":
        normalizer["normalizers"] = [n for n in normalizer["normalizers"] if n.get("type") != "Prepend"]
    elif normalizer and normalizer.get("type") == "Prepend":
        normalizer = None
    for step in _steps(words, "pretokenizers"):
        if step.get("type") == "Metaspace":
            step["prepend_scheme"] = "never"
            step.pop("add_prefix_space", None)
        elif step.get("type") == "ByteLevel":
            step["add_prefix_space"] = False
    return {**data, "normalizer": normalizer, "pre_tokenizer": words}


def _metaspaces(data: Json, scheme: str) -> bool:
    steps = _steps(data.get("pre_tokenizer"), "pretokenizers")
    return any(step.get("type") == "Metaspace" and step.get("prepend_scheme") == scheme for step in steps)


def _decoder_strips(decoder: Json | None) -> bool:
    """Whether decoding drops the one leading space that encoding added."""
    for step in _steps(decoder, "decoders"):
        if step.get("type") == "Strip" and step.get("content") == " " and step.get("start"):
            return True
        if step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never":
            return step.get("add_prefix_space", True)
    return False


def _steps(part: Json | None, plural: str) -> list[Json]:
    """The steps of a pipeline part, which may be absent, single or a sequence."""
    if not part:
        return []
    return cast("list[Json]", part[plural]) if part.get("type") == "Sequence" else [part]


def _mentions(data: Json, word: str) -> bool:
    """Whether the pipeline (not the vocabulary) contains `word`."""
    parts = [data.get(name) for name in ("normalizer", "pre_tokenizer", "decoder")]
    return f'"{word}"' in json.dumps(parts, ensure_ascii=False)


def _spell(piece: str) -> bytes:
    byte = _BYTE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace(_SPACE, " ").encode()


def _first_of(ids: dict[str, int], *texts: str) -> int | None:
    return next((ids[text] for text in texts if text in ids), None)
