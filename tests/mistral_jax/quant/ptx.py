"""Runs the few instructions of PTX that our kernels write, which no interpreter of Pallas runs."""

from __future__ import annotations

import re

import ml_dtypes
import numpy as np


class PTX:
    """Registers of 32 bits, by name."""

    def __init__(self, operands: dict[str, int]) -> None:
        self.registers = dict(operands)

    def run(self, text: str) -> None:
        body = text.removeprefix("{").removesuffix("}")
        for line in filter(None, map(str.strip, body.split(";"))):
            if not line.startswith(".reg"):
                name, arguments = line.split(" ", 1)
                target, *sources = (part.strip() for part in arguments.split(","))
                self.registers[target] = self._result(name, [self._value(source) for source in sources])

    def halves(self, dtype: str) -> np.ndarray:
        """The four floats of 16 bits in $0 and $1: float32 [4]."""
        words = np.array([self.registers["$0"], self.registers["$1"]], np.uint32)
        return words.view(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16).astype(np.float32)

    def _value(self, source: str) -> int:
        if re.fullmatch(r"0f[0-9A-F]{8}", source):  # a float by its bits
            return int(source[2:], 16)
        return int(source, 0) if re.fullmatch(r"0x[0-9a-f]+|\d+", source) else self.registers[source]

    def _result(self, name: str, x: list[int]) -> int:
        match name:
            case "shr.b32":
                return x[0] >> x[1]
            case "shl.b32":
                return (x[0] << x[1]) & 0xFFFFFFFF
            case "and.b32":
                return x[0] & x[1]
            case "or.b32":
                return x[0] | x[1]
            case "xor.b32":
                return x[0] ^ x[1]
            case "prmt.b32":
                choices = x[0].to_bytes(4, "little") + x[1].to_bytes(4, "little")
                return int.from_bytes(bytes(choices[x[2] >> 4 * i & 7] for i in range(4)), "little")
            case "add.rn.f32":
                a, b = (float(np.uint32(bits).view(np.float32)) for bits in x)
                return int(np.float32(a + b).view(np.uint32))
            case "fma.rn.f32":
                a, b, c = (float(np.uint32(bits).view(np.float32)) for bits in x)
                return int(np.float32(a * b + c).view(np.uint32))
            case "cvt.rn.bf16x2.f32" | "cvt.rn.f16x2.f32":
                kind = ml_dtypes.bfloat16 if "bf16" in name else np.float16
                high, low = (int(np.uint32(bits).view(np.float32).astype(kind).view(np.uint16)) for bits in x)
                return high << 16 | low
            case _:
                raise AssertionError(name)
