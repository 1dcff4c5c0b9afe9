"""What the sizes of a model may be: far beyond what any has, and small enough that nothing overflows, hangs or fills
memory."""

from __future__ import annotations

MOST_LAYERS = 1024
MOST_WIDTH = 2**20
"""Of the hidden size."""
MOST_INNER_WIDTH = 2**22
"""Of the feed-forward size."""
MOST_HEADS = 2**14
MOST_HEAD_DIM = 2**14
MOST_TOKENS = 2**21
"""In a vocabulary, as in GGUF files."""
MOST_UNUSED_TOKENS = 2**17
"""Ids that no entry of a vocabulary has, below the largest that one has."""
MOST_THETA = 1e12
MOST_FACTOR = 1e6
"""Of factors that stretch a rope, and of rotations that border its ramp."""
