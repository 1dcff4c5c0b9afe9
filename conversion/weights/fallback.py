"""The type of a tensor whose rows are not a whole number of blocks of the requested type."""

from __future__ import annotations

from conversion.weights.ggml_types import BY_NAME, GGMLType

_NEXT = {
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "TQ1_0": "Q4_0",
    "TQ2_0": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}


def fallback(kind: GGMLType, columns: int) -> GGMLType:
    """The type for rows of this many values: `kind` where they are whole blocks of it, else what llama.cpp uses
    instead.

    Types with blocks of 256 are replaced by one with blocks of 32 and at least as many bits (Q4_K to Q5_0, Q5_K to
    Q5_1, Q6_K to Q8_0, the IQ types to IQ4_NL), and rows that are not a whole number of those become F16. Source:
    tensor_type_fallback of llama.cpp.
    """
    while columns % kind.block_size:
        smaller = "IQ4_NL" if kind.name.startswith("IQ") and kind.block_size == 256 else _NEXT.get(kind.name, "F16")
        kind = BY_NAME[smaller]
    return kind
