"""The tokenizer of a GGUF file, from its metadata alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conversion.gguf.tokenizer import gguf_tokenizer
from conversion.gguf.vocabulary import PREFIX, read_vocabulary
from conversion.tokenizer.chat_templates import gguf_chat_templates
from conversion.tokenizer.files import TokenizerError
from conversion.tokenizer.sentencepiece_model import SPACE
from conversion.tokenizer.special_tokens import special_tokens
from mistral_jax.tokenizer.base import Tokenizer
from mistral_jax.tokenizer.byte_table import ByteTableTokenizer
from mistral_jax.tokenizer.huggingface import HuggingFaceTokenizer
from mistral_jax.tokenizer.sentencepiece import SentencePieceTokenizer

_SOURCE = "The GGUF file's tokenizer"

# Texts with which chat formats end a turn, where the file may name another token as EOS.
_TURN_ENDS = (
    *("</s>", "<|eot_id|>", "<|im_end|>", "<|end|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>"),
    *("<|end_of_turn|>", "<end_of_turn>", "<|eot|>", "<EOT>", "[EOT]", "[EOS]", "<eos>"),
)


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> ByteTableTokenizer:
    """Builds the tokenizer of a GGUF file; it uses the same classes as the files of a model folder.

    Args:
      metadata: As `GGUFFile.metadata`.

    Raises:
      TokenizerError: there is no tokenizer, it is broken, or of a kind that is not implemented.
    """
    files = gguf_tokenizer(metadata)
    special = special_tokens(files.config)
    if files.sentencepiece is not None:
        return SentencePieceTokenizer(files.sentencepiece, special=special, source=_SOURCE)
    assert files.tokenizer_json is not None
    return HuggingFaceTokenizer(files.tokenizer_json, special=special, source=_SOURCE)


def end_of_generation_ids(
    metadata: Mapping[str, Any], tokenizer: Tokenizer, template: str | Mapping[str, str] | None = None
) -> frozenset[int]:
    """The tokens that end generation.

    Those that the file names (eos, eot, eom), the tokenizer's EOS, and every control token with a usual text for the
    end of a turn, such as `<|im_end|>`, that the chat template writes: files of fine-tuned models often name the EOS of
    their base model. A token that merely looks like an end, and that the template never writes, does not end
    generation.

    Args:
      metadata: As `GGUFFile.metadata`.
      tokenizer: The file's tokenizer, or the one that replaces it.
      template: The chat template, or several by name; None for those of the file.
    """
    templates = gguf_chat_templates(metadata) if template is None else template
    text = templates if isinstance(templates, str) else "\n".join(templates.values())
    named = (metadata.get(f"{PREFIX}{name}_token_id") for name in ("eos", "eot", "eom"))
    ids = {int(i) for i in (*named, tokenizer.eos_id) if i is not None and 0 <= int(i) < tokenizer.vocab_size}
    control = tokenizer.control_tokens
    ids |= {control[end] for end in _TURN_ENDS if end in control and end in text}
    return frozenset(ids)


def check_same_tokens(metadata: Mapping[str, Any], tokenizer: Tokenizer) -> None:
    """Checks that a tokenizer from another model gives every id the same meaning as the GGUF file.

    Compared are the bytes that an id stands for (for control tokens: their names), so that it does not matter how
    either side spells spaces and bytes. Padding ids of the file's vocabulary are not compared. A file without a
    vocabulary passes.

    Raises:
      TokenizerError: it does not fit; the first id that differs is named.
    """
    if not metadata.get(f"{PREFIX}tokens"):
        return
    # Other errors in the file's tokenizer do not matter: it is replaced.
    keys = [PREFIX + name for name in ("model", "tokens", "token_type")]
    vocabulary = read_vocabulary({key: metadata[key] for key in keys if key in metadata})
    control = set(tokenizer.control_tokens.values())
    size = len(vocabulary.tokens)
    for i in range(size):
        if vocabulary.is_filler(i):
            continue
        if i >= tokenizer.vocab_size:
            other = "no such token"
        else:
            text = tokenizer.token_text(i)
            data = text.encode() if i in control else tokenizer.token_bytes(i)
            if _same(vocabulary.spelled(i), data):
                continue
            other = repr(text)
        raise TokenizerError(
            f"The tokenizer given with -t/--tok-model-id is not that of the GGUF file: its token {i} is {other}, "
            f"in the file it is {vocabulary.tokens[i]!r}. Name the model that the file was made from, "
            "or leave -t out to use the file's own tokenizer."
        )
    if tokenizer.vocab_size > size:
        raise TokenizerError(
            f"The tokenizer given with -t/--tok-model-id has {tokenizer.vocab_size} tokens, "
            f"the GGUF file's has {size}: the model knows nothing of the others. "
            "Name the model that the file was made from, or leave -t out."
        )


def _same(ours: bytes, theirs: bytes) -> bool:
    return ours == theirs or ours.replace(_SPACE, b" ") == theirs.replace(_SPACE, b" ")


_SPACE = SPACE.encode()
