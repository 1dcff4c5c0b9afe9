"""The low-rank op, and the set of adapters it works on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conversion.adapters.modules import PARTS, ModuleKey
from conversion.quantize import quantize
from conversion.weights.ggml_types import BY_NAME
from mistral_jax.adapters.bank import AdapterSet, BankFullError
from mistral_jax.model.low_rank import Mixture, ScalingColumns, part_features
from mistral_jax.model.mistral import Mistral
from mistral_jax.quant.array import QuantizedArray, padded
from tests.mistral_jax.tiny_adapters import CONFIG, LORAS, RandomLoRA, adapter_set, model

pytestmark = pytest.mark.slow

TOKENS = np.random.default_rng(1).integers(3, CONFIG.vocab_size, (3, 11)).astype(np.int32)
PROJECTION = {
    "q_proj": ("self_attn", "qkv_proj"),
    "k_proj": ("self_attn", "qkv_proj"),
    "v_proj": ("self_attn", "qkv_proj"),
    "o_proj": ("self_attn", "o_proj"),
    "gate_proj": ("mlp", "gate_up_proj"),
    "up_proj": ("mlp", "gate_up_proj"),
    "down_proj": ("mlp", "down_proj"),
}


def mixture(adapters: AdapterSet, weights: np.ndarray) -> Mixture:
    """Weights [B, A] for all tokens and modules."""
    return Mixture(bank=adapters.bank, weights=jnp.asarray(weights, jnp.float32)[:, None, None])


def merged(weights: list[float]) -> Mistral:
    """The model with the adapters added to its weights, written the plain way."""
    module, features = model(), part_features(CONFIG)
    for weight, lora in zip(weights, LORAS, strict=True):
        for key, (a, b) in lora.factors.items():
            group, name = PROJECTION[key.part]
            linear = getattr(getattr(module.layers[key.layer], group), name)
            before = {"k_proj": ["q_proj"], "v_proj": ["q_proj", "k_proj"], "up_proj": ["gate_proj"]}
            first = sum(features[part][0] for part in before.get(key.part, []))
            delta = weight * lora.modules[key].scale * (b.astype(np.float64) @ a)
            full = np.asarray(linear.weight[...]).astype(np.float64)
            full[first : first + len(b)] += delta
            linear.weight.set_value(padded(jnp.asarray(full, jnp.float32)))
    return module


def test_each_row_is_the_model_with_its_own_adapters_merged() -> None:
    weights = [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.4, -0.7, 1.3]]
    actual = model().hidden_states(jnp.asarray(TOKENS), mixture(adapter_set(), np.array(weights)))
    for row, own in enumerate(weights):
        expected = merged(own).hidden_states(jnp.asarray(TOKENS[row : row + 1]))
        np.testing.assert_allclose(actual[row], expected[0], rtol=2e-4, atol=2e-4)


def test_weight_zero_is_the_base_model_to_the_last_bit() -> None:
    actual = model().hidden_states(jnp.asarray(TOKENS), mixture(adapter_set(spare=2), np.zeros((3, 5))))
    np.testing.assert_array_equal(actual, model().hidden_states(jnp.asarray(TOKENS)))


def test_a_module_reads_the_column_that_is_its_own() -> None:
    adapters = adapter_set()
    columns = ScalingColumns(count=2, index=tuple((ModuleKey(i, "q_proj"), 1) for i in range(CONFIG.num_layers)))
    weights = np.zeros((3, 1, 2, 3), np.float32)
    weights[:, :, 0, 0] = 1.0  # all modules but the q projections
    mixed = Mixture(bank=adapters.bank, weights=jnp.asarray(weights), columns=columns)
    without_q = RandomLoRA(
        name="one",
        rank=4,
        modules={k: v for k, v in LORAS[0].modules.items() if k.part != "q_proj"},
        factors=LORAS[0].factors,
    )
    other = AdapterSet(CONFIG, [without_q], dtype=jnp.float32)
    expected = model().hidden_states(jnp.asarray(TOKENS), mixture(other, np.ones((3, 1))))
    actual = model().hidden_states(jnp.asarray(TOKENS), mixed)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_adapters_work_over_packed_weights() -> None:
    """Linear layers of blocks of 8 bits: what the adapters add is what they add to the same weights, unpacked."""
    packed, plain = model(), model()
    for layer_packed, layer_plain in zip(packed.layers, plain.layers, strict=True):
        for group, name in set(PROJECTION.values()):
            linear = getattr(getattr(layer_packed, group), name)
            weight = linear.weight.get_value()
            if weight.shape[1] % 32:
                continue
            array = QuantizedArray(quantize(weight[...], BY_NAME["Q8_0"]), BY_NAME["Q8_0"])
            linear.weight.set_value(array)
            getattr(getattr(layer_plain, group), name).weight.set_value(padded(array.dequantize()))
    weights = np.array([[1.0, 0.0, 0.0], [0.2, 0.5, 0.3], [0.0, 0.0, 0.0]])
    actual = packed.hidden_states(jnp.asarray(TOKENS), mixture(adapter_set(), weights))
    expected = plain.hidden_states(jnp.asarray(TOKENS), mixture(adapter_set(), weights))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


class TestLoading:
    def test_a_loaded_adapter_is_as_one_that_was_there_from_the_start(self) -> None:
        late = RandomLoRA.make("late", rank=5, parts=PARTS[2:], seed=4)
        adapters = adapter_set(spare=2)
        program = jax.jit(lambda bank, w: model().hidden_states(jnp.asarray(TOKENS), Mixture(bank=bank, weights=w)))
        weights = np.zeros((3, 1, 1, 5), np.float32)
        before = program(adapters.bank, weights)
        entry = adapters.load(late)
        assert (entry.number, len(entry.rows), entry.parts) == (3, 5, PARTS[2:])
        weights[..., entry.number] = 1.0
        alone = AdapterSet(CONFIG, [late], dtype=jnp.float32)
        expected = model().hidden_states(jnp.asarray(TOKENS), mixture(alone, np.ones((3, 1))))
        np.testing.assert_allclose(program(adapters.bank, weights), expected, rtol=1e-5, atol=1e-5)
        adapters.unload("late")
        assert "late" not in adapters.entries
        np.testing.assert_array_equal(program(adapters.bank, weights), before)
        assert program._cache_size() == 1

    def test_free_rank_rows_need_not_lie_side_by_side(self) -> None:
        adapters = adapter_set(spare=2)
        for name, rank in (("a", 6), ("b", 8)):
            adapters.load(RandomLoRA.make(name, rank=rank, parts=PARTS))
        adapters.unload("a")
        late = RandomLoRA.make("c", rank=8, parts=PARTS, seed=5)
        rows = adapters.load(late).rows
        assert max(rows) - min(rows) > 7
        weights = np.zeros((3, 5))
        weights[:, adapters.entries["c"].number] = 1.0
        alone = AdapterSet(CONFIG, [late], dtype=jnp.float32)
        expected = model().hidden_states(jnp.asarray(TOKENS), mixture(alone, np.ones((3, 1))))
        actual = model().hidden_states(jnp.asarray(TOKENS), mixture(adapters, weights))
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)

    def test_what_does_not_fit_is_refused_and_leaves_the_bank_as_it_was(self) -> None:
        adapters = adapter_set(spare=1)
        bank = adapters.bank
        with pytest.raises(BankFullError, match="rank 9; room was left for adapters of rank 8"):
            adapters.load(RandomLoRA.make("large", rank=9, parts=PARTS))
        with pytest.raises(ValueError, match="'two' is loaded already"):
            adapters.load(RandomLoRA.make("two", rank=4, parts=PARTS))
        assert adapters.bank is bank
        adapters.load(RandomLoRA.make("x", rank=8, parts=PARTS))
        with pytest.raises(BankFullError, match="all 4 places"):
            adapters.load(RandomLoRA.make("y", rank=1, parts=PARTS))

    def test_nothing_is_compiled_after_warming_up(self) -> None:
        adapters = adapter_set(spare=1)
        adapters.warm_up()
        with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
            compiled: list[str] = []
            patch.setattr(jax._src.compiler, "backend_compile_and_load", lambda *a, **k: compiled.append("x"))
            adapters.load(RandomLoRA.make("x", rank=8, parts=PARTS))
            adapters.unload("x")
        assert not compiled

    def test_names_are_unique(self) -> None:
        with pytest.raises(ValueError, match="two adapters have the name 'one'"):
            AdapterSet(CONFIG, [LORAS[0], LORAS[0]], dtype=jnp.float32)
