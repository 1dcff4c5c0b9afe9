"""Float arrays to the packed blocks of GGUF files, on the device.

`pack` is a pure function for use inside jitted programs, `quantize` takes a whole tensor, checks it, and compiles one
program for each type however many shapes there are. Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 have the same bits as llama.cpp's
reference (and `gguf.quants`). The other types have its layout, and scales from a search of our own, with a lower
squared error.
"""

from conversion.quantize.pack import QUANTIZABLE, pack
from conversion.quantize.to_device import quantize
from conversion.weights.fallback import fallback

__all__ = ["QUANTIZABLE", "fallback", "pack", "quantize"]
