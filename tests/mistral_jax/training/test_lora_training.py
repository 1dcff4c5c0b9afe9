"""Training a LoRA: it learns, it is exact where it claims to be, and what it writes is what serving reads."""

from __future__ import annotations

import json
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from conversion.adapters.errors import AdapterError
from conversion.adapters.lora.files import open_lora
from conversion.adapters.modules import PARTS, ModuleKey
from conversion.files.output_files import OutputError
from conversion.quantize import quantize
from conversion.weights.ggml_types import BY_NAME
from mistral_jax.adapters.bank import AdapterSet
from mistral_jax.model.low_rank import Mixture, part_features
from mistral_jax.model.mistral import Mistral
from mistral_jax.quant.array import QuantizedArray, int8_array, padded
from mistral_jax.training import trainer as trainer_module
from mistral_jax.training.batches import Batches
from mistral_jax.training.chat_data import DataError, Example
from mistral_jax.training.checkpoints import CheckpointError
from mistral_jax.training.lora_training import LoRALoss, initial_factors, train_lora
from mistral_jax.training.programs import programs
from mistral_jax.training.settings import LoRATrainingSettings
from mistral_jax.training.trainer import TrainingError
from tests.mistral_jax.training.tiny_training import (
    VOCABULARY,
    accuracy,
    before_update,
    power_cut,
    shift_task,
    tiny_base,
)

pytestmark = pytest.mark.slow(by="file")

TASK = shift_task(3, marker=3)
SETTINGS = LoRATrainingSettings(
    steps=6, batch_tokens=64, buckets=1, rank=4, learning_rate=1e-2, checkpoint_every=0, validate_every=0
)


def run(settings: LoRATrainingSettings = SETTINGS, data: list[Example] = TASK, **others: Any) -> Any:
    return train_lora(others.pop("base", tiny_base()), data, settings=settings, progress=False, **others)


def bits(trained: Any) -> list[bytes]:
    return [x.tobytes() for pair in trained.factors.values() for x in pair]


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("learnt") / "shift"
    settings = replace(SETTINGS, steps=150, learning_rate=3e-2, validate_every=50, validation_split=0.2)
    return run(settings, shift_task(3, marker=3, count=120), output=folder), folder


def test_the_loss_falls_and_the_task_is_learnt(learnt: tuple[Any, Path]) -> None:
    trained, folder = learnt
    unseen = shift_task(3, marker=3, count=10, seed=9)
    lora = open_lora(folder)
    bank = AdapterSet(tiny_base().module.config, [lora], dtype="float32").bank
    assert accuracy(tiny_base(), unseen, bank, [0.0]) < 0.3
    assert accuracy(tiny_base(), unseen, bank, [1.0]) > 0.9
    assert trained.run.losses[-10:].mean() < 0.3 * trained.run.losses[0]
    assert trained.run.validation_losses[-1] < 0.3 * trained.run.validation_losses[0]
    assert trained.run.validation_steps.tolist() == [0, 50, 100, 150]


def test_what_is_written_has_the_bits_of_what_was_trained(learnt: tuple[Any, Path]) -> None:
    trained, folder = learnt
    lora = open_lora(folder)
    assert list(lora.modules) == [ModuleKey(0, part) for part in PARTS] == list(trained.factors)
    assert {module.scale for module in lora.modules.values()} == {2.0}
    for key in lora.modules:
        for ours, theirs in zip(trained.read(key), lora.read(key), strict=True):
            assert ours.tobytes() == theirs.tobytes()
    assert (lora.base_model, lora.rank) == ("tiny", 4)
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "training_log.jsonl",
    ]


def test_the_log_has_every_update_and_validation(learnt: tuple[Any, Path]) -> None:
    trained, folder = learnt
    entries = [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]
    updates = [entry for entry in entries if "loss" in entry]
    assert [entry["step"] for entry in updates] == list(range(1, 151))
    assert np.array([entry["loss"] for entry in updates], np.float32).tolist() == trained.run.losses.tolist()
    assert set(updates[0]) == {"step", "loss", "learning_rate", "gradient_norm", "tokens_per_s"}
    assert [entry["step"] for entry in entries if "validation_loss" in entry] == [0, 50, 100, 150]
    assert max(entry["learning_rate"] for entry in updates) == pytest.approx(3e-2)
    assert updates[-1]["learning_rate"] < 1e-4


