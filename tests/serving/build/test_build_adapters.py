"""From settings to adapters: bases that are found, names that are given, and files that are refused before anything is
loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conversion.adapters.writing import NewLoRA, write_lora
from conversion.adapters.xlora.files import open_xlora
from conversion.adapters.xlora.ordering import Ordering, derive_ordering, write_ordering
from mistral_jax.hub.files import BUNDLED_ADAPTERS, DEMO_FOLDER, DEMO_TOOLS, DEMO_XLORA
from mistral_jax.model.config import MistralConfig
from serving.build.build_adapters import open_adapter_files, served_models, with_base_model
from serving.build.build_service import build_service
from serving.settings.settings import Settings
from tests.integration.adapted_models import BASE, random_factors, write_all, write_base, write_mixture


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("models"))


@pytest.fixture
def files(written: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(written, tmp_path / "models"))


def settings_of(files: Path, **changes: Any) -> Settings:
    given = {"model_kind": "x-lora-mistral", "model_id": str(files / "base"), "xlora_model_id": str(files / "mixture")}
    return Settings(**(given | {"compilation_cache": "none", "device": "cpu"} | changes))


def names(settings: Settings) -> list[tuple[str, str, tuple[str, ...]]]:
    settings = with_base_model(settings)
    folder = DEMO_FOLDER if settings.model_kind == "demo" else Path(str(settings.model_id))
    opened = open_adapter_files(settings, MistralConfig.from_folder(folder))
    return [(model.id, model.kind, model.aliases) for model in served_models(settings, opened, created=0).models]


def test_names_of_a_mixture(written: Path) -> None:
    assert names(settings_of(written, loras=(str(written / "poet"),))) == [
        ("base", "base", ()),
        *((name, "adapter", ()) for name in ("one", "two", "three", "poet")),
        ("mixture", "mixture", ("default",)),
    ]
    renamed = names(settings_of(written, served_name="ours"))
    assert renamed[-1] == ("ours", "mixture", ("default",))


def test_names_of_adapters_alone(written: Path) -> None:
    settings = settings_of(
        written, model_kind="lora-mistral", xlora_model_id=None, loras=(f"a={written / 'poet'}",), served_name="ours"
    )
    assert names(settings) == [("ours", "base", ("default", "base")), ("a", "adapter", ())]


def test_the_demo_with_a_bundled_mixture(written: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (DEMO_XLORA, DEMO_TOOLS):
        monkeypatch.setitem(BUNDLED_ADAPTERS, name, tmp_path / "nothing")
    assert names(Settings()) == [("demo", "base", ("default",))]
    write_mixture(tmp_path / "demo-xlora", DEMO_FOLDER, names=("sums", "words"), layers=6)
    monkeypatch.setitem(BUNDLED_ADAPTERS, DEMO_XLORA, tmp_path / "demo-xlora")
    assert names(Settings()) == [
        ("demo", "base", ("base",)),
        ("demo-sums", "adapter", ("sums",)),
        ("demo-words", "adapter", ("words",)),
        ("demo-xlora", "mixture", ("default",)),
    ]
    # Beside the mixture, not in it.
    monkeypatch.setitem(BUNDLED_ADAPTERS, DEMO_TOOLS, tmp_path / "demo-xlora" / "words")
    assert ("demo-tools", "adapter", ("tools",)) in names(Settings())
    files = open_adapter_files(Settings(), MistralConfig.from_folder(DEMO_FOLDER))
    assert files is not None
    assert files.names == ("sums", "words", "tools")
    assert [info.expert for info in served_models(Settings(), files, created=1).adapters] == [True, True, False]
    files.close()


def test_the_base_model_is_what_the_mixture_names_where_nobody_does(files: Path) -> None:
    config = files / "mixture" / "xlora_config.json"

    def base_for(named: str) -> str | None:
        config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_id": named}))
        return with_base_model(settings_of(files, model_id=None)).model_id

    assert base_for("lab/one") == "lab/one"
    assert base_for(str(files / "base")) == str(files / "base")
    assert base_for("/home/somebody/model") == "mistralai/Mistral-7B-Instruct-v0.1"
    assert with_base_model(settings_of(files, model_id="lab/own")).model_id == "lab/own"


def damage_nothing(files: Path) -> dict[str, Any]:
    shutil.rmtree(files / "mixture" / "two")
    return {}


def damage_classifier(files: Path) -> dict[str, Any]:
    (files / "mixture" / "xlora_classifier.safetensors").unlink()
    return {}


def damage_size(files: Path) -> dict[str, Any]:
    config = files / "mixture" / "xlora_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"xlora_size": 25}))
    return {}


def damage_hidden(files: Path) -> dict[str, Any]:
    write_base_of(files / "other", hidden_size=32)
    return {"model_id": str(files / "other")}


def write_base_of(folder: Path, **changes: Any) -> None:
    write_base(folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def damage_rank(files: Path) -> dict[str, Any]:
    config = files / "mixture" / "one" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"r": 7}))
    return {}


def damage_ordering(files: Path) -> dict[str, Any]:
    ordering = derive_ordering(open_xlora(files / "mixture").adapters)
    assert ordering.layers is not None
    shorter = {key: index for key, index in ordering.layers.items() if index < 8}
    write_ordering(files / "order.json", Ordering(order=ordering.order, layers=shorter))
    return {"order": files / "order.json"}


def damage_order(files: Path) -> dict[str, Any]:
    write_ordering(files / "order.json", Ordering(order=("one", "two", "nobody")))
    return {"order": files / "order.json"}


def damage_other_base(files: Path) -> dict[str, Any]:
    write_ordering(files / "order.json", Ordering(base_model_id="lab/another"))
    return {"order": files / "order.json"}


def damage_same_name(files: Path) -> dict[str, Any]:
    return {"loras": (f"two={files / 'poet'}",)}


def damage_no_lora(files: Path) -> dict[str, Any]:
    return {"loras": (f"x={files / 'nowhere'}",)}


def damage_layers(files: Path) -> dict[str, Any]:
    factors = random_factors(files / "base", seed=3, rank=2, layers=3)
    write_lora(files / "deep", NewLoRA(factors=factors, rank=2, alpha=2), base_model=BASE)
    return {"loras": (f"x={files / 'deep'}",)}


def damage_name(files: Path) -> dict[str, Any]:
    return {"loras": (f"mixture={files / 'poet'}",)}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_nothing, "names adapter two, which has no folder"),
        (damage_classifier, "xlora_classifier.safetensors is missing"),
        (damage_size, "xlora_size"),
        (damage_hidden, "hidden states of 64 values"),
        (damage_rank, "has rank 3, and adapter_config.json says 7"),
        (damage_ordering, "the ordering has no index for model.layers.1"),
        (damage_order, "names adapter nobody"),
        (damage_other_base, "is for lab/another, and .* for tiny-lab/tiny-base"),
        (damage_same_name, "an adapter of the X-LoRA model is called 'two'"),
        (damage_no_lora, "neither a folder here nor a Hub id"),
        (damage_layers, "the model has 2 layers"),
        (damage_name, "'mixture' would be the name of"),
    ],
)
def test_what_is_wrong_is_known_before_weights_are_read(
    files: Path, damage: Callable[[Path], dict[str, Any]], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("weights were read")

    monkeypatch.setattr("serving.build.build_service.load_module", never)
    with pytest.raises((ValueError, OSError), match=message) as error:
        build_service(settings_of(files, **damage(files)))
    assert "\n" not in str(error.value)


def test_room_is_counted_before_a_length_is_chosen(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mistral_jax.checkpoint.description import describe
    from mistral_jax.model.table_kinds import BLOCK
    from mistral_jax.quant.placement import choose_placement
    from serving.build import memory
    from serving.build.build_service import model_files

    placement = choose_placement("cpu")
    settings = settings_of(written, dtype="float32")
    description = describe(model_files(settings))
    adapters = open_adapter_files(settings, description.config)
    weights = memory.weight_bytes(settings, description, placement)
    own = memory.bytes_of_adapters(settings, description, placement, adapters)
    block = 2 * BLOCK * description.config.kv_bytes_per_token(4)
    # Half of what is left is for caches: two of three blocks, the spare one included.
    free = weights + own + 2 * (3 * block + 5)
    monkeypatch.setattr("mistral_jax.quant.placement.Placement.free_memory", lambda _placement: free)
    assert memory.plan_cache(settings, description, placement, adapters).length == 2 * BLOCK
    assert memory.plan_cache(settings, description, placement, None).length >= 4 * BLOCK


def test_values_that_are_no_numbers_end_the_start_with_one_line(files: Path) -> None:
    from serving.engine.messages import EngineState
    from tests.serving.harness import wait_for

    path = files / "mixture" / "three" / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-4:] = np.float32(np.inf).tobytes()
    path.write_bytes(bytes(data))
    engine = build_service(settings_of(files)).engine
    engine.start()
    wait_for(lambda: engine.status.state is EngineState.FAILED, 30)
    assert "infinite values" in engine.status.detail
    assert "\n" not in engine.status.detail
