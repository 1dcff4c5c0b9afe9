"""What a compiled GPU program does: its kernels, and the bytes that each reads and writes in device memory.

The figures are read from the text of the scheduled program. Of an operand that a kernel only slices or gathers from,
the slices count; what is updated in place counts by what is written. A Pallas kernel's operands count whole, except
those for which the caller knows better (see `report`); what it updates in place does not count, as nobody can tell how
much that is: in `mistral_jax.model.store_kernel`, the keys and values of new tokens.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax

from mistral_jax.model.kv_cache import LayerCache

PALLAS = "__gpu$xla.gpu.triton"

_FREE = {"parameter", "constant", "bitcast", "get-tuple-element", "tuple", "after-all", "partition-id", "iota"}
"""Instructions that launch nothing."""
_WINDOWS = {"slice", "dynamic-slice", "gather"}
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}
"""Instructions that are carried out in place, and the number of the operand that they write."""
_SAME = {"bitcast", "reshape", "copy", "convert", "transpose"}
"""Of these, a fusion reads as much of the operand as is read of the result."""
_BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16, "f16": 16, "s64": 64}
_BITS |= {"u64": 64, "f64": 64, "f8e4m3fn": 8, "f8e5m2": 8}

_LINE = re.compile(r"\s*(ROOT )?%(\S+) = (\((?:[^()]|\([^()]*\))*\)|\S+) ([\w-]+)\((.*)")
_COMPUTATION = re.compile(r"(ENTRY )?%(\S+) \(.*\{$")


@dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    kind: str
    operands: tuple[str, ...]
    text: str
    """What follows the operands."""
    is_root: bool

    def named(self, key: str) -> str | None:
        """The computation in an attribute such as `calls=%name`."""
        found = re.search(rf"\b{key}=%([\w.\-]+)", self.text)
        return found[1] if found else None

    @property
    def target(self) -> str:
        """Of a custom call."""
        found = re.search(r'custom_call_target="([^"]+)"', self.text)
        return found[1] if found else ""


@dataclass(frozen=True)
class Kernel:
    """Something that a program launches."""

    name: str
    kind: str
    """For example fusion, copy, or the target of a custom call."""
    scope: str
    """Where in the model it comes from: JAX's name stack."""
    read: int
    """Bytes."""
    written: int
    """Bytes."""
    times: int = 1
    """How often a program launches it: more than once in a loop."""

    @property
    def moved(self) -> int:
        return (self.read + self.written) * self.times


@dataclass(frozen=True)
class Report:
    """What a program does in one run. Loops of unknown length count once, conditionals by their larger branch."""

    kernels: tuple[Kernel, ...]
    temporary: int
    """Bytes of temporary memory."""
    arguments: int
    """Bytes."""
    in_place: int
    """Bytes of arguments that are updated in place."""
    conditionals: int
    """How often the program decides on the device which kernels to launch."""

    @property
    def launches(self) -> int:
        return sum(kernel.times for kernel in self.kernels)

    @property
    def moved(self) -> int:
        """Bytes read and written in device memory."""
        return sum(kernel.moved for kernel in self.kernels)

    @property
    def copies(self) -> tuple[Kernel, ...]:
        """Kernels that copy or transpose, and nothing else."""
        return tuple(kernel for kernel in self.kernels if kernel.kind in ("copy", "transpose", "copy-start"))

    def kinds(self) -> Counter[str]:
        counts: Counter[str] = Counter()
        for kernel in self.kernels:
            counts[kernel.kind] += kernel.times
        return counts


def report(compiled: jax.stages.Compiled, reads: Mapping[str, int] | None = None) -> Report:
    """Read a compiled program.

    Args:
      reads: how many bytes a Pallas kernel reads of an operand, by its type and shape as in `bf16[256,8,128,128]`.
    """
    program = _Program(compiled.as_text() or "", reads or {})
    kernels = tuple(program.launched(program.entry))
    memory: Any = compiled.memory_analysis()
    return Report(
        kernels=kernels,
        temporary=memory.temp_size_in_bytes,
        arguments=memory.argument_size_in_bytes,
        in_place=memory.alias_size_in_bytes,
        conditionals=program.conditionals,
    )


def _hlo_shape(x: jax.Array | jax.ShapeDtypeStruct) -> str:
    """An array's type and shape as in programs, such as `bf16[256,8,128,128]`; of floats."""
    name = {"bfloat16": "bf16", "float32": "f32", "float16": "f16"}[x.dtype.name]
    return f"{name}[{','.join(map(str, x.shape))}]"


def pool_reads(layer: LayerCache, tokens: int) -> dict[str, int]:
    """What the kernel of attention reads of a layer's pools, whose rows hold so many tokens together: for `report`."""
    _, heads, _, head_dim = layer.keys.shape
    read = tokens * heads * head_dim * layer.keys.dtype.itemsize
    return {_hlo_shape(x): read for x in jax.tree.leaves(layer)}


