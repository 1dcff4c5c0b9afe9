"""Prompts for text between a prefix and a suffix (fill in the middle), for vocabularies with control tokens for it.

The tokens of a vocabulary name its format:

| tokens | models | order |
|---|---|---|
| `[SUFFIX]` `[PREFIX]` | Codestral | BOS, suffix, prefix |
| `<|fim_prefix|>` `<|fim_suffix|>` `<|fim_middle|>` | Qwen2.5-Coder, StableCode | prefix, suffix, middle |
| `<fim_prefix>` `<fim_suffix>` `<fim_middle>` | StarCoder | the same |
| `<fim-prefix>` `<fim-suffix>` `<fim-middle>` | SantaCoder | the same |
"""

from __future__ import annotations

from collections.abc import Iterator

from mistral_jax.chat.encoding import PromptPieces
from mistral_jax.chat.errors import ConversationError
from mistral_jax.tokenizer.base import Tokenizer

_PREFIX_FIRST = tuple(
    tuple(f"{opening}fim{dash}{name}{closing}" for name in ("prefix", "suffix", "middle"))
    for opening, dash, closing in (("<|", "_", "|>"), ("<", "_", ">"), ("<", "-", ">"))
)


def infilling_pieces(prefix: str, suffix: str, tokenizer: Tokenizer) -> PromptPieces:
    """The prompt of the text that belongs between `prefix` and `suffix`.

    Raises:
      ConversationError: the vocabulary has no control tokens for it.
    """
    control = tokenizer.control_tokens
    before = tokenizer.encode_pieces(prefix)
    # The suffix continues a text: no dummy prefix.
    after = tokenizer.encode_pieces(suffix, at_start=False)
    least = 2 + tokenizer.least_tokens(prefix) + tokenizer.least_tokens(suffix)
    if "[SUFFIX]" in control and "[PREFIX]" in control:
        bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        return PromptPieces(
            least=least, pieces=_joined([*bos, control["[SUFFIX]"]], after, [control["[PREFIX]"]], before, [])
        )
    for names in _PREFIX_FIRST:
        if all(name in control for name in names):
            first, second, last = (control[name] for name in names)
            bos = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
            return PromptPieces(least=least, pieces=_joined([*bos, first], before, [second], after, [last]))
    raise ConversationError("The model has no control tokens for filling in the middle, such as [SUFFIX] and [PREFIX].")


def _joined(
    opening: list[int], one: Iterator[list[int]], between: list[int], other: Iterator[list[int]], closing: list[int]
) -> Iterator[list[int]]:
    yield opening
    yield from one
    yield between
    yield from other
    if closing:
        yield closing
