"""Adapters from files to the device: what arrives there is what the files hold, and what does not fit is named."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mistral_jax.adapters.bank
from conversion.adapters.errors import AdapterError
from conversion.adapters.lora.files import open_lora
from conversion.adapters.modules import ModuleKey
from conversion.adapters.xlora.ordering import derive_ordering, write_ordering
from mistral_jax.adapters.load_adapters import adapter_bytes, load_adapters, open_adapters
from mistral_jax.hub.files import ModelNotFoundError
from mistral_jax.model.config import MistralConfig
from tests.mistral_jax.hub.fake_hub import FakeHub
from tests.parity_xlora import GOLDENS, assemble

CONFIG = MistralConfig.from_folder(GOLDENS / "base")
ADAPTERS = {name: GOLDENS / "adapters" / name for name in "abcd"}


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    """Layerwise, of depth 3, with biases or without: number 3."""
    return assemble("03", tmp_path / "mixture")


def change_config(folder: Path, **changes) -> None:
    path = folder / "xlora_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(("spare", "rank"), [(0, 16), (2, 5)])
def test_the_device_gets_what_the_files_hold(mixture: Path, spare: int, rank: int) -> None:
    files = open_adapters(CONFIG, xlora=mixture)
    adapters, xlora = load_adapters(files, dtype=jnp.float32, spare=spare, spare_rank=rank)
    assert xlora is not None
    assert files.xlora is not None
    assert list(adapters.entries) == list(files.names) == list(files.xlora.config.adapters or ())
    assert xlora.num_experts == len(files.names)
    assert adapters.capacity == xlora.num_experts + spare
    for layer, (weight, bias) in zip(xlora.layers, files.xlora.classifier, strict=True):
        np.testing.assert_array_equal(layer.weight[...], weight)
        assert (layer.bias is None) == (bias is None)
        if layer.bias is not None:
            np.testing.assert_array_equal(layer.bias[...], bias)
    assert xlora.columns.count == files.xlora.num_columns
    assert dict(xlora.columns.index) == files.xlora.layer_index
    leaves = jax.tree.leaves(nnx.state(xlora))
    exact = adapters.nbytes + sum(x.nbytes for x in leaves)
    assert adapter_bytes(files, dtype=jnp.float32, spare=spare, spare_rank=rank) == exact


def test_bytes_of_large_factors_are_counted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    files = open_adapters(CONFIG, loras={"a": ADAPTERS["a"]})
    one = adapter_bytes(files, dtype=jnp.float32, spare=1, spare_rank=64)
    monkeypatch.setattr(mistral_jax.adapters.bank, "ONE_PRODUCT_BYTES", 0)  # as if they were
    apart = adapter_bytes(files, dtype=jnp.float32, spare=1, spare_rank=64)
    assert apart < one
    adapters, _ = load_adapters(files, dtype=jnp.float32, spare=1, spare_rank=64)
    assert apart == adapters.nbytes


def test_plain_adapters_get_the_names_that_they_are_given() -> None:
    files = open_adapters(CONFIG, loras={"poet": ADAPTERS["a"], "cook": str(ADAPTERS["b"])})
    adapters, xlora = load_adapters(files, dtype=jnp.bfloat16)
    assert xlora is None
    assert list(adapters.entries) == ["poet", "cook"]
    assert adapters.bank.layers[0]["qkv_proj"].a.dtype == jnp.bfloat16


def test_an_ordering_may_preload_further_adapters(mixture: Path, tmp_path: Path) -> None:
    path = tmp_path / "ordering.json"
    names = json.loads((mixture / "xlora_config.json").read_text())["adapters"]
    write_ordering(path, derive_ordering([open_lora(mixture / name) for name in names]))
    ordering = json.loads(path.read_text())
    ordering["preload_adapters"] = [{"name": "extra", "adapter_model_id": str(ADAPTERS["d"])}]
    path.write_text(json.dumps(ordering))
    files = open_adapters(CONFIG, xlora=mixture, ordering=path, loras={"more": ADAPTERS["a"]})
    assert files.names == (*names, "extra", "more")
    assert files.xlora is not None
    assert len(files.xlora.adapters) == len(names)
    with pytest.raises(AdapterError, match="the ordering file preloads an adapter 'extra' already"):
        open_adapters(CONFIG, xlora=mixture, ordering=path, loras={"extra": ADAPTERS["a"]})


def test_what_does_not_belong_together_is_refused_by_name(mixture: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="an ordering belongs to an X-LoRA model"):
        open_adapters(CONFIG, ordering=tmp_path / "ordering.json")
    with pytest.raises(AdapterError, match="an adapter of the X-LoRA model is called 'a'"):
        open_adapters(CONFIG, xlora=mixture, loras={"a": ADAPTERS["b"]})
    with pytest.raises(ModelNotFoundError, match="neither a folder here nor a Hub id"):
        open_adapters(CONFIG, loras={"a": "no such thing"})
    with pytest.raises(ModelNotFoundError, match="is a file; expected the folder"):
        open_adapters(CONFIG, loras={"a": ADAPTERS["a"] / "adapter_config.json"})
    wider = MistralConfig(
        vocab_size=97, hidden_size=64, intermediate_size=44, num_layers=3, num_heads=6, num_kv_heads=2, head_dim=10
    )
    with pytest.raises(AdapterError, match=ModuleKey(0, "q_proj").path):
        open_adapters(wider, loras={"a": ADAPTERS["a"]})
    with pytest.raises(AdapterError, match="hidden states of 60 values"):
        open_adapters(wider, xlora=mixture)


def test_an_xlora_model_of_another_base_is_refused_where_both_are_named(mixture: Path) -> None:
    change_config(mixture, base_model_id="lab/one")
    assert open_adapters(CONFIG, xlora=mixture, base_model="lab/One").xlora is not None
    assert open_adapters(CONFIG, xlora=mixture, base_model=str(GOLDENS / "base")).xlora is not None
    with pytest.raises(AdapterError, match=r"lab/one, and .* for lab/two: .*give a folder that holds it"):
        open_adapters(CONFIG, xlora=mixture, base_model="lab/two")


def test_an_adapter_of_another_base_is_told_and_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = Path(shutil.copytree(ADAPTERS["a"], tmp_path / "a"))
    config = folder / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": "lab/one"}))
    with caplog.at_level(logging.WARNING):
        open_adapters(CONFIG, loras={"a": folder}, base_model="lab/one")
        assert caplog.messages == []
        open_adapters(CONFIG, loras={"a": folder}, base_model="lab/two")
    assert caplog.messages == ["adapter a was trained for lab/one; it is used with lab/two"]


SCRIPT = """
import json, sys
from mistral_jax.hub.files import ModelNotFoundError, find_adapter
try:
    print(json.dumps({"folder": str(find_adapter(**json.loads(sys.argv[1])))}))
except ModelNotFoundError as error:
    print(json.dumps({"error": str(error)}))
"""


def test_the_hub_gives_the_files_of_adapters_and_nothing_else(mixture: Path, tmp_path: Path) -> None:
    repo = tmp_path / "hub" / "lab" / "mixture"
    shutil.copytree(mixture, repo)
    for name in ("model.safetensors", "README.md", "pytorch_model.bin", "a/optimizer.pt"):
        (repo / name).write_bytes(b"not needed")
    with FakeHub(tmp_path / "hub").running() as hub:
        home = tmp_path / "home"
        folder = Path(hub.run(SCRIPT, {"name": "lab/mixture"}, home=home)["folder"])
        fetched = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert fetched == {str(path.relative_to(mixture)) for path in mixture.rglob("*") if path.is_file()}
        files = open_adapters(CONFIG, xlora=folder)
        assert files.names == open_adapters(CONFIG, xlora=mixture).names
        assert "no model lab/nothing" in hub.run(SCRIPT, {"name": "lab/nothing"}, home=home)["error"]
        old = hub.run(SCRIPT, {"name": "lab/mixture", "revision": "v9"}, home=home)
        assert "has no revision 'v9'" in old["error"]
