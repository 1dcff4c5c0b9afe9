"""Conversations as token ids, exactly as the chat template of the model lays them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from demo.corpus import Chat

BOS, EOS, INST, END_INST = 1, 2, 3, 4


def load_tokenizer(folder: Path) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


@dataclass(frozen=True)
class Encoded:
    """Token ids of a conversation, and which of them the model has to say."""

    tokens: list[int]
    said: list[bool]
    """True for the tokens of answers, each with its `</s>`."""


def encode(
    tokenizer: SentencePieceProcessor, turns: Sequence[tuple[str, str]], *, system: str | None = None
) -> Encoded:
    tokens, said = [BOS], [False]
    for number, (user, model) in enumerate(turns):
        question = f"{system}\n\n{user}" if system and number == 0 else user
        asked = [INST, *tokenizer.encode(question), END_INST]
        answered = [*tokenizer.encode(model), EOS]
        tokens += asked + answered
        said += [False] * len(asked) + [True] * len(answered)
    return Encoded(tokens, said)


def encode_chat(tokenizer: SentencePieceProcessor, chat: Chat) -> Encoded:
    return encode(tokenizer, chat.turns, system=chat.system)
