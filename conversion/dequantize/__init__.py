"""Tensors of GGUF files as float arrays: packed bytes go to the device and are unpacked there.

`unpack` is a pure function for use inside jitted programs, `dequantize` takes bytes from the host to a whole array on a
device, `dequantize_into` to memory on the host.
In float32 both give the same bits as `gguf.quants.dequantize`.
"""

from conversion.dequantize.to_device import dequantize, dequantize_into
from conversion.dequantize.unpack import PACKED, UNPACKABLE, unpack, unpack_runs

__all__ = ["PACKED", "UNPACKABLE", "dequantize", "dequantize_into", "unpack", "unpack_runs"]
