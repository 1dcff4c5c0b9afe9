"""What is read from a compiled GPU program; and, where XLA's compiler for NVIDIA GPUs is installed, how much the
programs of a 7B move."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from benchmarks.gpu.report import PALLAS, report

ROOT = Path(__file__).parents[2]

TRIPS = 'backend_config={"known_trip_count":{"n":"3"}}'
IN_PLACE = "output_to_operand_aliasing={{1}: (1, {})}"
PROGRAM = f"""HloModule jit_step, is_scheduled=true

%update (p0: bf16[4,8], p1: bf16[1,8], p2: s32[]) -> bf16[4,8] {{
  %p0 = bf16[4,8]{{1,0}} parameter(0)
  %p1 = bf16[1,8]{{1,0}} parameter(1)
  %p2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %new = bf16[4,8]{{1,0}} dynamic-update-slice(%p0, %p1, %p2, %zero)
}}

%lookup (p3: f32[100,16], p4: s32[2,1]) -> f32[2,16] {{
  %p3 = f32[100,16]{{1,0}} parameter(0)
  %p4 = s32[2,1]{{1,0}} parameter(1)
  ROOT %rows = f32[2,16]{{1,0}} gather(%p3, %p4), offset_dims={{1}}
}}

%body (state: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %state = (s32[], f32[8]{{0}}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[8]{{0}} get-tuple-element(%state), index=1
  %copy.1 = f32[8]{{0}} copy(%x)
  ROOT %next = (s32[], f32[8]{{0}}) tuple(%i, %copy.1)
}}

%condition (s: (s32[], f32[8])) -> pred[] {{
  %s = (s32[], f32[8]{{0}}) parameter(0)
  ROOT %more = pred[] constant(true)
}}

%small (a: f32[8]) -> f32[8] {{
  ROOT %a = f32[8]{{0}} parameter(0)
}}

%large (b: f32[8]) -> f32[8] {{
  %b = f32[8]{{0}} parameter(0)
  ROOT %copy.2 = f32[8]{{0}} copy(%b)
}}

ENTRY %main (q: f32[2,16], pool: bf16[4,8], new: bf16[1,8], table: f32[100,16]) -> f32[2,16] {{
  %pool = bf16[4,8]{{1,0}} parameter(0)
  %new.1 = bf16[1,8]{{1,0}} parameter(1)
  %at = s32[] parameter(2)
  %table = f32[100,16]{{1,0}} parameter(3)
  %ids = s32[2,1]{{1,0}} parameter(4)
  %state.1 = (s32[], f32[8]{{0}}) parameter(5)
  %flag = pred[] parameter(6)
  %vector = f32[8]{{0}} parameter(7)
  %written = bf16[4,8]{{1,0}} fusion(%pool, %new.1, %at), kind=kLoop, calls=%update
  %found = f32[2,16]{{1,0}} fusion(%table, %ids), kind=kLoop, calls=%lookup, metadata={{op_name="jit(f)/layer0/x"}}
  %same = f32[2,16]{{1,0}} bitcast(%found)
  %product = (f32[2,32]{{1,0}}, s8[4096]{{0}}) custom-call(%same), custom_call_target="__cublas$gemm"
  %mine = f32[2,16]{{1,0}} custom-call(%same, %written), custom_call_target="{PALLAS}"
  %loop = (s32[], f32[8]{{0}}) while(%state.1), condition=%condition, body=%body, {TRIPS}
  %one = f32[8]{{0}} conditional(%flag, %vector, %vector), true_computation=%large, false_computation=%small
  %stored = (f32[2,16]{{1,0}}, bf16[4,8]{{1,0}}) custom-call(%same, %pool), custom_call_target="{PALLAS}", {IN_PLACE}
  ROOT %out = f32[2,16]{{1,0}} bitcast(%mine)
}}
"""


def test_a_program_is_read() -> None:
    memory = SimpleNamespace(temp_size_in_bytes=1, argument_size_in_bytes=2, alias_size_in_bytes=3)
    compiled: Any = SimpleNamespace(as_text=lambda: PROGRAM, memory_analysis=lambda: memory)
    found = report(compiled, {"bf16[4,8]": 5})
    assert (found.temporary, found.arguments, found.in_place, found.conditionals) == (1, 2, 3, 1)
    kernels = {kernel.name: (kernel.kind, kernel.read, kernel.written, kernel.times) for kernel in found.kernels}
    assert kernels == {
        # In place: the new row is read and written, and its number is read.
        "written": ("fusion", 16 + 4, 16, 1),
        # Of the table only the rows that are looked up.
        "found": ("fusion", 128 + 8, 128, 1),
        # Scratch memory does not count.
        "product": ("__cublas$gemm", 128, 256, 1),
        # What the caller said of the pool, which is not read as a whole.
        "mine": (PALLAS, 128 + 5, 128, 1),
        # The pool is updated in place.
        "stored": (PALLAS, 128, 128, 1),
        "copy.1": ("copy", 32, 32, 3),
        "copy.2": ("copy", 32, 32, 1),
    }
    assert found.launches == 9
    assert found.moved == 36 + 264 + 384 + 261 + 256 + 3 * 64 + 64
    assert found.kinds()["copy"] == 4
    assert len(found.copies) == 2
    assert next(kernel for kernel in found.kernels if kernel.name == "found").scope == "jit(f)/layer0/x"


BOUNDS = {"bfloat16": 1.1, "int8": 1.15, "Q4_K": 1.15}
"""Bytes moved over bytes needed of a decode step."""
MOST_KERNELS = 12
"""Of a layer."""


needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("jax_plugins") is None or importlib.util.find_spec("jax_plugins.xla_cuda12") is None,
    reason="XLA's compiler for NVIDIA GPUs is not installed: pip install 'jax[cuda12]'",
)


def compiled(output: Path, **options: str) -> list[dict[str, Any]]:
    """What `benchmarks.gpu_programs` says of programs of a 7B."""
    command = [sys.executable, "-m", "benchmarks.gpu_programs", "--output", str(output)]
    command += [text for name, value in options.items() for text in (f"--{name}", value)]
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=900)
    programs = cast("list[dict[str, Any]]", json.loads(output.read_text())["programs"])
    assert programs
    for program in programs:
        assert program["temporary"] <= program["temporary_estimate"], program
    return programs


@pytest.mark.slow
@needs_compiler
def test_a_7b_moves_little_more_than_it_must(tmp_path: Path) -> None:
    weights = ",".join(BOUNDS)
    options = {"programs": "decode,prefill", "keys": "1024,4096", "weights": weights, "rows": "1,8,64"}
    for program in compiled(tmp_path / "programs.json", **options):
        assert program["copies"] == 0, program
        if program["program"] == "decode":
            assert program["moved"] <= BOUNDS[program["weights"]] * program["needed"], program
            assert program["kernels_of_a_layer"] <= MOST_KERNELS, program
        else:
            assert program["temporary"] <= 256 * 2**20, program


@pytest.mark.slow
@needs_compiler
def test_no_program_needs_more_memory_than_was_estimated(tmp_path: Path) -> None:
    programs = "decode,several,run,score,prefill,xlora,xlora-ahead,xlora-prefill,truncated,any-sampling"
    for rows, keys in (("64", "32768"), ("2", "512")):
        found = compiled(tmp_path / f"{rows}.json", programs=programs, rows=rows, keys=keys)
        largest = max(program["temporary"] for program in found)
        # Nor is it far too much.
        assert 4 * largest >= min(program["temporary_estimate"] for program in found)
