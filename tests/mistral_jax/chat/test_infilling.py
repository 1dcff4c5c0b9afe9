"""Prompts for filling in the middle, against mistral-common."""

from __future__ import annotations

import pytest
from mistral_common.protocol.fim.request import FIMRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from mistral_jax.chat import ConversationError
from mistral_jax.chat.infilling import infilling_pieces
from mistral_jax.tokenizer.base import Tokenizer
from tests.mistral_jax.tokenizer.tokenizer_corpus import SENTENCEPIECE, TEXTS, tokenizer


def ids(prefix: str, suffix: str, vocabulary: Tokenizer) -> list[int]:
    prompt = infilling_pieces(prefix, suffix, vocabulary)
    tokens = [token for piece in prompt.pieces for token in piece]
    assert prompt.least <= len(tokens)
    return tokens


@pytest.mark.parametrize("version", ["v3", "v7"])
def test_mistrals_order_is_that_of_mistral_common(version: str) -> None:
    ours, reference = tokenizer(version), MistralTokenizer.from_file(str(SENTENCEPIECE[version]))
    cases = [("def f(", "  return x"), ("", "tail"), ("a\n\n", "\n b"), ("[INST] x", "[SUFFIX]</s>"), ("é", " é 🎉")]
    cases += [(text, other) for text, other in zip(TEXTS, reversed(TEXTS), strict=True) if other]
    for prefix, suffix in cases:
        expected = reference.encode_fim(FIMRequest(prompt=prefix, suffix=suffix)).tokens
        assert ids(prefix, suffix, ours) == expected, (prefix, suffix)


class Named:
    """One token for each character, besides control tokens."""

    def __init__(self, *control: str) -> None:
        self.control_tokens = {name: i for i, name in enumerate(control)}
        self.bos_id, self.add_bos = (0, True) if control[0] == "<s>" else (None, False)

    def encode_pieces(self, text: str, *, at_start: bool = True):
        yield [ord(character) for character in text]

    def least_tokens(self, text: str) -> int:
        return len(text)


@pytest.mark.parametrize(
    ("control", "expected"),
    [
        (("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"), [0, 97, 2, 98, 1]),
        (("<s>", "<fim_middle>", "<fim_prefix>", "<fim_suffix>"), [0, 2, 97, 3, 98, 1]),
        (("<fim-prefix>", "<fim-suffix>", "<fim-middle>"), [0, 97, 1, 98, 2]),
    ],
)
def test_other_families_write_the_prefix_first(control: tuple[str, ...], expected: list[int]) -> None:
    vocabulary: Tokenizer = Named(*control)  # type: ignore[assignment]
    assert ids("a", "b", vocabulary) == expected


def test_without_such_tokens_it_is_refused() -> None:
    with pytest.raises(ConversationError, match="no control tokens for filling in the middle"):
        infilling_pieces("a", "b", tokenizer("v1"))
