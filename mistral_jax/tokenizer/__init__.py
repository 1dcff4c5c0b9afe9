"""Tokenizers: one class per file format, all with the same byte-exact interface (`Tokenizer`)."""

from conversion.tokenizer.files import TokenizerError
from conversion.tokenizer.special_tokens import AddedToken, SpecialTokens
from mistral_jax.tokenizer.base import Tokenizer
from mistral_jax.tokenizer.from_files import load_tokenizer
from mistral_jax.tokenizer.huggingface import HuggingFaceTokenizer
from mistral_jax.tokenizer.sentencepiece import SentencePieceTokenizer
from mistral_jax.tokenizer.tekken import TekkenTokenizer

__all__ = [
    "AddedToken",
    "HuggingFaceTokenizer",
    "SentencePieceTokenizer",
    "SpecialTokens",
    "TekkenTokenizer",
    "Tokenizer",
    "TokenizerError",
    "load_tokenizer",
]
