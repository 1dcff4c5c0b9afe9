"""Which of a model folder's files is its tokenizer."""

from __future__ import annotations

import re
from pathlib import Path

from mistral_jax.tokenizer.base import TokenizerError
from mistral_jax.tokenizer.byte_table import ByteTableTokenizer
from mistral_jax.tokenizer.huggingface import HuggingFaceTokenizer
from mistral_jax.tokenizer.sentencepiece import SentencePieceTokenizer
from mistral_jax.tokenizer.special_tokens import read_json_object, read_special_tokens
from mistral_jax.tokenizer.tekken import TekkenTokenizer

_SENTENCEPIECE_NAME = re.compile(r".*\.(?:model(?:\.v(\d+)(?:m\d+)?)?|spm)")


def load_tokenizer(path: str | Path) -> ByteTableTokenizer:
    """Loads the tokenizer of a model folder, or the one in a single file.

    In a folder tekken.json comes first (Mistral's own file, never wrong), then tokenizer.json, then tokenizer.model
    with the highest version in its name. Side files (tokenizer_config.json, special_tokens_map.json, added_tokens.json)
    are read where they are.

    Raises:
      TokenizerError: there is no tokenizer, or it is broken or of a kind that we do not implement.
    """
    path = Path(path)
    if path.is_dir():
        path = _find(path)
    elif not path.is_file():
        raise TokenizerError(f"There is no tokenizer at {path}: no such file or folder.")
    special = read_special_tokens(path.parent)
    if path.suffix == ".json":
        if "tekken" in path.name or "config" in read_json_object(path):
            return TekkenTokenizer.from_file(path, special=special)
        return HuggingFaceTokenizer.from_file(path, special=special)
    if _SENTENCEPIECE_NAME.fullmatch(path.name):
        return SentencePieceTokenizer.from_file(path, special=special)
    raise TokenizerError(
        f"{path} has no name of a tokenizer file. Expected tekken.json, tokenizer.json, or tokenizer.model (also "
        ".model.v3 and such)."
    )


def _find(folder: Path) -> Path:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    models = {name: match for name in names if (match := _SENTENCEPIECE_NAME.fullmatch(name))}
    by_version = sorted(models, key=lambda name: int(models[name][1] or 0), reverse=True)
    tekken = [name for name in names if name.startswith("tekken") and name.endswith(".json")]
    for name in ("tekken.json", *tekken, "tokenizer.json", *by_version):
        if name in names:
            return folder / name
    raise TokenizerError(
        f"{folder} has no tokenizer: none of tekken.json, tokenizer.json and tokenizer.model is among its "
        f"{len(names)} files"
        f"{' (' + ', '.join(names[:8]) + ')' if names else ''}. Download the tokenizer of the model into it, or name "
        "one explicitly."
    )
