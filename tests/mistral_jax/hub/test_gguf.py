"""Finding GGUF files: paths, folders, and the Hub (a local one)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mistral_jax.hub.files import ModelNotFoundError, find_gguf, find_model
from tests.mistral_jax.hub.fake_hub import FakeHub

ROOT = Path(__file__).parents[3]
ONE, MANY, SPLIT = "somebody/one-GGUF", "somebody/many-GGUF", "somebody/split-GGUF"
BRACKETS, STUB = "somebody/brackets-GGUF", "somebody/stub-GGUF"

# In a process of its own: huggingface_hub reads its environment when it is imported.
SCRIPT = """
import json, sys
from mistral_jax.hub.files import ModelNotFoundError, find_gguf, find_model
try:
    options = json.loads(sys.argv[2])
    find = find_model if options.pop("any_format", False) else find_gguf
    files = find(*json.loads(sys.argv[1]), **options)
    tokenizer = files.tokenizer_folder and sorted(path.name for path in files.tokenizer_folder.iterdir())
    here = sorted(path.name for path in files.folder.iterdir())
    print(json.dumps({"gguf": str(files.gguf), "here": here, "tokenizer": tokenizer}))
except (ModelNotFoundError, ValueError) as error:
    print(json.dumps({"error": str(error)}))
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    contents = {
        ONE: ["model.Q8_0.gguf", "README.md"],
        MANY: ["a.Q4_K_M.gguf", "a.Q8_0.gguf"],
        SPLIT: ["b-00001-of-00002.gguf", "b-00002-of-00002.gguf", "README.md"],
        BRACKETS: ["m[v1].gguf", "mv.gguf"],
        STUB: ["model.gguf"],
        "somebody/tokenizer": ["tokenizer.json", "tokenizer_config.json", "model.safetensors"],
    }
    for repo, names in contents.items():
        (tmp_path / "hub" / repo).mkdir(parents=True)
        for name in names:
            (tmp_path / "hub" / repo / name).write_bytes(b"GGUF " + name.encode())
    (tmp_path / "hub" / STUB / "config.json").write_text('{"model_type": "mistral"}')
    with FakeHub(tmp_path / "hub").running() as hub:
        yield hub


def resolve(hub: FakeHub, home: Path, *args: str | None, env: dict[str, str] | None = None, **options: Any) -> Any:
    return hub.run(SCRIPT, args, options, home=home, env=env)


def test_the_only_file_of_a_repository_needs_no_name(hub: FakeHub, tmp_path: Path) -> None:
    found = resolve(hub, tmp_path / "home", ONE, None, preferred="mistral.gguf")
    assert Path(found["gguf"]).read_bytes() == b"GGUF model.Q8_0.gguf"


def test_of_several_one_is_named_or_preferred(hub: FakeHub, tmp_path: Path) -> None:
    named = resolve(hub, tmp_path / "home", MANY, "a.Q8_0.gguf", preferred="a.Q4_K_M.gguf")
    assert (Path(named["gguf"]).name, named["here"]) == ("a.Q8_0.gguf", ["a.Q8_0.gguf"])
    preferred = resolve(hub, tmp_path / "home2", MANY, None, preferred="a.Q4_K_M.gguf")
    assert preferred["here"] == ["a.Q4_K_M.gguf"]
    unsure = resolve(hub, tmp_path / "home3", MANY, None, preferred="b.gguf")
    assert "several GGUF files; name one with --quantized-filename: a.Q4_K_M.gguf, a.Q8_0.gguf" in unsure["error"]
    missing = resolve(hub, tmp_path / "home3", MANY, "c.gguf")
    assert "has no file c.gguf; its GGUF files are a.Q4_K_M.gguf, a.Q8_0.gguf" in missing["error"]


def test_all_parts_of_a_split_file_are_fetched(hub: FakeHub, tmp_path: Path) -> None:
    found = resolve(hub, tmp_path / "home", SPLIT, None)
    assert Path(found["gguf"]).name == "b-00001-of-00002.gguf"
    assert [name for name in found["here"] if name.endswith(".gguf")] == [
        "b-00001-of-00002.gguf",
        "b-00002-of-00002.gguf",
    ]


def test_a_second_time_needs_no_network(hub: FakeHub, tmp_path: Path) -> None:
    first = resolve(hub, tmp_path / "home", ONE, None)
    hub.requests.clear()
    offline = resolve(hub, tmp_path / "home", ONE, None, env={"HF_HUB_OFFLINE": "1"})
    assert offline == first
    assert hub.requests == []
    unreachable = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    assert resolve(hub, tmp_path / "home", ONE, None, env=unreachable) == first