def test_training_begins_with_the_base_model() -> None:
    """B is zero and A is uniform, as PEFT has them."""
    base = tiny_base()
    factors = initial_factors(base.module.config, SETTINGS)
    assert all(not b.any() for layer in factors for x in layer.values() for b in x["b"])
    a = np.asarray(factors[0]["qkv_proj"]["a"])
    assert a.shape == (12, 20)
    assert 0.9 / np.sqrt(20) < np.abs(a).max() <= 1 / np.sqrt(20)
    tokens = TASK[0].tokens[None]
    counted = np.ones((1, tokens.shape[1] - 1), np.float32)
    graph, weights = nnx.split(base.module)
    loss = programs(LoRALoss.of(graph, SETTINGS)).sums(factors, weights, tokens, counted)[0]
    logits = jax.jit(lambda tokens: base.module.logits(base.module.hidden_states(tokens)))(tokens[:, :-1])
    table = jax.nn.log_softmax(logits[0])
    expected = -np.asarray(table)[np.arange(tokens.shape[1] - 1), tokens[0, 1:]].sum()
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


def test_training_goes_on_where_an_adapter_is(learnt: tuple[Any, Path]) -> None:
    """A folder and the adapter in memory have the same bits; without a learning rate they stay as they are."""
    trained, folder = learnt
    still = replace(SETTINGS, steps=1, learning_rate=1e-30)
    from_memory = run(still, start=trained)
    assert bits(from_memory) == bits(run(still, start=folder)) == bits(trained)
    assert from_memory.run.losses[0] < 0.5 * run(still).run.losses[0]
    further = run(replace(SETTINGS, steps=3), start=trained)
    assert bits(further) != bits(trained)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rank": 5}, "lora: .* has the rank 5 and the scale 2, the settings have 4 and 2"),
        ({"alpha": 3.0}, "has the rank 4 and the scale 0.75, the settings have 4 and 2"),
        ({"targets": ("q_proj",)}, r"an adapter of 1 modules \(q_proj\) cannot be trained further as one of 7"),
    ],
)
def test_an_adapter_of_another_form_is_not_trained_further(changes: dict[str, Any], expected: str) -> None:
    other = run(replace(SETTINGS, steps=1, **changes))
    with pytest.raises(ValueError, match=expected):
        run(start=other)


def test_an_adapter_of_another_model_is_not_trained_further() -> None:
    other = run()
    key = ModuleKey(0, "q_proj")
    a, b = other.factors[key]
    other = replace(other, factors={**other.factors, key: (a[:, :-1], b)})
    with pytest.raises(AdapterError, match=r"does not fit the model at .*q_proj: it was trained for another model"):
        run(start=other)


def test_the_gradient_is_that_of_the_loss() -> None:
    """Compared with differences of the loss itself, over a random direction."""
    base = tiny_base()
    graph, weights = nnx.split(base.module)
    batch = Batches(TASK, 64, 1, 0)[0]
    made = programs(LoRALoss.of(graph, SETTINGS))
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda x: x + 0.1 * rng.standard_normal(x.shape), initial_factors(base.module.config, SETTINGS)
    )
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    direction = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32), params)

    def moved(by: float) -> float:
        at = jax.tree.map(lambda x, d: x + by * d, params, direction)
        return float(made.sums(at, weights, batch.tokens, batch.weights)[0])

    _, gradient = made.gradients(params, weights, batch.tokens, batch.weights, None)
    along = sum(
        float(jnp.vdot(g, d)) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
    )
    assert (moved(1e-3) - moved(-1e-3)) / 2e-3 == pytest.approx(along, rel=2e-2)


