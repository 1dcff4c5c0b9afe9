"""The door for notebooks, with adapters: who answers, with which weights, and what the classifier says."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from conversion.adapters.modules import ModuleKey
from conversion.adapters.writing import NewLoRA, write_lora, write_xlora
from conversion.adapters.xlora.config import XLoRAConfig
from mistral_jax.adapters.bank import BankFullError
from mistral_jax.adapters.selection import AdapterSelectionError
from mistral_jax.checkpoint.weights import save_pretrained
from mistral_jax.hub.files import DEMO_FOLDER
from mistral_jax.model.config import MistralConfig
from mistral_jax.model.low_rank import part_features
from mistral_jax.model.mistral import Mistral
from mistral_jax.notebook.language_model import LanguageModel
from mistral_jax.notebook.load import load

pytestmark = pytest.mark.slow(by="file")

CONFIG = MistralConfig(
    vocab_size=2051,
    hidden_size=20,
    intermediate_size=24,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=10,
    max_position_embeddings=64,
    layer_windows=(None, None),
)
PARTS = {"poet": ("q_proj", "down_proj"), "cook": ("q_proj", "o_proj"), "clerk": ("down_proj",)}
MODULES = [ModuleKey(layer, part) for layer in range(2) for part in ("q_proj", "o_proj", "down_proj")]
PROMPT = "What is a KV cache?"
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 6, "ignore_eos": True}


def lora(name: str) -> NewLoRA:
    rng = np.random.default_rng(list(PARTS).index(name))
    sizes = part_features(CONFIG)
    factors = {
        ModuleKey(layer, part): (
            rng.normal(size=(3, sizes[part][1])).astype(np.float32),
            rng.normal(size=(sizes[part][0], 3)).astype(np.float32),
        )
        for layer in range(2)
        for part in PARTS[name]
    }
    return NewLoRA(factors=factors, rank=3, alpha=6.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, the LoRA "clerk", and mixtures of "poet" and "cook"."""
    path = tmp_path_factory.mktemp("model")
    base = path / "base"
    save_pretrained(Mistral(CONFIG, param_dtype=jnp.float32, rngs=nnx.Rngs(0)), base)
    for file in DEMO_FOLDER.glob("tokenizer*"):
        shutil.copy(file, base)
    write_lora(path / "clerk", lora("clerk"), base_model="base")
    rng = np.random.default_rng(9)
    for name, settings in {
        "mixture": {"layerwise_scalings": True},
        "one-of-two": {"layerwise_scalings": True, "top_k_lora": 1, "global_scaling_weight": 0.5},
        "flat": {"enable_softmax": False},
    }.items():
        rows = 2 * (len(MODULES) if "layerwise_scalings" in settings else 1)
        classifier = rng.normal(size=(rows, 20)).astype(np.float32), rng.normal(size=rows).astype(np.float32)
        write_xlora(
            path / name,
            config=XLoRAConfig(hidden_size=20, **settings),
            classifier=[classifier],
            adapters={"poet": lora("poet"), "cook": lora("cook")},
            base_model="base",
        )
    return path


@pytest.fixture(scope="module")
def mixture(folder: Path) -> LanguageModel:
    return load(
        folder / "base", xlora=folder / "mixture", loras=[folder / "clerk"], dtype="float32", slots=2, progress=False
    )


@pytest.fixture(scope="module")
def single(folder: Path) -> LanguageModel:
    return load(
        folder / "base",
        loras={"clerk": folder / "clerk"},
        spare_adapters=1,
        spare_rank=4,
        dtype="float32",
        slots=2,
        progress=False,
    )


def test_by_default_the_classifier_decides_and_without_one_the_base_answers(
    mixture: LanguageModel, single: LanguageModel, folder: Path
) -> None:
    base = load(folder / "base", dtype="float32", slots=2, progress=False)
    assert base.adapters == ()
    assert single.adapters == ("clerk",)
    assert mixture.adapters == ("poet", "cook", "clerk")
    expected = base.generate(PROMPT, **GREEDY).text
    assert single.generate(PROMPT, **GREEDY).text == expected
    assert mixture.generate(PROMPT, adapter="base", **GREEDY).text == expected
    texts = {mixture.generate(PROMPT, adapter=name, **GREEDY).text for name in ("base", *mixture.adapters)}
    mixed = mixture.generate(PROMPT, **GREEDY).text
    assert len(texts | {mixed}) == 5
    assert single.generate(PROMPT, adapter="clerk", **GREEDY) == single.generate(
        PROMPT, adapters={"clerk": 1.0}, **GREEDY
    )
    assert "".join(mixture.stream(PROMPT, **GREEDY)) == mixed


