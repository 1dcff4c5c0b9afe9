"""Limits on the sizes of a model: far beyond any model in use, and small enough that nothing overflows, hangs or fills
memory."""

from __future__ import annotations

MOST_LAYERS = 1024
MOST_WIDTH = 2**20
"""Hidden size."""
MOST_INNER_WIDTH = 2**22
"""Feed-forward size."""
MOST_HEADS = 2**14
MOST_HEAD_DIM = 2**14
MOST_TOKENS = 2**21
"""Tokens of a vocabulary, as in GGUF files."""
MOST_UNUSED_TOKENS = 2**17
"""Unused ids below the largest id of a vocabulary."""
MOST_THETA = 1e12
MOST_FACTOR = 1e6
"""Factors that scale a rope, and the rotations that bound its ramp."""
MOST_TEMPERATURE = 1e3
"""Largest factor by which queries may grow with each context (`llama_4_scaling_beta`)."""
