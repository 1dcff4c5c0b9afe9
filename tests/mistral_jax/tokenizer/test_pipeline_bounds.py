"""Steps of a tokenizer.json that would make a short text fill any memory are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mistral_jax.tokenizer import HuggingFaceTokenizer, TokenizerError
from mistral_jax.tokenizer.pipeline_bounds import MOST_STEPS, check_pipeline
from tests.cpu_time import cpu_seconds_at_most

GOLDENS = Path(__file__).parents[2] / "goldens" / "tokenizers"
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def replacement(content: str, pattern: Any) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback", "metaspace"])
def test_files_of_real_kinds_are_within_bounds(kind: str) -> None:
    check_pipeline(json.loads((GOLDENS / kind / "tokenizer.json").read_text()), "tokenizer.json")


def test_byte_level_steps_one_after_another_double_the_text() -> None:
    """Found by fuzzing: 80 of them, where a text of 26 characters took more than a gibibyte."""
    data = json.loads((GOLDENS / "byte_level" / "tokenizer.json").read_text())
    data["pre_tokenizer"]["pretokenizers"] += [BYTE_LEVEL] * 40
    with cpu_seconds_at_most(1.0), pytest.raises(TokenizerError, match="41 ByteLevel steps"):
        HuggingFaceTokenizer(data, source="tokenizer.json")


@pytest.mark.parametrize(
    ("normalizer", "match"),
    [
        ({"type": "Sequence", "normalizers": [replacement("aa", {"String": "a"})] * 20}, "more than 1024 times"),
        (replacement("x" * 2000, {"String": " "}), "more than 1024 times"),
        (replacement("x" * 1024, {"Regex": ""}), "more than 1024 times"),
        ({"type": "Sequence", "normalizers": [{"type": "NFC"}] * (MOST_STEPS + 1)}, "65 steps"),
        (
            {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": [{"type": "NFC"}] * 9}] * 9},
            "81 steps",
        ),
    ],
)
def test_normalisers_that_never_stop_growing(normalizer: dict[str, Any], match: str) -> None:
    with pytest.raises(TokenizerError, match=match):
        check_pipeline({"normalizer": normalizer}, "tokenizer.json")


def test_ordinary_replacements_are_let_through() -> None:
    steps = [{"type": "Prepend", "prepend": "▁"}, replacement("▁", {"String": " "}), replacement(" ", {"Regex": " +"})]
    check_pipeline({"normalizer": {"type": "Sequence", "normalizers": steps}, "pre_tokenizer": None}, "tokenizer.json")
    check_pipeline({"normalizer": [], "pre_tokenizer": "x"}, "tokenizer.json")
