"""Tensors of GGUF files as float arrays: packed bytes go to the device and are unpacked there.

`unpack` is a pure function for use inside jitted programs, `dequantize` takes bytes from the host to a whole array on a device.
In float32 both give the very bits of `gguf.quants.dequantize`.
"""

from conversion.dequantize.to_device import dequantize
from conversion.dequantize.unpack import PACKED, UNPACKABLE, unpack, unpack_runs

__all__ = ["PACKED", "UNPACKABLE", "dequantize", "unpack", "unpack_runs"]