def test_two_accumulated_batches_are_one_large_one() -> None:
    # All of one length and number, so that the halves of a batch are batches themselves.
    data = [Example(np.array([3, *range(5 + i, 13 + i)], np.int32), np.arange(9) >= 2) for i in range(8)]
    large = replace(SETTINGS, steps=1, batch_tokens=64, clip_norm=0.0)
    small = replace(large, batch_tokens=32, accumulate=2)
    one, two = run(large, data), run(small, data)
    assert one.run.losses == pytest.approx(two.run.losses, rel=1e-6)
    # AdamW's first update is as large for the smallest gradient as for the largest: only where it is not tiny do they
    # agree.
    for (a1, b1), (a2, b2) in zip(one.factors.values(), two.factors.values(), strict=True):
        np.testing.assert_allclose(b1, b2, atol=1e-4)
        np.testing.assert_allclose(a1, a2, atol=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_resumed_run_has_the_bits_of_one_that_was_not_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dropout: float
) -> None:
    settings = replace(
        SETTINGS, accumulate=2, dropout=dropout, checkpoint_every=2, validation_split=0.2, validate_every=1
    )
    whole = run(settings, output=tmp_path / "whole")

    # Cut off in its fourth update, after the second checkpoint's successor would have been begun.
    with power_cut(monkeypatch, step=3):
        run(settings, output=tmp_path / "cut")
    assert (tmp_path / "cut" / "checkpoint.safetensors").is_file()
    assert not (tmp_path / "cut" / "adapter_model.safetensors").exists()
    resumed = run(settings, output=tmp_path / "cut", resume=True)
    assert bits(resumed) == bits(whole)
    assert resumed.run.losses.tolist() == whole.run.losses.tolist()
    assert resumed.run.validation_losses.tolist() == whole.run.validation_losses.tolist()
    assert not (tmp_path / "cut" / "checkpoint.safetensors").exists()
    files = [folder / "adapter_model.safetensors" for folder in (tmp_path / "whole", tmp_path / "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_ctrl_c_ends_the_run_with_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run()
    with before_update(monkeypatch, 2, lambda: signal.raise_signal(signal.SIGINT)):
        stopped = run(output=tmp_path / "lora")
    assert (stopped.run.finished, stopped.run.steps, len(stopped.run.losses)) == (False, 3, 3)
    assert not (tmp_path / "lora" / "adapter_model.safetensors").exists()
    with pytest.raises(OutputError, match="holds a run that was not finished; go on with it"):
        run(output=tmp_path / "lora")
    assert bits(run(output=tmp_path / "lora", resume=True)) == bits(whole)


def test_it_runs_in_a_thread_too() -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(run(replace(SETTINGS, steps=1))))
    thread.start()
    thread.join()
    assert found[0].run.finished


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "lora"
    with pytest.raises(CheckpointError, match=r"there is no checkpoint .* to resume from"):
        run(output=folder, resume=True)
    with pytest.raises(TrainingError, match="a run without a folder has no checkpoint"):
        run(resume=True)
    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "_due", lambda step, every: every == 1 and step == 2)
        real = trainer_module.Trainer._save

        def save(self: Any, *arguments: Any) -> None:
            real(self, *arguments)
            raise OSError("power cut")

        patch.setattr(trainer_module.Trainer, "_save", save)
        settings = replace(SETTINGS, checkpoint_every=1)
        with pytest.raises(OSError, match="power cut"):
            run(settings, output=folder)
    with pytest.raises(CheckpointError, match=r"of a run with learning_rate = 0\.01, and this one has 0\.02"):
        run(replace(settings, learning_rate=2e-2), output=folder, resume=True)
    with pytest.raises(CheckpointError, match="of a run with data = "):
        run(settings, shift_task(1, marker=3), output=folder, resume=True)
    (folder / "checkpoint.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="is no checkpoint of a training run"):
        run(settings, output=folder, resume=True)


def test_a_run_that_diverges_stops_and_names_the_update() -> None:
    broken = nnx.clone(tiny_base().module)
    broken.norm.weight.set_value(broken.norm.weight.get_value().at[0].set(jnp.nan))
    with pytest.raises(
        TrainingError, match=r"the loss of update 1 is nan: the run diverged\. Take a smaller learning rate"
    ):
        run(base=replace(tiny_base(), module=broken))


def test_factors_stay_float32_over_a_bfloat16_model_and_are_rounded_as_in_serving(tmp_path: Path) -> None:
    base = tiny_base("bfloat16")
    trained = run(replace(SETTINGS, save_dtype="bfloat16"), base=base, output=tmp_path / "lora")
    assert {x.dtype for pair in trained.factors.values() for x in pair} == {np.dtype(np.float32)}
    bank = LoRALoss.of(None, SETTINGS).bank(trained.run.params, base.module.config, base.module.dtype)
    served = AdapterSet(base.module.config, [open_lora(tmp_path / "lora")], dtype=base.module.dtype).bank
    tokens = jnp.asarray(TASK[0].tokens[None])
    ones = jnp.ones((1, 1, 1, 1), jnp.float32)
    run_model = jax.jit(lambda bank: base.module.hidden_states(tokens, Mixture(bank=bank, weights=ones)))
    states = [np.asarray(run_model(b)) for b in (bank, served)]
    np.testing.assert_allclose(*[s.astype(np.float32) for s in states], atol=2e-2)
    assert trained.run.losses[-1] < trained.run.losses[0]


def test_remat_changes_memory_not_results() -> None:
    plain, again = run(replace(SETTINGS, steps=2)), run(replace(SETTINGS, steps=2, remat=True))
    for one, two in zip(plain.factors.values(), again.factors.values(), strict=True):
        np.testing.assert_allclose(one[1], two[1], atol=1e-4)


def test_only_the_targets_are_trained() -> None:
    trained = run(replace(SETTINGS, steps=1, targets=("v_proj", "down_proj"), alpha=3.0, use_rslora=True))
    assert [key.part for key in trained.factors] == ["v_proj", "down_proj"]
    assert trained.modules[ModuleKey(0, "v_proj")].scale == pytest.approx(1.5)
    features = part_features(tiny_base().module.config)
    assert {key.part: (b.shape[0], a.shape[1]) for key, (a, b) in trained.factors.items()} == {
        part: features[part] for part in ("v_proj", "down_proj")
    }


@pytest.mark.parametrize("remat", [False, True])
def test_gradients_pass_through_packed_weights(remat: bool) -> None:
    """Blocks of 8 bits: the same as over the weights that they stand for."""
    base = tiny_base(hidden_size=32)
    packed, plain = nnx.clone(base.module), nnx.clone(base.module)
    for name in ("qkv_proj", "gate_up_proj"):
        ours, theirs = (
            getattr(m.layers[0].self_attn if name == "qkv_proj" else m.layers[0].mlp, name) for m in (packed, plain)
        )
        weight = QuantizedArray(quantize(ours.weight[...], BY_NAME["Q8_0"]), BY_NAME["Q8_0"])
        ours.weight.set_value(weight)
        theirs.weight.set_value(padded(weight.dequantize()))
    settings = replace(SETTINGS, steps=2, remat=remat)
    one, two = (run(settings, base=replace(base, module=module)) for module in (packed, plain))
    assert one.run.losses == pytest.approx(two.run.losses, rel=1e-5)
    for key in one.factors:
        np.testing.assert_allclose(one.factors[key][1], two.factors[key][1], atol=1e-4)


def test_weights_held_as_int8_are_refused() -> None:
    module: Mistral = nnx.clone(tiny_base().module)
    module.layers[0].mlp.down_proj.weight.set_value(int8_array(jnp.ones((20, 28))))
    with pytest.raises(ValueError, match=r"held as int8.*--quant none"):
        run(base=replace(tiny_base(), module=module))


@pytest.mark.parametrize(
    ("settings", "others", "expected"),
    [
        ({"max_length": 65}, {}, "max_length is 65; this model was made for at most 64"),
        ({"max_length": 6}, {}, "training data: example 1 of 40 has"),
        ({"validation_split": 0.1}, {"validation": TASK}, "either validation data or a validation_split"),
        ({"validation_split": 0.001}, {}, "leaves none"),
        ({}, {"validation": [{"text": 3}]}, r"validation data: data\[0\]: \"text\" is 3"),
    ],
)
def test_data_that_does_not_fit_is_refused(settings: dict[str, Any], others: dict[str, Any], expected: str) -> None:
    with pytest.raises((DataError, ValueError), match=expected):
        run(replace(SETTINGS, **settings), **others)


def test_a_folder_in_use_is_not_overwritten_unasked(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "xlora_config.json").write_text("{}")  # of an earlier run of another kind
    with pytest.raises(OutputError, match="is not empty"):
        run(output=tmp_path)
    with pytest.raises(OutputError, match="is a file"):
        run(output=tmp_path / "notes.txt")
    run(replace(SETTINGS, steps=1), output=tmp_path, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "xlora_config.json").exists()
    assert open_lora(tmp_path).rank == 4


def test_a_shorter_vocabulary_than_the_tokens_is_noticed() -> None:
    """Not silently clamped to the last row, which is what gathers do."""
    with pytest.raises(DataError, match=f"token 23.*{VOCABULARY}"):
        run(data=[Example(np.array([1, 23, 4], np.int32), np.array([False, True, True]))])