@dataclass
class _Program:
    text: str
    reads: Mapping[str, int]
    entry: str = ""
    conditionals: int = 0
    computations: dict[str, dict[str, _Instruction]] = field(default_factory=dict[str, dict[str, _Instruction]])

    def __post_init__(self) -> None:
        current: dict[str, _Instruction] = {}
        for line in self.text.splitlines():
            if header := _COMPUTATION.match(line):
                current = self.computations[header[2]] = {}
                if header[1]:
                    self.entry = header[2]
            elif found := _LINE.match(line):
                root, name, shape, kind, rest = found.groups()
                inside, text = _operands(rest)
                operands = tuple(re.findall(r"%([\w.\-]+)", inside))
                current[name] = _Instruction(name, shape, kind, operands, inside + text, root is not None)

    def launched(self, computation: str, times: int = 1) -> Iterator[Kernel]:
        instructions = self.computations[computation]
        for each in instructions.values():
            match each.kind:
                case kind if kind in _FREE or kind.endswith("-done"):
                    continue
                case "while":
                    trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', each.text)
                    body = each.named("body")
                    if body is not None:
                        yield from self.launched(body, times * (int(trips[1]) if trips else 1))
                case "call":
                    body = each.named("to_apply")
                    if body is not None:
                        yield from self.launched(body, times)
                case "conditional":
                    self.conditionals += times
                    branches = re.search(r"branch_computations=\{([^}]*)\}", each.text)
                    names = re.findall(r"%([\w.\-]+)", branches[1]) if branches else []
                    names += [name for key in ("true_computation", "false_computation") if (name := each.named(key))]
                    options = [list(self.launched(name, times)) for name in names]
                    yield from max(options, key=lambda kernels: sum(k.moved for k in kernels), default=[])
                case _:
                    yield self._kernel(each, instructions, times)

    def _kernel(self, each: _Instruction, instructions: Mapping[str, _Instruction], times: int) -> Kernel:
        scope = re.search(r'op_name="([^"]*)"', each.text)
        called = each.named("calls") if each.kind == "fusion" else None
        kind = each.target if each.kind == "custom-call" else each.kind
        shapes = [instructions[name].shape if name in instructions else "" for name in each.operands]
        if called is not None:
            read, written = self._fusion(self.computations[called])
        else:
            in_place = {int(number) for number in re.findall(r"\{\d*\}: \((\d+), \{\}\)", each.text)}
            updated = sum(_nbytes(shape) for i, shape in enumerate(shapes) if i in in_place)
            read = sum(self._operand(kind, shape) for i, shape in enumerate(shapes) if i not in in_place)
            written = _nbytes(each.shape, workspace=kind.startswith("__cu")) - updated
        return Kernel(each.name, kind, scope[1] if scope else "", read, written, times)

    def _operand(self, kind: str, shape: str) -> int:
        plain = shape.split("{")[0]
        return self.reads[plain] if kind == PALLAS and plain in self.reads else _nbytes(shape)

    def _fusion(self, body: Mapping[str, _Instruction]) -> tuple[int, int]:
        """Bytes that a fusion reads and writes."""
        users: dict[str, list[_Instruction]] = {}
        for each in body.values():
            for name in each.operands:
                users.setdefault(name, []).append(each)

        def read(name: str) -> int:
            whole, total = _nbytes(body[name].shape), 0
            for user in users.get(name, []):
                if user.kind in _WINDOWS and user.operands[0] == name:
                    total += _nbytes(user.shape)
                elif user.kind in _UPDATES and user.operands[0] == name:
                    continue
                elif user.kind in _SAME and not user.is_root:
                    part = read(user.name)
                    total += part * whole // max(_nbytes(user.shape), 1)
                else:
                    return whole
            return min(total, whole)

        reads = sum(read(each.name) for each in body.values() if each.kind == "parameter")
        root = next(each for each in body.values() if each.is_root)
        return reads, sum(self._written(body, name) for name in _outputs(body, root))

    def _written(self, body: Mapping[str, _Instruction], name: str) -> int:
        each = body[name]
        while each.kind == "bitcast":
            each = body[each.operands[0]]
        if each.kind in _UPDATES:
            return _nbytes(body[each.operands[_UPDATES[each.kind]]].shape)
        return _nbytes(each.shape)


def _outputs(body: Mapping[str, _Instruction], root: _Instruction) -> tuple[str, ...]:
    return root.operands if root.kind == "tuple" else (root.name,)


def _operands(rest: str) -> tuple[str, str]:
    """Split what follows `kind(` at the parenthesis that closes it."""
    depth = 1
    for i, character in enumerate(rest):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return rest[:i], rest[i + 1 :]
    return rest, ""


def _nbytes(shape: str, *, workspace: bool = False) -> int:
    """Of a shape such as `(bf16[8,4096]{1,0}, s32[])`.

    Args:
      workspace: leave out a library's scratch memory, the last bytes of the tuple.
    """
    found = re.findall(r"(\w+)\[([\d,]*)\]", shape)
    if workspace and len(found) > 1 and found[-1][0] in ("s8", "u8"):
        found = found[:-1]
    return sum(_BITS.get(kind, 32) * math.prod(map(int, filter(None, sizes.split(",")))) // 8 for kind, sizes in found)