@pytest.mark.parametrize(
    "who",
    [{}, {"adapter": "base"}, {"adapter": "cook"}, {"adapters": {"poet": 0.5, "clerk": -1.5}}],
    ids=["mixture", "base", "one", "by-hand"],
)
def test_the_answer_is_what_whole_text_logits_expect(mixture: LanguageModel, who: dict[str, Any]) -> None:
    prompt = mixture.encode(PROMPT)
    answer = [sampled.token for sampled in mixture.generate(PROMPT, **GREEDY, **who).tokens]
    logits = np.asarray(mixture.logits([*prompt, *answer], **who))
    assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == answer
    likely = mixture.logprobs([*prompt, *answer], **who)
    assert likely.logprobs[-1] == pytest.approx(np.log(np.exp(logits[-2] - logits[-2].max()).sum() ** -1), abs=1e-4)


def test_kept_weights_are_the_scalings_of_the_tokens_before(mixture: LanguageModel) -> None:
    prompt = mixture.encode(PROMPT)
    answer = mixture.generate(PROMPT, keep_weights=True, **GREEDY)
    whole = mixture.scalings([*prompt, *(sampled.token for sampled in answer.tokens)])
    assert answer.adapters == mixture.adapters
    assert answer.adapter_weights is not None
    assert answer.adapter_weights.shape == (6, len(MODULES), 3)
    assert answer.adapter_weights.dtype == np.float32
    np.testing.assert_allclose(answer.adapter_weights[..., :2], whole.weights[len(prompt) - 1 : -1], atol=1e-5)
    assert not answer.adapter_weights[..., 2].any()
    assert mixture.generate(PROMPT, **GREEDY).adapter_weights is None


def test_frozen_and_fixed_weights_are_kept_too(mixture: LanguageModel, single: LanguageModel) -> None:
    live = mixture.generate(PROMPT, keep_weights=True, **GREEDY).adapter_weights
    frozen = mixture.generate(PROMPT, keep_weights=True, freeze_after=2, **GREEDY).adapter_weights
    assert live is not None
    assert frozen is not None
    assert (live[:3] == frozen[:3]).all()
    assert (frozen[3:] == frozen[2]).all()
    assert (live[3] != live[2]).any()
    fixed = mixture.generate(PROMPT, keep_weights=True, adapters={"cook": 0.5, "clerk": 2}, **GREEDY).adapter_weights
    assert fixed is not None
    assert (fixed == np.array([0, 0.5, 2], np.float32)).all()
    alone = single.generate(PROMPT, adapter="clerk", keep_weights=True, **GREEDY).adapter_weights
    assert alone is not None
    assert alone.tolist() == [[[1.0]]] * 6


def test_several_answers_keep_weights_of_their_own(mixture: LanguageModel) -> None:
    prompts = ["Once", PROMPT, "A B C D"]
    together = mixture.generate(prompts, keep_weights=True, **GREEDY)
    for prompt, answer in zip(prompts, together, strict=True):
        alone = mixture.generate(prompt, keep_weights=True, **GREEDY)
        assert answer.text == alone.text
        np.testing.assert_array_equal(answer.adapter_weights, alone.adapter_weights)


def test_scalings_say_what_they_are_of(mixture: LanguageModel, folder: Path) -> None:
    scalings = mixture.scalings(PROMPT)
    tokens = mixture.encode(PROMPT)
    assert scalings.tokens == tuple(tokens)
    assert scalings.texts == tuple(mixture.tokenizer.token_text(token) for token in tokens)
    assert scalings.adapters == ("poet", "cook")
    assert scalings.modules == tuple(MODULES)
    assert scalings.values.shape == (len(tokens), len(MODULES), 2)
    np.testing.assert_allclose(scalings.values.sum(-1), 1, atol=1e-6)
    np.testing.assert_array_equal(scalings.values, scalings.weights)
    part = scalings[2:4]
    assert (part.tokens, part.texts, len(part)) == (scalings.tokens[2:4], scalings.texts[2:4], 2)
    np.testing.assert_array_equal(part.values, scalings.values[2:4])
    with pytest.raises(TypeError, match=r"scalings\[3:4\]"):
        scalings[3]  # pyright: ignore[reportArgumentType]
    best = load(folder / "base", xlora=folder / "one-of-two", slots=2, progress=False).scalings(PROMPT)
    np.testing.assert_allclose(best.weights.max(-1), best.values.max(-1) * 0.5, rtol=1e-6)
    assert not best.weights.min(-1).any()
    flat = load(folder / "base", xlora=folder / "flat", slots=2, progress=False).scalings(PROMPT)
    assert (flat.modules, flat.softmax, flat.values.shape[1]) == ((), False, 1)