def test_another_tokenizer_is_fetched_without_the_weights_beside_it(hub: FakeHub, tmp_path: Path) -> None:
    found = resolve(hub, tmp_path / "home", ONE, None, tokenizer_id="somebody/tokenizer")
    assert found["tokenizer"] == ["tokenizer.json", "tokenizer_config.json"]


def test_what_is_not_there_is_said_plainly(hub: FakeHub, tmp_path: Path) -> None:
    assert "has no GGUF file" in resolve(hub, tmp_path / "home", "somebody/tokenizer", None)["error"]
    assert (
        "there is no model somebody/else on the Hub" in resolve(hub, tmp_path / "home", "somebody/else", None)["error"]
    )


def test_paths_and_folders_need_no_hub(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF")
    nameless = tmp_path / "weights.bin"
    nameless.write_bytes(b"GGUF")
    assert find_gguf(None, str(path)).gguf == path
    assert find_gguf("somebody/ignored", str(path)).gguf == path
    assert find_gguf(str(path), None).gguf == path
    assert find_gguf(str(tmp_path), None).gguf == path
    assert find_model(str(path)).gguf == path
    assert find_model(str(nameless)).gguf == nameless
    assert find_model(str(tmp_path)).gguf == path
    assert find_model(str(path)).fetch_weights() == [path]
    (tmp_path / "config.json").write_text('{"model_type": "mistral"}')
    assert find_model(str(tmp_path)).gguf == path
    (tmp_path / "config.json").write_text('{"model_type": "mistral", "hidden_size": 64}')
    assert find_model(str(tmp_path)).gguf is None  # a model in another format


def test_weight_files_choose_among_gguf_files_and_are_never_ignored(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    for name in ("a.gguf", "b.gguf", "mmproj-a.gguf", "parts/c.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(ModelNotFoundError, match=r"name one with --weight-file: a\.gguf, b\.gguf$"):
        find_model(str(tmp_path))
    assert find_model(str(tmp_path), weight_files=["b.gguf"]).gguf == tmp_path / "b.gguf"
    assert find_gguf(str(tmp_path), "parts/c.gguf").gguf == tmp_path / "parts" / "c.gguf"
    with pytest.raises(ModelNotFoundError, match=r"holds its own weights; leave out b\.gguf"):
        find_model(str(tmp_path / "a.gguf"), weight_files=["b.gguf"])
    with pytest.raises(ModelNotFoundError, match="one is a whole model"):
        find_model(str(tmp_path), weight_files=["a.gguf", "b.gguf"])
    (tmp_path / "b.gguf").unlink()
    assert find_model(str(tmp_path)).gguf == tmp_path / "a.gguf"  # the other is a vision tower


def test_brackets_in_names_are_no_patterns(hub: FakeHub, tmp_path: Path) -> None:
    found = resolve(hub, tmp_path / "home", BRACKETS, "m[v1].gguf")
    assert Path(found["gguf"]).read_bytes() == b"GGUF m[v1].gguf"


def test_a_repository_of_gguf_files_needs_no_name_of_its_own(hub: FakeHub, tmp_path: Path) -> None:
    found = resolve(hub, tmp_path / "home", STUB, any_format=True)
    assert Path(found["gguf"]).read_bytes() == b"GGUF model.gguf"
    named = resolve(hub, tmp_path / "home", MANY, any_format=True, weight_files=["a.Q8_0.gguf"])
    assert Path(named["gguf"]).name == "a.Q8_0.gguf"
    unsure = resolve(hub, tmp_path / "home", MANY, any_format=True)
    assert "several GGUF files; name one with --weight-file: a.Q4_K_M.gguf, a.Q8_0.gguf" in unsure["error"]


def test_paths_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"there is no file .*missing\.gguf"):
        find_gguf(None, str(tmp_path / "missing.gguf"))
    with pytest.raises(ModelNotFoundError, match="neither a folder or file here nor a Hub id"):
        find_gguf(str(tmp_path / "missing"), None)
    with pytest.raises(ModelNotFoundError, match="has no GGUF file"):
        find_gguf(str(tmp_path), None)
    with pytest.raises(ModelNotFoundError, match=r"the tokenizer .* is neither a folder here nor a Hub id"):
        find_model("demo", tokenizer_id=str(tmp_path / "missing"))
