"""Loading the tokenizer of a model folder."""

from __future__ import annotations

from pathlib import Path

from conversion.files.regular_file import exists, is_folder
from conversion.tokenizer.files import SENTENCEPIECE_NAME, TokenizerError, find_tokenizer_file, read_json_object
from conversion.tokenizer.special_tokens import read_special_tokens
from mistral_jax.tokenizer.byte_table import ByteTableTokenizer
from mistral_jax.tokenizer.huggingface import HuggingFaceTokenizer
from mistral_jax.tokenizer.sentencepiece import SentencePieceTokenizer
from mistral_jax.tokenizer.tekken import TekkenTokenizer


def load_tokenizer(path: str | Path) -> ByteTableTokenizer:
    """Loads the tokenizer of a model folder, or the one in a single file.

    In a folder tekken.json comes first (Mistral's own file, never wrong), then tokenizer.json, then tokenizer.model
    with the highest version in its name. Side files (tokenizer_config.json, special_tokens_map.json, added_tokens.json)
    are read where they are.

    Raises:
      TokenizerError: there is no tokenizer, or it is broken or of a kind that we do not implement.
    """
    path = Path(path)
    if is_folder(path):
        path = find_tokenizer_file(path)
    elif not exists(path):
        raise TokenizerError(f"There is no tokenizer at {path}: no such file or folder.")
    special = read_special_tokens(path.parent)
    if path.suffix == ".json":
        if "tekken" in path.name or "config" in read_json_object(path, vocabulary=True):
            return TekkenTokenizer.from_file(path, special=special)
        return HuggingFaceTokenizer.from_file(path, special=special)
    if SENTENCEPIECE_NAME.fullmatch(path.name):
        return SentencePieceTokenizer.from_file(path, special=special)
    raise TokenizerError(
        f"{path} has no name of a tokenizer file. Expected tekken.json, tokenizer.json, "
        "or tokenizer.model (also .model.v3 and such)."
    )
