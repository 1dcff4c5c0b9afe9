"""The commands inspect, convert and verify: what they print, how they end, and what they leave behind."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from conversion.adapters.xlora.files import open_xlora
from conversion.adapters.xlora.ordering import read_ordering
from serving.commands.cli import cli
from tests.conversion.adapters.folders import write_hub
from tests.conversion.gguf_files import rewritten
from tests.conversion.tiny_models import GOLDENS, write_folder
from tests.mistral_jax.hub.fake_hub import FakeHub

pytestmark = pytest.mark.slow

NARROW = str(GOLDENS / "narrow.Q4_0.gguf")


@pytest.fixture(autouse=True)
def no_compilation_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache would be switched on for this whole process."""
    monkeypatch.setenv("MISTRAL_JAX_COMPILATION_CACHE", "none")


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(cli, arguments, catch_exceptions=False, standalone_mode=False)


def fails(match: str, *arguments: str) -> None:
    with pytest.raises((ValueError, OSError), match=match):
        invoke(*arguments)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("models") / "tiny")


def test_inspect_prints_a_file_or_its_json() -> None:
    text = invoke("inspect", NARROW).output
    assert "GGUF version 3" in text
    assert "blk.0.attn_q.weight" in text
    assert "weights with --quant auto" in text
    assert "blk.0.attn_q.weight" not in invoke("inspect", NARROW, "--no-tensors").output
    data = json.loads(invoke("inspect", NARROW, "--json").output)
    assert data["tensors"][0]["type"] in {"Q4_0", "F32", "Q6_K", "Q8_0"}
    assert data["memory"]["weights"]["none"] > data["memory"]["weights"]["auto"]


def test_inspect_lists_a_folder_of_files(tmp_path: Path) -> None:
    shutil.copy(NARROW, tmp_path)
    shutil.copy(GOLDENS / "wide.Q6_K.gguf", tmp_path)
    lines = invoke("inspect", str(tmp_path)).output.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["narrow.Q4_0.gguf", "wide.Q6_K.gguf"]
    assert len(json.loads(invoke("inspect", str(tmp_path), "--json").output)) == 2
    rewritten(Path(NARROW), tmp_path / "a vocabulary.gguf", {}, only=frozenset())
    (tmp_path / "broken.gguf").write_bytes(Path(NARROW).read_bytes()[:3000])
    lines = invoke("inspect", str(tmp_path)).output.splitlines()
    assert [line.strip().split("  ")[0] for line in lines[2:6]] == [
        *("a vocabulary.gguf", "broken.gguf", "narrow.Q4_0.gguf", "wide.Q6_K.gguf")
    ]
    assert lines[6].startswith("PROBLEM")
    assert "broken.gguf" in lines[6]
    data = json.loads(invoke("inspect", str(tmp_path), "--json").output)
    assert [set(entry) == {"path", "problem"} for entry in data] == [False, True, False, False]
    fails("no file or folder", "inspect", str(tmp_path / "missing"))


def test_inspect_takes_what_convert_takes(tmp_path: Path, model: Path) -> None:
    assert "layers.0.self_attn.q_proj" in invoke("inspect", "demo").output
    assert "adapters" in invoke("inspect", "demo-xlora").output
    shutil.copytree(model, tmp_path / "hub" / "lab" / "tiny")
    with FakeHub(tmp_path / "hub").running() as hub:
        script = "import contextlib, io, json, sys\nfrom serving.commands.tools import run_inspect\n" + (
            "out = io.StringIO()\n"
            "with contextlib.redirect_stdout(out):\n"
            "    run_inspect('lab/tiny', as_json=True, tensors=True)\n"
            "print(json.dumps(json.loads(out.getvalue())))"
        )
        found = hub.run(script, home=tmp_path / "home")
    assert found["tensors"] == json.loads(invoke("inspect", str(model), "--json").output)["tensors"]


def test_arguments_that_make_no_sense_are_refused_before_any_work(tmp_path: Path) -> None:
    fails("no name for something new", "convert", NARROW, "/", "--overwrite")
    fails("no name for something new", "convert", NARROW, "..", "--overwrite")
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    fails(r"binary is no text in UTF-8: .* at byte 0", "verify", NARROW, NARROW, "--text", str(binary))
    fails("dtype is 'half'", "verify", NARROW, str(tmp_path / "missing"), "--dtype", "half")


def test_the_suffix_of_a_gguf_file_may_be_written_in_capitals(tmp_path: Path) -> None:
    invoke("convert", NARROW, str(tmp_path / "X.GGUF"))
    assert (tmp_path / "X.GGUF").read_bytes()[:4] == b"GGUF"


def test_convert_goes_by_the_name_of_the_destination(model: Path, tmp_path: Path) -> None:
    file, folder, again = tmp_path / "x.gguf", tmp_path / "x", tmp_path / "y.gguf"
    done = invoke("convert", str(model), str(file), "--type", "Q8_0", "--name", "My Model")
    assert f"{file}: " in done.output
    assert "bits per weight" in done.output
    assert json.loads(invoke("inspect", str(file), "--json").output)["metadata"]["general.name"] == "My Model"
    assert "16.00 bits per weight" in invoke("convert", str(file), str(folder)).output
    assert (folder / "tokenizer.json").is_file()
    assert "32.00 bits per weight" in invoke("convert", str(file), str(folder), "--overwrite", "--type", "F32").output
    assert "32.00 bits per weight" in invoke("convert", str(file), str(again), "--type", "f32").output
    assert invoke("verify", str(folder), str(again), "--no-logits", "--max-rms", "0").return_value == 0


