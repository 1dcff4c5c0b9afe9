"""The data of a run: read, limited, held out in part, batched."""

from __future__ import annotations

import logging
from typing import NamedTuple

from mistral_jax.training.base import BaseModel
from mistral_jax.training.batches import Batches, check_tokens, limit_lengths, split_off
from mistral_jax.training.chat_data import ChatEncoder, Data, DataError, Example, read_chat_data
from mistral_jax.training.settings import TrainingSettings

logger = logging.getLogger("mistral_jax")


LONGEST_BY_DEFAULT = 1024
"""Most tokens of an example by default."""


class DataSets(NamedTuple):
    """Data to train on, and data for validation."""

    train: Batches
    validation: Batches | None


def prepare_data(base: BaseModel, data: Data, validation: Data | None, settings: TrainingSettings) -> DataSets:
    """Read the data and log how much there is.

    Raises:
      DataError: a line cannot be trained on, an example is too long, or none is left.
      ValueError: `max_length` is beyond the model's context, or validation data are given twice.
      OSError: a file cannot be read.
    """
    possible = base.module.config.max_position_embeddings
    most = min(LONGEST_BY_DEFAULT, possible) if settings.max_length is None else settings.max_length
    if most > possible:
        raise ValueError(f"max_length is {most}; this model was made for at most {possible}")
    if validation is not None and settings.validation_split:
        raise ValueError("give either validation data or a validation_split, not both")
    encoder = ChatEncoder(base.tokenizer, base.chat, base.eos_ids)

    def read(data: Data, what: str) -> list[Example]:
        try:
            examples, changed = limit_lengths(read_chat_data(data, encoder), most, settings.too_long)
            check_tokens(examples, base.module.config.vocab_size)
        except DataError as error:
            raise DataError(f"{what}: {error}") from error
        if changed:
            done = "left out" if settings.too_long == "skip" else "cut"
            logger.warning("%s: %d examples were longer than %d tokens and were %s", what, changed, most, done)
        return examples

    examples = read(data, "training data")
    if validation is None:
        examples, held_out = split_off(examples, settings.validation_split, settings.seed)
    else:
        held_out = read(validation, "validation data")
    train = Batches(examples, settings.batch_tokens, settings.buckets, settings.seed)
    logger.info(
        "data: %d examples, %d tokens, of which %d count; %d batches an epoch, of lengths %s; %d examples held out",
        len(examples),
        train.tokens,
        sum(int(example.counted.sum()) for example in examples),
        train.per_epoch,
        ", ".join(map(str, train.lengths)),
        len(held_out),
    )
    if not held_out:
        return DataSets(train, None)
    return DataSets(train, Batches(held_out, settings.batch_tokens, settings.buckets, settings.seed, shuffled=False))
