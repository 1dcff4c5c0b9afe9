"""Training the classifier of a mixture: it learns which expert is for what, and the mixture that is written says the
same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conversion.adapters.errors import AdapterError
from conversion.adapters.lora.files import open_lora
from conversion.adapters.xlora.files import open_xlora
from conversion.adapters.xlora.ordering import read_ordering
from mistral_jax.adapters.load_adapters import load_adapters, open_adapters
from mistral_jax.hub.files import ModelNotFoundError
from mistral_jax.model.low_rank import AdapterBank, Mixture
from mistral_jax.training.chat_data import Example
from mistral_jax.training.checkpoints import CheckpointError
from mistral_jax.training.lora_training import TrainedLoRA, train_lora
from mistral_jax.training.losses import next_token_loss
from mistral_jax.training.settings import LoRATrainingSettings, XLoRATrainingSettings
from mistral_jax.training.xlora_training import TrainedXLoRA, _with_one_expert, train_xlora
from tests.mistral_jax.training.tiny_training import padded, power_cut, shift_task, tiny_base

pytestmark = pytest.mark.slow(by="file")

MARKERS = {"plus": 3, "minus": 4}
TASKS = {name: shift_task(by, marker=MARKERS[name], count=60) for name, by in (("plus", 3), ("minus", -2))}
BOTH = TASKS["plus"] + TASKS["minus"]
SETTINGS = XLoRATrainingSettings(
    steps=60, batch_tokens=128, buckets=1, learning_rate=3e-2, checkpoint_every=0, validate_every=0
)
ALONG = replace(SETTINGS, steps=150, adapter_learning_rate=1e-2)


@pytest.fixture(scope="module")
def experts() -> dict[str, TrainedLoRA]:
    settings = LoRATrainingSettings(
        steps=120, batch_tokens=64, buckets=1, rank=4, learning_rate=3e-2, checkpoint_every=0, validate_every=0
    )
    return {
        name: train_lora(tiny_base(), task, settings=settings, name=name, progress=False)
        for name, task in TASKS.items()
    }


def run(experts: dict[str, Any], settings: XLoRATrainingSettings = SETTINGS, **others: Any) -> TrainedXLoRA:
    data = others.pop("data", BOTH)
    return train_xlora(tiny_base(), experts, data, settings=settings, progress=False, **others)


def shares(mixture: TrainedXLoRA, examples: list[Example]) -> np.ndarray:
    """Mean scaling of each expert over the tokens that count: [A]."""
    base = tiny_base()
    tokens, counted = padded(examples)
    run_both = jax.jit(lambda t: mixture.classifier.hidden_states(base.module, mixture.adapters.bank, t)[1])
    scalings = np.asarray(run_both(jnp.asarray(tokens[:, :-1])))
    return scalings.mean(axis=2)[counted].mean(axis=0)


@pytest.fixture(scope="module")
def layerwise(experts: dict[str, TrainedLoRA], tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainedXLoRA, Path]:
    folder = tmp_path_factory.mktemp("mixture") / "xlora"
    return run(experts, replace(SETTINGS, steps=150, validation_split=0.2), output=folder), folder


def test_the_loss_falls_and_each_task_gets_its_expert(layerwise: tuple[TrainedXLoRA, Path]) -> None:
    mixture, _ = layerwise
    assert mixture.run.losses[-10:].mean() < 0.6 * mixture.run.losses[0]
    assert mixture.run.validation_losses[-1] < 0.6 * mixture.run.validation_losses[0]
    unseen = {name: shift_task(by, marker=MARKERS[name], count=8, seed=5) for name, by in (("plus", 3), ("minus", -2))}
    # A random classifier gives either about as much for one task as for the other.
    assert shares(mixture, unseen["plus"])[0] > 0.6
    assert shares(mixture, unseen["minus"])[1] > 0.6


def test_one_set_of_scalings_for_all_modules_learns_it_too(experts: dict[str, TrainedLoRA]) -> None:
    settings = replace(SETTINGS, steps=100, layerwise=False, depth=2, size=12, dropout=0.1)
    mixture = run(experts, settings)
    assert mixture.classifier.columns.count == 1
    assert [layer.weight.get_value().shape for layer in mixture.classifier.layers] == [(12, 20), (2, 12)]
    assert shares(mixture, TASKS["plus"][:8])[0] > 0.75
    assert shares(mixture, TASKS["minus"][:8])[1] > 0.75


def test_what_is_written_loads_with_the_same_scalings(layerwise: tuple[TrainedXLoRA, Path]) -> None:
    mixture, folder = layerwise
    config = tiny_base().module.config
    loaded = load_adapters(open_adapters(config, xlora=folder, ordering=folder / "ordering.json"), dtype="float32")
    assert loaded.xlora is not None
    read = replace(mixture, classifier=loaded.xlora, adapters=loaded.adapters)
    examples = TASKS["plus"][:8]
    assert shares(read, examples).tolist() == shares(mixture, examples).tolist()
    files = open_xlora(folder)
    assert [adapter.name for adapter in files.adapters] == ["plus", "minus"]
    assert files.num_columns == 7
    ordering = read_ordering(folder / "ordering.json")
    assert (ordering.order, ordering.base_model_id) == (("plus", "minus"), "tiny")
    assert ordering.layers == dict(files.layer_index)


def test_the_log_shows_the_share_of_each_expert(layerwise: tuple[TrainedXLoRA, Path]) -> None:
    _, folder = layerwise
    entries = [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]
    assert all(entry["share/plus"] + entry["share/minus"] == pytest.approx(1, abs=1e-4) for entry in entries)


def test_experts_stay_as_they_are(experts: dict[str, TrainedLoRA], tmp_path: Path) -> None:
    """From folders, too, whose files are copied."""
    for name, lora in experts.items():
        lora.save(tmp_path / name)
    mixture = run({name: tmp_path / name for name in experts}, replace(SETTINGS, steps=2), output=tmp_path / "xlora")
    assert mixture.run.finished
    for name in experts:
        for file in ("adapter_model.safetensors", "adapter_config.json"):
            assert (tmp_path / "xlora" / name / file).read_bytes() == (tmp_path / name / file).read_bytes()


def weak(expert: TrainedLoRA, steps: int) -> TrainedLoRA:
    """The same, with less training."""
    settings = replace(expert.settings, steps=steps)
    return train_lora(tiny_base(), TASKS[expert.name], settings=settings, name=expert.name, progress=False)


@pytest.fixture(scope="module")
def trained_along(
    experts: dict[str, TrainedLoRA], tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainedXLoRA, Path]:
    """From experts that have learnt little by themselves; one is a file in bfloat16."""
    path = tmp_path_factory.mktemp("along")
    plus, minus = weak(experts["plus"], 20), weak(experts["minus"], 20)
    replace(plus, settings=replace(plus.settings, save_dtype="bfloat16")).save(path / "plus")
    return run({"plus": path / "plus", "minus": minus}, ALONG, output=path / "mixture"), path


def test_experts_that_are_trained_along_learn(trained_along: tuple[TrainedXLoRA, Path]) -> None:
    mixture, path = trained_along
    assert mixture.run.losses[-10:].mean() < 0.5 * mixture.run.losses[0]
    changed, given = open_lora(path / "mixture" / "plus"), open_lora(path / "plus")
    assert changed.modules == given.modules
    for key in given.modules:
        for new, old in zip(changed.read(key), given.read(key), strict=True):
            assert new.dtype == old.dtype
            assert (new != old).any()


def test_texts_for_one_expert_alone_keep_experts_usable_by_themselves(
    experts: dict[str, TrainedLoRA], trained_along: tuple[TrainedXLoRA, Path]
) -> None:
    base = tiny_base()

    def loss(mixture: TrainedXLoRA, expert: int, examples: list[Example]) -> float:
        tokens, counted = map(jnp.asarray, padded(examples))
        weights = jnp.zeros((1, 1, 1, 2), jnp.float32).at[..., expert].set(1)
        hidden = base.module.hidden_states(tokens[:, :-1], Mixture(bank=mixture.adapters.bank, weights=weights))
        return float(next_token_loss(base.module, hidden, tokens, counted) / counted.sum())

    mixed, path = trained_along
    given = {"plus": path / "plus", "minus": weak(experts["minus"], 20)}
    never_alone = run(given, replace(ALONG, alone=0.0))
    unseen = [shift_task(by, marker=MARKERS[name], count=8, seed=5) for name, by in (("plus", 3), ("minus", -2))]
    for own, other in ((0, 1), (1, 0)):
        assert loss(mixed, own, unseen[own]) < 0.8 * loss(mixed, other, unseen[own])
        assert loss(mixed, own, unseen[own]) < 0.8 * loss(never_alone, own, unseen[own])


def test_what_experts_that_were_trained_along_are_written_as(trained_along: tuple[TrainedXLoRA, Path]) -> None:
    mixture, path = trained_along
    config = tiny_base().module.config
    loaded = load_adapters(open_adapters(config, xlora=path / "mixture"), dtype="float32")
    for one, two in zip(jax.tree.leaves(loaded.adapters.bank), jax.tree.leaves(mixture.adapters.bank), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(two).tobytes()


def test_a_text_for_one_expert_alone() -> None:
    """Two texts of three tokens: the first prefers expert 1 where it counts; the second is left to the mixture."""
    shares = jnp.array([[[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], [[0.5, 0.5]] * 3])
    mixture = Mixture(bank=AdapterBank(owner=jnp.zeros(0, jnp.int32), layers=()), weights=shares[:, :, None])
    counted = jnp.array([[0.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    alone, counted = _with_one_expert(mixture, shares, counted, jnp.array([True, False]))
    np.testing.assert_array_equal(alone.weights[0, :, 0], [[0, 1]] * 3)
    np.testing.assert_array_equal(alone.weights[1], mixture.weights[1])
    np.testing.assert_array_equal(counted, [[0, 1, 0], [1, 1, 1]])


def test_a_resumed_run_has_the_bits_of_one_that_was_not_interrupted(
    experts: dict[str, TrainedLoRA], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(
        SETTINGS,
        steps=5,
        checkpoint_every=2,
        layerwise=False,
        depth=2,
        size=12,
        dropout=0.1,
        adapter_learning_rate=1e-3,
        alone=0.5,
    )
    whole = run(experts, settings)
    with power_cut(monkeypatch, step=3):
        run(experts, settings, output=tmp_path / "x")
    swapped = dict(reversed(list(experts.items())))
    with pytest.raises(CheckpointError, match="of a run with adapters = "):
        run(swapped, settings, output=tmp_path / "x", resume=True)
    resumed = run(experts, settings, output=tmp_path / "x", resume=True)
    for one, two in zip(jax.tree.leaves(whole.run.params), jax.tree.leaves(resumed.run.params), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(two).tobytes()


def test_wrong_experts_are_refused(experts: dict[str, TrainedLoRA], tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="at least two adapters, and 1 are given"):
        run({"plus": experts["plus"]})
    with pytest.raises(AdapterError, match="top_k is 3, and there are 2 adapters"):
        run(experts, replace(SETTINGS, top_k=3))
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        run({"plus": experts["plus"], "minus": tmp_path / "nowhere"})
    other = replace(experts["plus"], factors={k: (a[:, :8], b) for k, (a, b) in experts["plus"].factors.items()})
    with pytest.raises(AdapterError, match="it was trained for another model"):
        run({"plus": experts["plus"], "minus": other})
