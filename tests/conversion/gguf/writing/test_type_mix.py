"""The types of our mixes are those that llama.cpp gave to the tensors of files that it made."""

from __future__ import annotations

import pytest

from conversion.gguf.container.file import GGUFFile
from conversion.gguf.writing.type_mix import choose_type, find_mix, gets_more_bits
from tests.conversion.tiny_models import GOLDENS

NAMED = [
    *(f"narrow.{kind}" for kind in ("BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")),
    *("wide.Q4_K_M", "wide.Q5_K_M", "wide.Q6_K", "llama3.Q8_0", "llama3.Q4_0", "biases.Q8_0", "ministral3.Q4_K_M"),
]


@pytest.mark.parametrize("file", NAMED)
def test_the_types_are_those_of_llama_cpp(file: str) -> None:
    mix = find_mix(file.partition(".")[2])
    with GGUFFile(GOLDENS / f"{file}.gguf") as gguf:
        layers = gguf.metadata[f"{gguf.architecture}.block_count"]
        tied = "output.weight" not in gguf.tensors
        for name, info in gguf.tensors.items():
            assert choose_type(mix, name, info.shape, layers=layers, tied=tied) == info.type, name
        assert gguf.metadata["general.file_type"] == mix.file_type


def test_layers_with_more_bits_are_the_outer_eighths_and_every_third() -> None:
    chosen = [layer for layer in range(32) if gets_more_bits(layer, 32)]
    assert chosen == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    assert find_mix("Q4_K_M").name == "q4_k_m"
    with pytest.raises(ValueError, match="'q2_k' to convert to; expected one of f32, f16, bf16, q8_0"):
        find_mix("q2_k")