def test_a_conversation_may_stand_wherever_a_text_may(mixture: LanguageModel) -> None:
    asked = [{"role": "user", "content": PROMPT}]
    answer = mixture.generate(asked, **GREEDY)
    assert answer.text == mixture.chat(PROMPT, **GREEDY) == "".join(mixture.stream(asked, **GREEDY))
    assert answer.prompt_tokens == len(mixture.encode_chat(PROMPT))
    answered = [*asked, {"role": "assistant", "content": "It is."}]
    assert mixture.scalings(answered).tokens[: answer.prompt_tokens] == tuple(mixture.encode_chat(asked))
    assert len(mixture.scalings(answered)) > answer.prompt_tokens


@pytest.mark.parametrize(
    ("who", "message"),
    [
        ({"adapter": "baker"}, "no adapter 'baker'; expected one of poet, cook, clerk, or 'base' for none"),
        ({"adapters": {"cook": 1, "baker": 1}}, "no adapter 'baker'"),
        ({"adapters": {"base": 0.5}}, "'base' is the model itself and takes no weight; its adapters are poet, cook"),
        ({"adapters": {}}, "adapters is empty"),
        ({"adapters": {"cook": float("nan")}}, "weight of adapter 'cook' is nan; expected a finite number"),
        ({"adapters": {"cook": "1"}}, "weight of adapter 'cook' is '1'"),
        ({"adapters": {"cook": True}}, "weight of adapter 'cook' is True"),
        ({"adapter": "cook", "adapters": {"poet": 1}}, "expected one of the two"),
        ({"adapter": "cook", "freeze_after": 3}, "freeze_after keeps what the X-LoRA classifier said"),
        ({"freeze_after": 0}, "freeze_after is 0; expected the number of an answer token"),
    ],
)
def test_what_cannot_be_meant_is_told(mixture: LanguageModel, who: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterSelectionError, match=message):
        mixture.generate(PROMPT, **who)
    with pytest.raises(AdapterSelectionError, match=message):
        mixture.chat(PROMPT, **who)


def test_a_model_without_adapters_or_classifier_says_so(single: LanguageModel, folder: Path) -> None:
    base = load(folder / "base", slots=2, progress=False)
    with pytest.raises(AdapterSelectionError, match="'poet': the model was loaded without adapters"):
        base.chat(PROMPT, adapter="poet")
    assert base.generate(PROMPT, keep_weights=True, **GREEDY).adapter_weights is None
    for model in (base, single):
        with pytest.raises(ValueError, match="no X-LoRA classifier"):
            model.scalings(PROMPT)
    with pytest.raises(BankFullError, match="spare_adapters"):
        base.load_adapter("clerk", folder / "clerk")


def test_adapters_come_and_go(single: LanguageModel, folder: Path) -> None:
    with pytest.raises(BankFullError, match="spare_adapters"):
        load(folder / "base", loras=[folder / "clerk"], slots=2, progress=False).load_adapter("x", folder / "clerk")
    before = single.generate(PROMPT, adapter="clerk", **GREEDY).text
    single.load_adapter("poet", folder / "mixture" / "poet")
    assert single.adapters == ("clerk", "poet")
    compiled = single.runner.programs.forward._cache_size()
    poem = single.generate(PROMPT, adapter="poet", **GREEDY).text
    assert poem != before
    expected = load(folder / "base", loras=[folder / "mixture" / "poet"], dtype="float32", slots=2, progress=False)
    assert poem == expected.generate(PROMPT, adapter="poet", **GREEDY).text
    with pytest.raises(BankFullError, match="unload one first"):
        single.load_adapter("cook", folder / "mixture" / "cook")
    with pytest.raises(ValueError, match="cannot be called 'base'"):
        single.load_adapter("base", folder / "mixture" / "cook")
    single.unload_adapter("poet")
    with pytest.raises(AdapterSelectionError, match="no adapter 'poet'; the model has clerk"):
        single.unload_adapter("poet")
    assert single.generate(PROMPT, adapter="clerk", **GREEDY).text == before
    assert single.runner.programs.forward._cache_size() == compiled


def test_an_expert_stays(mixture: LanguageModel) -> None:
    with pytest.raises(AdapterSelectionError, match="'cook' is an expert of the X-LoRA mixture"):
        mixture.unload_adapter("cook")


def test_names_of_adapters_are_the_folders_own_or_given(folder: Path) -> None:
    poet = folder / "mixture" / "poet"
    with pytest.raises(ValueError, match="two have one name; give names"):
        load(folder / "base", loras=[poet, folder / "flat" / "poet"])
    with pytest.raises(TypeError, match="expected a list of folders"):
        load(folder / "base", loras=str(poet))
    with pytest.raises(ValueError, match="cannot be called 'base'"):
        load(folder / "base", loras={"base": poet}, progress=False)
    with pytest.raises(ValueError, match="demo-xlora has a mixture of its own"):
        load("demo-xlora", xlora=folder / "flat")


def test_answers_with_weights_can_be_compared(mixture: LanguageModel) -> None:
    first, second = (mixture.generate(PROMPT, keep_weights=True, **GREEDY) for _ in range(2))
    assert first == second
