"""Two checkpoints compared: what is equal is found equal, and every difference is found and has the right size."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import mistral_jax
from conversion.to_gguf import convert_to_gguf
from mistral_jax.notebook.logit_differences import CHUNK_TOKENS, VocabularyMismatchError, text_pieces
from mistral_jax.notebook.tensor_differences import compare_arrays
from mistral_jax.notebook.verify import TEXT, verify
from tests.conversion.tiny_models import CONFIG, DEMO, random_tensors, write_folder, write_mistral_folder

pytestmark = pytest.mark.slow(by="file")

UP = "model.layers.1.mlp.up_proj.weight"
WORDS = "the cat sat on the mat and the dog sat on the cat"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("models") / "a")


def test_the_same_model_in_other_formats_is_equal_to_the_bit(model: Path, tmp_path: Path) -> None:
    convert_to_gguf(model, tmp_path / "b.gguf", type="f32")
    for other in (tmp_path / "b.gguf", write_mistral_folder(tmp_path / "b")):
        found = verify(model, other, text=WORDS)
        assert found.config == ()
        assert found.mismatched == ()
        assert len(found.tensors) == len(random_tensors(CONFIG))
        assert all(tensor.equal for tensor in found.tensors)
        assert found.logits is not None
        assert (found.logits.max_abs, found.logits.mean_kl, found.logits.top1_agreement) == (0, 0, 1)
        assert found.logits.perplexity_a == found.logits.perplexity_b
        assert found.failures(max_rms=0, max_kl=0) == []
        assert "are equal to the bit" in str(found)


def test_a_change_is_found_where_it_is_and_as_large_as_it_is(model: Path, tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG)
    before = tensors[UP].copy()
    tensors[UP][5, 7] += 3
    changed = verify(model, write_folder(tmp_path / "b", tensors=tensors, sliding_window=3), logits=False)
    assert [difference.name for difference in changed.config] == ["layer_windows"]
    assert [tensor.name for tensor in changed.tensors if not tensor.equal] == [UP]
    (tensor,) = (tensor for tensor in changed.tensors if not tensor.equal)
    assert tensor.max_abs == pytest.approx(3)
    assert tensor.rms == pytest.approx(3 / math.sqrt(before.size))
    assert tensor.relative_rms == pytest.approx(tensor.rms / np.sqrt(np.mean(before**2)))
    assert changed.relative_rms == tensor.relative_rms
    assert changed.failures() == []
    assert UP in changed.failures(max_rms=tensor.relative_rms / 2)[0]
    assert changed.failures(max_kl=1) == ["predictions were not compared, so nothing is known of their KL divergence"]


def test_predictions_are_compared_as_the_definitions_say(model: Path, tmp_path: Path) -> None:
    other = write_folder(tmp_path / "b", tensors={k: 1.1 * v for k, v in random_tensors(CONFIG).items()})
    found = verify(model, other, text=WORDS).logits
    assert found is not None
    a, b = (mistral_jax.load(path, dtype="float32", progress=False) for path in (model, other))
    tokens = a.encode(WORDS)
    logits = [np.asarray(m.logits(tokens), np.float64)[:-1] for m in (a, b)]
    p, q = (np.exp(x - x.max(-1, keepdims=True)) for x in logits)
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    kl = (p * np.log(p / q)).sum(-1)
    following = np.array(tokens[1:])[:, None]
    assert found.tokens == len(tokens) - 1
    assert found.max_abs == pytest.approx(np.abs(logits[0] - logits[1]).max(), rel=1e-4)
    assert found.mean_abs == pytest.approx(np.abs(logits[0] - logits[1]).mean(), rel=1e-4)
    assert found.mean_kl == pytest.approx(kl.mean(), rel=1e-3)
    assert found.max_kl == pytest.approx(kl.max(), rel=1e-3)
    assert found.top1_agreement == np.mean(logits[0].argmax(-1) == logits[1].argmax(-1))
    assert found.perplexity_a == pytest.approx(np.exp(-np.log(np.take_along_axis(p, following, 1)).mean()), rel=1e-4)
    assert found.perplexity_b == pytest.approx(np.exp(-np.log(np.take_along_axis(q, following, 1)).mean()), rel=1e-4)
    assert found.perplexity_a == pytest.approx(a.logprobs(WORDS).perplexity, rel=1e-4)
    assert verify(model, other, text=WORDS).failures(max_kl=found.mean_kl / 2)[0].startswith("the mean KL divergence")


def test_fewer_bits_predict_worse(tmp_path: Path) -> None:
    found = {}
    for kind in ("q8_0", "q4_0"):
        convert_to_gguf(DEMO, tmp_path / f"{kind}.gguf", type=kind)
        found[kind] = verify("demo", tmp_path / f"{kind}.gguf", max_tokens=100)
    assert 0 < found["q8_0"].relative_rms < 0.01 < found["q4_0"].relative_rms < 0.12
    assert 0 < found["q8_0"].logits.mean_kl < found["q4_0"].logits.mean_kl / 10
    assert found["q4_0"].logits.tokens == 100


def test_missing_tensors_and_other_shapes_are_failures(model: Path, tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG)
    del tensors["model.layers.2.mlp.down_proj.weight"]
    tensors[UP] = tensors[UP][:, :-1]
    tensors["extra"] = np.zeros(3, np.float32)
    found = verify(model, write_folder(tmp_path / "b", tensors=tensors))
    assert [str(mismatch) for mismatch in found.mismatched] == [
        f"{UP} is [96, 256] in A and [96, 255] in B",
        "model.layers.2.mlp.down_proj.weight is only in A",
        "extra is only in B",
    ]
    assert found.logits is None
    assert found.failures() == ["3 tensors do not match"]
    assert all(str(mismatch) in str(found) for mismatch in found.mismatched)


def test_a_tied_output_matrix_is_the_embedding(model: Path, tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    whole = write_folder(tmp_path / "a", tensors=tensors)
    del tensors["lm_head.weight"]
    tied = write_folder(tmp_path / "b", tensors=tensors, tie_word_embeddings=True)
    for a, b in ((whole, tied), (tied, whole)):
        found = verify(a, b, logits=False)
        assert [difference.name for difference in found.config] == ["tie_word_embeddings"]
        assert found.failures(max_rms=0) == []
    assert verify(model, tied, logits=False).failures(max_rms=0.1)[0].startswith("lm_head.weight")


def test_values_that_are_not_numbers_are_failures(model: Path, tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG)
    tensors[UP][0, 0] = np.nan
    found = verify(model, write_folder(tmp_path / "b", tensors=tensors), logits=False)
    assert found.failures(max_rms=1) == [f"1 tensors have values that are not numbers, {UP} among them"]


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_arrays_of_any_float_type_and_size(dtype: type) -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((3, 700_001)).astype(dtype)
    b = (a.astype(np.float32) + 0.5 * rng.standard_normal(a.shape)).astype(np.float32)
    found = compare_arrays("x", a, b)
    difference = a.astype(np.float64) - b.astype(np.float64)
    assert found.max_abs == pytest.approx(np.abs(difference).max())
    assert found.rms == pytest.approx(np.sqrt(np.mean(difference**2)))
    assert found.relative_rms == pytest.approx(found.rms / np.sqrt(np.mean(a.astype(np.float64) ** 2)))


def test_infinities_and_zeros() -> None:
    x = np.array([np.inf, 0.0, -np.inf], np.float32)
    assert compare_arrays("x", x, x).equal
    zeros = np.zeros(3, np.float32)
    assert compare_arrays("x", zeros, zeros).relative_rms == 0
    assert compare_arrays("x", zeros, zeros + 1).relative_rms == math.inf
    assert math.isnan(compare_arrays("x", zeros, np.full(3, np.nan, np.float32)).max_abs)


def test_long_texts_begin_anew_in_each_piece(model: Path) -> None:
    loaded = mistral_jax.load(model, dtype="float32", progress=False)
    tokens = loaded.encode(5 * TEXT)
    pieces = text_pieces(loaded, 5 * TEXT, 2 * CHUNK_TOKENS)
    assert {piece[0] for piece in pieces} == {loaded.tokenizer.bos_id}
    assert max(map(len, pieces)) == CHUNK_TOKENS
    assert [token for piece in pieces for token in piece[1:]] == tokens[1 : 2 * CHUNK_TOKENS + 1]
    assert verify(model, model, text=5 * TEXT, max_tokens=700).logits.tokens == 700  # type: ignore[union-attr]


def test_vocabularies_that_differ_are_told(model: Path, tmp_path: Path) -> None:
    other = write_folder(tmp_path / "b")
    for path in DEMO.glob("tokenizer*"):
        shutil.copy(path, other)
    with pytest.raises(ValueError, match="do not belong together"):
        verify(model, other)
    other = write_folder(tmp_path / "c")
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(
        text.replace('"a":', '"swapped":').replace('"b":', '"a":').replace('"swapped":', '"b":')
    )
    with pytest.raises(VocabularyMismatchError, match="different tokens"):
        verify(model, other, text="a cab")
    with pytest.raises(ValueError, match="too short"):
        verify(model, model, text="")
