"""Sentencepiece's model file, read and written without the protobuf package.

A `ModelProto` (sentencepiece_model.proto of google/sentencepiece) is a few nested messages. Only the fields that decide
how text becomes tokens are kept; those about training are skipped.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from conversion.files.regular_file import read_regular, reason_of
from conversion.tokenizer.files import TokenizerError

SPACE = "▁"
"""How pieces spell a space."""

BPE = 2
"""`TrainerSpec.ModelType` of byte-pair encoding."""


class PieceType(IntEnum):
    """The type of a piece; the token types of GGUF files have the same numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, kw_only=True)
class SentencePieceModel:
    """A vocabulary and its treatment of spaces and bytes."""

    texts: list[str]
    """Pieces by id, with `▁` for spaces."""
    scores: list[float]
    """In BPE the pair with the highest score is merged first."""
    types: list[int]
    """A `PieceType` for each piece; exactly one is UNKNOWN."""
    add_dummy_prefix: bool
    """Whether a space goes before each text."""
    bos: str = "<s>"
    """Text of the control piece that begins a sequence; ignored where there is no such piece."""
    eos: str = "</s>"
    pad: str = "<pad>"
    model_type: int = BPE


_Field = tuple[int, int | bytes]
_MOST_BYTES = 32 * 2**20
"""The largest models in use have five million."""
_ABSENT: int = 0xFFFF_FFFF_FFFF_FFFF  # -1 as a varint: the id of a piece that does not exist


def read_model(path: Path) -> bytes:
    """The bytes of a model file.

    Raises:
      TokenizerError: it is missing, not a regular file, or too large.
    """
    try:
        return read_regular(path, most=_MOST_BYTES)
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path} cannot be read: {reason_of(error)}.") from error


def parse_sentencepiece(data: bytes, source: str) -> SentencePieceModel:
    """Reads a serialised `ModelProto`.

    Raises:
      TokenizerError: it is not one, or truncated; `source` is its name in the message.
    """
    texts: list[str] = []
    scores: list[float] = []
    types: list[int] = []
    prefix, model_type = True, 1
    named = {45: "<unk>", 46: "<s>", 47: "</s>", 48: "<pad>"}
    try:
        for number, value in _fields(data):
            if number == 1:
                piece = dict(_fields(_message(value)))
                texts.append(_message(piece[1]).decode())
                scores.append(struct.unpack("<f", _message(piece.get(2, b"\0\0\0\0")))[0])
                types.append(PieceType(int(piece.get(3, 1))))
            elif number == 2:
                for inner, setting in _fields(_message(value)):
                    if inner == 3:
                        model_type = int(setting)
                    elif inner in named:
                        named[inner] = _message(setting).decode()
            elif number == 3:
                prefix = bool(dict(_fields(_message(value))).get(3, prefix))
    except (ValueError, IndexError, KeyError, TypeError, struct.error) as error:
        raise TokenizerError(
            f"{source} is no sentencepiece model ({reason_of(error)}). Was the download cut short?"
        ) from error
    if not texts:
        raise TokenizerError(f"{source} is no sentencepiece model: it has no pieces. Was the download cut short?")
    return SentencePieceModel(
        texts=texts,
        scores=scores,
        types=types,
        add_dummy_prefix=prefix,
        bos=named[46],
        eos=named[47],
        pad=named[48],
        model_type=model_type,
    )


def keeps_text(data: bytes) -> bool:
    """Whether a serialised `ModelProto` encodes every character of a text in place, except that spaces are written as
    ▁.

    Others normalise texts first (NFKC), drop spaces, or write the space after a word. Only BPE and unigram models
    qualify.
    """
    normalizer: dict[int, int | bytes] = {}
    trainer: dict[int, int | bytes] = {}
    try:
        for number, value in _fields(data):
            if number in (2, 3):
                (trainer if number == 2 else normalizer).update(_fields(_message(value)))
    except (ValueError, IndexError, KeyError, TypeError):
        return False
    # precompiled_charsmap, remove_extra_whitespaces, escape_whitespaces; treat_whitespace_as_suffix, model_type
    as_it_is = not normalizer.get(2) and normalizer.get(4, 1) == 0 and normalizer.get(5, 1) != 0
    return as_it_is and not trainer.get(24, 0) and trainer.get(3, 1) in (1, BPE)


def serialize_sentencepiece(model: SentencePieceModel) -> bytes:
    """Writes a `ModelProto` that `SentencePieceProcessor(model_proto=…)` loads.

    Texts are taken as they are (no Unicode normalisation, no whitespace removed). Characters that no piece covers
    become bytes if the vocabulary has byte pieces.

    Raises:
      ValueError: the number of UNKNOWN pieces is not one.
    """
    unknown = [i for i, kind in enumerate(model.types) if kind == PieceType.UNKNOWN]
    if len(unknown) != 1:
        raise ValueError(f"a sentencepiece model needs one unknown piece, not {len(unknown)}")
    parts: list[bytes] = []
    for text, score, kind in zip(model.texts, model.scores, model.types, strict=True):
        spelled = text.encode()
        parts.append(_bytes(1, _bytes(1, spelled) + b"\x15" + struct.pack("<f", score) + _number(3, kind)))
    ids = {text: i for i, text in enumerate(model.texts)}
    trainer = [
        _number(3, model.model_type),
        _number(4, len(model.texts)),
        _number(35, PieceType.BYTE in model.types),
        _number(40, unknown[0]),
        _bytes(45, model.texts[unknown[0]].encode()),
    ]
    for number, text in ((41, model.bos), (42, model.eos), (43, model.pad)):
        trainer += [_number(number, ids.get(text, _ABSENT)), _bytes(number + 5, text.encode())]
    normalizer = [_bytes(1, b"identity"), _number(3, model.add_dummy_prefix), _number(4, 0), _number(5, 1)]
    return b"".join([*parts, _bytes(2, b"".join(trainer)), _bytes(3, b"".join(normalizer))])


def _fields(data: bytes) -> Iterator[_Field]:
    """The fields of a message: numbers as int, everything else as bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"a field of wire type {wire}")
        if size > len(data) - at:
            raise ValueError(f"a field of {size} bytes where {len(data) - at} are left")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _message(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where a message was expected")
    return value


def _number(number: int, value: int) -> bytes:
    return _encode_varint(number << 3) + _encode_varint(value)


def _bytes(number: int, value: bytes) -> bytes:
    return _encode_varint(number << 3 | 2) + _encode_varint(len(value)) + value


def _encode_varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