def test_convert_refuses_what_makes_no_sense(model: Path, tmp_path: Path) -> None:
    fails("does not end in .gguf", "convert", str(model), str(tmp_path / "x"))
    fails("no type 'q9'", "convert", str(model), str(tmp_path / "x.gguf"), "--type", "q9")
    fails("cannot be stored as 'q8_0'", "convert", NARROW, str(tmp_path / "x"), "--type", "q8_0")
    fails("--name is for GGUF files", "convert", NARROW, str(tmp_path / "x"), "--name", "y")
    fails("give the folder", "convert", str(model / "model.safetensors"), str(tmp_path / "x.gguf"))
    fails("neither a folder or file here nor a Hub id", "convert", "no such thing", str(tmp_path / "x.gguf"))
    fails("exists already", "convert", NARROW, str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_verify_ends_with_1_where_a_limit_is_exceeded(model: Path, tmp_path: Path) -> None:
    other = str(tmp_path / "x.gguf")
    invoke("convert", str(model), other, "--type", "q8_0")
    (tmp_path / "text").write_text("the cat sat on the mat")
    compare = ("verify", str(model), other, "--text", str(tmp_path / "text"))
    done = invoke(*compare, "--max-rms", "0.01", "--max-kl", "1")
    assert done.return_value == 0
    assert "perplexity" in done.output
    assert "FAILED" not in done.output
    done = invoke(*compare, "--max-rms", "0.001", "--max-kl", "0")
    assert done.return_value == 1
    assert done.output.count("FAILED") == 2
    data = json.loads(invoke(*compare, "--json", "--max-tokens", "2", "--max-rms", "0.001").output)
    assert data["logits"]["tokens"] == 2
    assert len(data["failures"]) == 1
    assert data["relative_rms"] == max(tensor["relative_rms"] for tensor in data["tensors"])
    fails("expected one of none, auto", *compare, "--quant", "q5_0")


def test_sigterm_leaves_nothing(model: Path, tmp_path: Path) -> None:
    code = (
        "import time, conversion.to_gguf as m; from serving.commands.cli import main;"
        "write = m.GGUFWriter.write;"
        "m.GGUFWriter.write = lambda *a: (print('writing', flush=True), time.sleep(120), write(*a));"
        "main()"
    )
    command = [sys.executable, "-c", code, "convert", str(model), str(tmp_path / "x.gguf"), "--type", "f32"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        assert [entry.name for entry in tmp_path.iterdir()] == [".x.gguf.partial"]
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 128 + signal.SIGTERM
    assert time.monotonic() - start < 60
    assert list(tmp_path.iterdir()) == []


def test_errors_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF\3\0\0\0")
    command = [sys.executable, "-W", "error", "-m", "serving.commands.cli", "inspect", str(tmp_path / "x.gguf")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1


def test_an_ordering_is_written_for_a_mixture(tmp_path: Path) -> None:
    mixture, out = str(write_hub(tmp_path / "x")), tmp_path / "ordering.json"
    done = invoke("convert", "ordering", mixture, str(out))
    assert "3 adapters (adapter_1, adapter_2, adapter_10), 6 modules, for tiny-lab/tiny-base" in done.output
    ordering = read_ordering(out)
    assert ordering.order == ("adapter_1", "adapter_2", "adapter_10")
    assert open_xlora(mixture, ordering=ordering).layer_index == open_xlora(mixture).layer_index
    fails("exists already", "convert", "ordering", mixture, str(out))
    order = "adapter_10, adapter_2,adapter_1"
    invoke("convert", "ordering", mixture, str(out), "--order", order, "--base-model-id", "lab/b", "--overwrite")
    ordering = read_ordering(out)
    assert (ordering.order, ordering.base_model_id) == (("adapter_10", "adapter_2", "adapter_1"), "lab/b")


def test_orderings_that_cannot_be_written(tmp_path: Path) -> None:
    mixture, out = write_hub(tmp_path / "x", base_model_id=None), str(tmp_path / "ordering.json")
    fails("does not say which base model .* --base-model-id", "convert", "ordering", str(mixture), out)
    base = ("--base-model-id", "lab/b")
    fails(
        "expected each of these names once: adapter_1,adapter_2,adapter_10",
        *("convert", "ordering", str(mixture), out, *base, "--order", "adapter_1,adapter_2"),
    )
    fails("is no X-LoRA model", "convert", "ordering", str(mixture / "adapter_1"), out, *base)
    assert not (tmp_path / "ordering.json").exists()


def test_help_shows_both_kinds_of_conversion() -> None:
    text = " ".join(invoke("convert", "--help").output.split())
    assert "SOURCE DESTINATION" in text
    assert "mistral-jax convert ordering XLORA_FOLDER OUT.json" in text
    assert "convert ordering [OPTIONS] XLORA_FOLDER OUT.json" in invoke("convert", "ordering", "--help").output
