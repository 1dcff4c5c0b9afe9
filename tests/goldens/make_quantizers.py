"""Writes `quantizers.json`: what llama.cpp, without an importance matrix, makes of the weights in
`quantizer_weights.py`.

Run it in an environment with llama-cpp-python (0.3.36 wrote the file) and gguf; the tests need only what it writes:

    python tests/goldens/make_quantizers.py

`blocks`: for types that we must match to the bit, the packed `borders()`. `rms`: for the others, the root mean square
  error on each
family. `weights`: the root mean square of the families themselves, so that a test notices should a new numpy make
  others.
"""

from __future__ import annotations

import base64
import ctypes
import json
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
from gguf.quants import dequantize
from quantizer_weights import borders, families, root_mean_square

OUT = Path(__file__).parent / "quantizers.json"
EXACT = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
SEARCHED = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")

_quantize_chunk = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so")).ggml_quantize_chunk
_quantize_chunk.restype = ctypes.c_size_t
_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]


def quantize(values: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """llama.cpp's own: float32 [rows, columns] -> uint8 [rows, row_bytes]."""
    values = np.ascontiguousarray(values, np.float32)
    rows, columns = values.shape
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    packed = np.empty((rows, columns // block_size * block_bytes), np.uint8)
    written = _quantize_chunk(kind.value, values.ctypes.data, packed.ctypes.data, 0, rows, columns, None)
    assert written == packed.size
    return packed


def rounded(values: np.ndarray) -> float:
    return float(f"{root_mean_square(values):.6e}")


def main() -> None:
    weights = families()
    kinds = gguf.GGMLQuantizationType
    golden: dict[str, Any] = {
        "weights": {name: rounded(values) for name, values in weights.items()},
        "blocks": {name: base64.b64encode(quantize(borders(), kinds[name]).tobytes()).decode() for name in EXACT},
        "rms": {},
    }
    for name in SEARCHED:
        golden["rms"][name] = {}
        for family, values in weights.items():
            golden["rms"][name][family] = rounded(dequantize(quantize(values, kinds[name]), kinds[name]) - values)
    OUT.write_text(json.dumps(golden, indent=1) + "\n")
    print(f"{OUT}: {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
