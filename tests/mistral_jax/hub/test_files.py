"""Finding models: folders, files, and the Hub (a local one), with and without tokens and network."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from conversion.weights.tensor_source import WeightFileError
from conversion.weights.weight_files import find_weight_files
from mistral_jax.checkpoint.weights import save_pretrained
from mistral_jax.hub.files import DEMO_FOLDER, ModelNotFoundError, find_model
from mistral_jax.model.config import MistralConfig
from mistral_jax.model.mistral import Mistral
from tests.mistral_jax.hub.fake_hub import FakeHub

ROOT = Path(__file__).parents[3]
REPO = "somebody/tiny-model"

# In a process of its own: huggingface_hub reads its environment when it is imported.
SCRIPT = """
import json, sys
from mistral_jax.hub.files import ModelNotFoundError, find_model
options = json.loads(sys.argv[1])
try:
    files = find_model(options.pop("name"), **options)
    print(json.dumps({"folder": str(files.folder), "weights": [str(path) for path in files.fetch_weights()]}))
except (ModelNotFoundError, ValueError) as error:
    print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
"""


@pytest.fixture
def hub(tmp_path: Path):
    folder = tmp_path / "hub" / REPO
    config = MistralConfig(
        vocab_size=97, hidden_size=20, intermediate_size=24, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=10
    )
    save_pretrained(Mistral(config, rngs=nnx.Rngs(0)), folder, dtype=jnp.float32)
    (folder / "README.md").write_text("not needed")
    (folder / "pytorch_model.bin").write_bytes(b"never to be read")
    (folder / "consolidated.safetensors").write_bytes(b"the same weights once more")
    (folder / "finetuned.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with FakeHub(tmp_path / "hub").running() as hub:
        yield hub


def resolve(hub: FakeHub, home: Path, env: dict[str, str] | None = None, **options) -> dict:
    return hub.run(SCRIPT, {"name": REPO, **options}, home=home, env=env)


def test_a_hub_id_downloads_what_is_needed_and_nothing_else(hub: FakeHub, tmp_path: Path):
    found = resolve(hub, tmp_path / "home")
    folder = Path(found["folder"])
    assert found["weights"] == [str(folder / "model.safetensors")]
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    original = np.fromfile(hub.root / REPO / "model.safetensors", np.uint8)
    assert (np.fromfile(found["weights"][0], np.uint8) == original).all()


def test_a_second_time_needs_no_network(hub: FakeHub, tmp_path: Path):
    first = resolve(hub, tmp_path / "home")
    hub.requests.clear()
    assert resolve(hub, tmp_path / "home", {"HF_HUB_OFFLINE": "1"}) == first
    assert hub.requests == []
    unreachable = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    assert resolve(hub, tmp_path / "home", unreachable) == first


def test_a_weight_file_may_be_a_name_in_the_repository(hub: FakeHub, tmp_path: Path):
    found = resolve(hub, tmp_path / "home", weight_files=["finetuned.safetensors"])
    assert [Path(path).name for path in found["weights"]] == ["finetuned.safetensors"]
    missing = resolve(hub, tmp_path / "home", weight_files=["nothing.safetensors"])
    assert "'nothing.safetensors' is neither a file here nor in the repository" in missing["error"]


def test_a_private_repository_opens_to_its_token_only(hub: FakeHub, tmp_path: Path):
    hub.token = "hf_secret"
    refused = resolve(hub, tmp_path / "home", token=False)
    assert "is private and the token does not open it" in refused["error"]
    assert "weights" in resolve(hub, tmp_path / "home", token="hf_secret")
    assert "weights" in resolve(hub, tmp_path / "home2", {"HF_TOKEN": "hf_secret"})
    cached = tmp_path / "home3"
    cached.mkdir()
    (cached / "token").write_text("hf_secret")
    assert "weights" in resolve(hub, cached)


def test_what_is_not_there_is_said_plainly(hub: FakeHub, tmp_path: Path):
    assert (
        "there is no model somebody/else on the Hub" in resolve(hub, tmp_path / "home", name="somebody/else")["error"]
    )
    assert "has no revision 'v9'" in resolve(hub, tmp_path / "home", revision="v9")["error"]
    offline = resolve(hub, tmp_path / "home", {"HF_HUB_OFFLINE": "1"}, name="somebody/else")
    assert "not in the local cache and the Hub cannot be reached" in offline["error"]


def test_folders_files_and_the_demo_are_found_without_the_hub(hub: FakeHub):
    folder = hub.root / REPO
    assert find_model("demo").folder == DEMO_FOLDER
    assert find_model(str(folder)).folder == folder
    single = find_model(str(folder / "finetuned.safetensors"))
    assert (single.folder, single.fetch_weights()) == (folder, [folder / "finetuned.safetensors"])
    chosen = find_model(str(folder), weight_files=["finetuned.safetensors"])
    assert chosen.fetch_weights() == [folder / "finetuned.safetensors"]
    assert hub.requests == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no such thing", "neither a folder or file here nor a Hub id"),
        ("../../etc", "neither a folder or file here nor a Hub id"),
        (str(Path(__file__)), "is a .py file; expected a folder, a GGUF file or a .safetensors file"),
    ],
)
def test_names_that_cannot_be_models_are_refused(name: str, message: str):
    if name == "../../etc" and Path(name).exists():
        pytest.skip("that folder exists from here")
    with pytest.raises(ModelNotFoundError, match=message):
        find_model(name)


def test_pickled_weights_are_refused_by_name(tmp_path: Path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(WeightFileError, match=r"pytorch_model\.bin.*can run code"):
        find_weight_files(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(WeightFileError, match="has no weights"):
        find_weight_files(tmp_path)


def test_weights_come_from_the_commit_that_the_configuration_came_from(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A branch may move on between the two."""
    asked: list[str | None] = []

    def snapshot(repo_id: str, patterns: list[str], *, revision: str | None, token: str | bool | None) -> Path:
        asked.append(revision)
        folder = tmp_path / "snapshots" / "c0ffee"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text('{"architectures": ["MistralForCausalLM"]}')
        (folder / "model.safetensors").write_bytes(b"")
        return folder

    monkeypatch.setattr("mistral_jax.hub.files._snapshot", snapshot)
    find_model("acme/model", revision="main").fetch_weights()
    assert asked == ["main", "c0ffee"]
