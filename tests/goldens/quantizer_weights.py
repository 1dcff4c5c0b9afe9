"""The weights on which quantisers are compared, made alike where llama.cpp is and where our tests run: numpy only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float32]]

TRAINED = Path(__file__).with_name("trained_layer.safetensors")
ROWS, COLUMNS = 128, 1024


def families() -> dict[str, Floats]:
    """Weights as trained models have them and worse: name -> float32 [rows, columns], columns a multiple of 256."""
    rng = np.random.default_rng(7)
    gaussian = rng.standard_normal((ROWS, COLUMNS)) * 0.02
    outlier_rows = rng.standard_normal((ROWS, COLUMNS)) * np.where(np.arange(ROWS) % 16 == 3, 0.6, 0.02)[:, None]
    outlier_columns = rng.standard_normal((ROWS, COLUMNS)) * np.where(np.arange(COLUMNS) % 200 == 7, 0.4, 0.02)
    made = {
        "gaussian": gaussian,
        # Units of the super-blocks that are subnormal in float16.
        "small": gaussian * 0.01,
        "heavy_tailed": rng.standard_t(3, (ROWS, COLUMNS)) * 0.02,
        "outlier_rows": outlier_rows,
        "outlier_columns": outlier_columns,
        "one_sided": np.abs(gaussian),
    }
    return {name: values.astype(np.float32) for name, values in made.items()} | {"bundled_model": bundled_model()}


def bundled_model() -> Floats:
    """The matrices of one layer of the first bundled model, in rows of 256. It was trained again since."""
    data = TRAINED.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8:start])
    parts: list[Floats] = []
    for name in sorted(header):
        if ".layers.3." not in name or len(header[name]["shape"]) != 2:
            continue
        first, last = header[name]["data_offsets"]
        assert header[name]["dtype"] == "BF16"
        bits = np.frombuffer(data[start + first : start + last], "<u2").astype(np.uint32) << 16
        parts.append(bits.view(np.float32).reshape(-1, 256))
    return np.concatenate(parts)


def borders() -> Floats:
    """Blocks whose values lie on and right beside the borders between codes, and other traps: float32 [blocks, 32]."""
    rng = np.random.default_rng(8)
    blocks: list[Floats] = []
    for codes in (8, 15, 16, 31, 127):
        scale = rng.uniform(1e-4, 1e-2, (4, 1)).astype(np.float32)
        values = rng.integers(-2 * codes, 2 * codes + 1, (4, 32)).astype(np.float32) / 2 * scale
        values[:, 0] = scale[:, 0] * codes * rng.choice(np.float32([-1, 1]), 4)
        blocks.append(np.nextafter(values, values + rng.integers(-1, 2, values.shape).astype(np.float32)))
    # The largest magnitude twice, with either sign first.
    ties = rng.uniform(-0.5, 0.5, (4, 32)).astype(np.float32)
    ties[:, 5], ties[:, 20] = np.float32([1, -1, 1, -1]), np.float32([-1, 1, 1, -1])
    blocks += [ties, rng.integers(-8, 9, (4, 32)).astype(np.float32)]
    blocks += [np.zeros((1, 32), np.float32), np.full((1, 32), -0.3, np.float32)]
    # Scales that are subnormal in float16, zero in float16, and large.
    blocks += [rng.uniform(-1, 1, (2, 32)).astype(np.float32) * np.float32(size) for size in (1e-5, 1e-10, 1e4)]
    return np.concatenate(blocks)


def root_mean_square(values: np.ndarray[Any, Any]) -> float:
    return float(np.sqrt(np.square(values, dtype=np.float64).mean()))
