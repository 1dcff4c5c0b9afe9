"""A sample of the mutated files; MISTRAL_JAX_FUZZ_FILES says how many of each kind."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz_files.kinds import DOCUMENTED, all_kinds
from tests.fuzz_files.mutations import mutated_json, mutated_protobuf

pytestmark = pytest.mark.slow

COUNT = int(os.environ.get("MISTRAL_JAX_FUZZ_FILES", "120"))
NAMES = ("config.json", "params.json", "tokenizer.json", "tekken.json", "tokenizer.model", "side files")
NAMES += ("generation_config.json", "adapter_config.json", "xlora_config.json", "ordering")
NAMES += ("safetensors", "safetensors index", "GGUF")


@pytest.fixture(scope="module")
def results() -> dict[str, dict[str, Any]]:
    """What became of the mutated files, by kind. One process reads all: it is killed by what would kill a server."""
    command = [sys.executable, "-m", "tests.fuzz_files", "--count", str(COUNT), "--seed", "1"]
    done = subprocess.run(
        command,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=240 + COUNT,
    )
    assert done.returncode in (0, 1), f"the reader died ({done.returncode}): {done.stderr[-2000:]}"
    listed = [json.loads(line) for line in done.stdout.splitlines()]
    return {result["kind"]: result for result in listed}


@pytest.mark.timeout(600 + COUNT)
@pytest.mark.parametrize("name", NAMES)
def test_a_mutated_file_loads_or_is_refused_in_one_line(results: dict[str, dict[str, Any]], name: str) -> None:
    result = results[name]
    assert not result["escaped"], "\n".join(
        f"number {found['number']}, {found['place']}: {problem}"
        for found in result["escaped"]
        for problem in found["problems"]
    )
    # Some faults harm nothing, such as a changed letter in a text. Were that none or most, the faults would test
    # little.
    assert 0.01 * COUNT <= result["loaded"] <= 0.7 * COUNT
    # Measured: at most 0.75 s and 90 MiB. A tokenizer of two million ids may take 200 MiB.
    assert result["slowest"] < 5
    assert result["grown_mib"] < 400


def test_good_files_are_read_by_every_reader(tmp_path: Path) -> None:
    kinds = all_kinds(tmp_path)
    assert tuple(kinds) == NAMES
    refused: dict[str, str] = {}
    for kind in kinds.values():
        for path, good in kind.seeds:
            path.write_bytes(good)
            for reader in kind.readers(path):
                try:
                    reader()
                except DOCUMENTED as error:
                    refused[kind.name] = str(error)
    # One of the files of GGUF is a container without a model.
    assert refused.keys() <= {"GGUF"}, refused
    assert "mixture of experts" in refused.get("GGUF", "mixture of experts")


def test_the_same_number_gives_the_same_file() -> None:
    good = json.dumps({"a": [1, {"b": "text"}], "c": None}).encode()
    for mutate, data in ((mutated_json, good), (mutated_protobuf, b"\x0a\x03\x0a\x01a\x12\x02\x18\x02")):
        made = [mutate(data, random.Random(f"1 {number}")) for number in range(200)]
        assert made == [mutate(data, random.Random(f"1 {number}")) for number in range(200)]
        assert sum(one != data for one in made) > 150
