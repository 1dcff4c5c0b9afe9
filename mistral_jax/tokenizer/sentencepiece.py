"""Tokenizers in sentencepiece's format: Llama 2 and Mistral's tokenizer.model of versions 1, 2, 3 and 7."""

from __future__ import annotations

import re
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from conversion.files.json_fields import shown
from conversion.files.regular_file import reason_of
from conversion.tokenizer.files import TokenizerError, known_form
from conversion.tokenizer.sentencepiece_model import keeps_text, read_model
from conversion.tokenizer.special_tokens import SpecialTokens
from mistral_jax.tokenizer.byte_table import ByteTableTokenizer
from mistral_jax.tokenizer.cuts import Cuts, NoPieceAcross

# A second `normalizer_spec { add_dummy_prefix: false }`. Protocol buffers merge repeated messages, so that these bytes
# after a serialised model switch the dummy prefix off and change nothing else.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"

_SPACE = "▁"


class SentencePieceTokenizer(ByteTableTokenizer):
    """A sentencepiece model, with tokens added to it as Hugging Face's side files list them.

    A dummy space goes before the text that begins a prompt or follows a control token, as in mistral-common;
    `at_start=False` switches it off.
    """

    def __init__(
        self,
        model: bytes,
        *,
        special: SpecialTokens | None = None,
        instruct_version: str | None = None,
        source: str = "The sentencepiece model",
    ) -> None:
        """Builds the tokenizer from a serialised `ModelProto`.

        Args:
          model: The bytes of tokenizer.model.
          special: Added tokens and the names of special ones.
          instruct_version: Mistral's format version; None to infer it from the control tokens (v1 cannot be
            distinguished from Llama 2).
          source: The model's name in error messages.

        Raises:
          TokenizerError: the bytes are not a sentencepiece model, or the added tokens do not continue its vocabulary.
        """
        with known_form(source):
            self._build(model, special or SpecialTokens(), instruct_version, source)

    def _build(self, model: bytes, special: SpecialTokens, instruct_version: str | None, source: str) -> None:
        try:
            self._at_start = SentencePieceProcessor(model_proto=model)
            self._inside = SentencePieceProcessor(model_proto=model + _NO_DUMMY_PREFIX)
        except (RuntimeError, TypeError, ValueError, OSError) as error:
            raise TokenizerError(
                f"{source} is no sentencepiece model ({reason_of(error)}). Was the download cut short?"
            ) from error
        processor = self._at_start
        size = processor.vocab_size()
        if not size:
            raise TokenizerError(f"{source} has an empty vocabulary.")

        pieces = [processor.id_to_piece(i) for i in range(size)]
        table = [_piece_bytes(processor, i, piece) for i, piece in enumerate(pieces)]
        control = {p: i for i, p in enumerate(pieces) if processor.is_control(i) or processor.is_unknown(i)}
        text_tokens: dict[str, int] = {}
        for token in special.added:
            is_control = special.is_control(token)
            if token.id < size:
                # The model's own spelling takes precedence: only the flag is new.
                if is_control and pieces[token.id] == token.text:
                    control[token.text] = token.id
                    table[token.id] = b""
                continue
            if token.id != len(pieces):
                raise TokenizerError(
                    f"{source} has {size} tokens and the added token {shown(token.text)} has id {token.id}, "
                    f"but the next free id is {len(pieces)}. The tokenizer's files belong to different models: "
                    "fetch them from the same repository."
                )
            pieces.append(token.text)
            table.append(b"" if is_control else token.text.encode())
            (control if is_control else text_tokens)[token.text] = token.id

        ids = {piece: i for i, piece in enumerate(pieces)}
        first = processor.encode_as_pieces("a")
        self._text_tokens = text_tokens
        self._text_token_pattern = (
            re.compile(f"({'|'.join(re.escape(t) for t in sorted(text_tokens, key=len, reverse=True))})")
            if text_tokens
            else None
        )
        super().__init__(
            pieces=pieces,
            table=table,
            control_tokens=control,
            bos_id=special.name_id("bos_token", ids, _id_or_none(processor.bos_id())),
            eos_id=special.name_id("eos_token", ids, _id_or_none(processor.eos_id())),
            unk_id=special.name_id("unk_token", ids, _id_or_none(processor.unk_id())),
            pad_id=special.name_id("pad_token", ids, _id_or_none(processor.pad_id())),
            add_bos=True if special.add_bos is None else special.add_bos,
            strips_leading_space=bool(first) and first[0].startswith(_SPACE),
            instruct_version=instruct_version or _infer_version(control),
            cuts=Cuts(between=NoPieceAcross(pieces[:size]), whole=tuple(text_tokens)) if keeps_text(model) else None,
        )

    @classmethod
    def from_file(cls, path: str | Path, *, special: SpecialTokens | None = None) -> SentencePieceTokenizer:
        """Reads tokenizer.model; a name such as `tokenizer.model.v3` includes the instruct version.

        Raises:
          TokenizerError: the file is absent or not a sentencepiece model.
        """
        path = Path(path)
        model = read_model(path)
        version = re.search(r"\.model\.(v\d+)(?:m\d+)?$", path.name)
        return cls(model, special=special, instruct_version=version[1] if version else None, source=str(path))

    def starts_after_control(self, text: str) -> bool:
        """A space that the template writes replaces the dummy prefix."""
        return not text.startswith(" ")

    def _encode_text(self, text: str, at_start: bool) -> list[int]:
        if self._text_token_pattern is None:
            return (self._at_start if at_start else self._inside).encode(text)
        ids: list[int] = []
        for part in self._text_token_pattern.split(text):
            if part in self._text_tokens:
                ids.append(self._text_tokens[part])
            elif part:
                ids += (self._at_start if at_start and not ids else self._inside).encode(part)
        return ids


def _piece_bytes(processor: SentencePieceProcessor, token_id: int, piece: str) -> bytes:
    if processor.is_control(token_id) or processor.is_unknown(token_id):
        return b""
    if processor.is_byte(token_id):
        return bytes([int(piece[3:5], 16)])  # <0xNN>
    return piece.replace(_SPACE, " ").encode()


def _id_or_none(token_id: int) -> int | None:
    return token_id if token_id >= 0 else None


def _infer_version(control: dict[str, int]) -> str | None:
    """The instruct version that has exactly these control tokens; None for v1, which has the same ones as Llama 2.

    Other vendors' models may have `[INST]` and `[/INST]` as tokens and none of those for tools: that is not a version
    of Mistral's.
    """
    if not {"[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]"} <= control.keys():
        return None
    if "[SYSTEM_PROMPT]" in control:
        return "v7"
    if "[IMG]" in control or "[PREFIX]" in control:
        return "v3"
    return "v2"
