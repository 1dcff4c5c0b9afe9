"""The door for notebooks, over a tiny random model with the bundled tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest
from flax import nnx

from mistral_jax.checkpoint.description import describe
from mistral_jax.checkpoint.load_module import load_module
from mistral_jax.checkpoint.weights import save_pretrained
from mistral_jax.hub.files import DEMO_FOLDER, find_model
from mistral_jax.model.config import ConfigError, MistralConfig
from mistral_jax.model.mistral import Mistral
from mistral_jax.notebook.language_model import LanguageModel
from mistral_jax.notebook.load import load

CONFIG = MistralConfig(
    vocab_size=4103,
    hidden_size=20,
    intermediate_size=24,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=10,
    max_position_embeddings=64,
    layer_windows=(None,),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (DEMO_FOLDER / "tokenizer.model").is_file():
        pytest.skip("the bundled tokenizer is not there")
    path = tmp_path_factory.mktemp("model")
    save_pretrained(Mistral(CONFIG, param_dtype=jnp.float32, rngs=nnx.Rngs(0)), path)
    for file in DEMO_FOLDER.glob("tokenizer*"):
        shutil.copy(file, path)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> LanguageModel:
    return load(folder, slots=2, progress=False)


def with_generation_config(folder: Path, tmp_path: Path, values: dict[str, Any]) -> Path:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "generation_config.json").write_text(json.dumps(values))
    return tmp_path


def test_a_second_answer_compiles_nothing(model: LanguageModel) -> None:
    first = model.generate("Once", temperature=0.0, max_tokens=3)
    programs = model.runner.programs.allocate
    compiled = programs._cache_size()
    assert model.generate("Once", temperature=0.0, max_tokens=3) == first
    assert model.runner.programs.allocate is programs
    assert (compiled, programs._cache_size()) == (1, 1)


def test_a_stream_is_the_whole_answer_and_continues_its_prompt(model: LanguageModel) -> None:
    space = next(t for t in range(model.tokenizer.vocab_size) if model.tokenizer.token_bytes(t).startswith(b" "))
    bias = {space: 100.0}
    for prompt in ("Once", "", [5, 6], [5, 1]):
        whole = model.generate(prompt, temperature=0.0, max_tokens=4, logit_bias=bias)
        assert "".join(model.stream(prompt, temperature=0.0, max_tokens=4, logit_bias=bias)) == whole.text
        begins = prompt in ("", [5, 1])  # after BOS
        assert whole.text.startswith(" ") != (begins and model.tokenizer.strips_leading_space)


def test_an_answer_of_no_tokens_is_refused(model: LanguageModel) -> None:
    for call in (model.generate, lambda *args, **settings: list(model.stream(*args, **settings))):
        with pytest.raises(ValueError, match="nothing would be generated; `logprobs` tells"):
            call("Once", max_tokens=0)


def test_settings_that_a_tokenizer_explains(model: LanguageModel) -> None:
    free = model.generate("Once", temperature=0.0, max_tokens=8, ignore_eos=True)
    tokens = [sampled.token for sampled in free.tokens]
    word = model.tokenizer.decode([1, tokens[0]])
    without = model.generate("Once", temperature=0.0, max_tokens=8, ignore_eos=True, bad_words=(word,))
    assert word in free.text
    assert word not in without.text
    stopped = model.generate("Once", temperature=0.0, max_tokens=8, stop_token_ids=(tokens[3],), min_tokens=2)
    assert (stopped.finish_reason, stopped.stop_reason) == ("stop", tokens[3])
    assert stopped.completion_tokens > 2
    kept = model.generate("Once", max_tokens=5, seed=1, allowed_token_ids=(5, 6), dry_multiplier=1.0, typical_p=0.9)
    assert {sampled.token for sampled in kept.tokens} <= {5, 6}


def test_what_cannot_be_kept_is_refused(model: LanguageModel) -> None:
    with pytest.raises(ValueError, match="stop_token_ids names token 4103; the vocabulary has 4103"):
        model.generate("Once", stop_token_ids=(4103,))
    [token] = model.tokenizer.encode("e", at_start=False)
    with pytest.raises(ValueError, match="nothing can be chosen"):
        model.generate("Once", allowed_token_ids=(token,), bad_words=("e",))


def test_a_message_that_is_left_open(model: LanguageModel) -> None:
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well"}]
    assert model.encode_chat(talk, continue_final_message=True) == model.encode_chat(talk)[:-1]


def test_weights_that_are_not_numbers_are_told_where_only_text_is_returned(folder: Path) -> None:
    description = describe(find_model(str(folder)))
    module = load_module(description)
    module.norm.weight[...] = module.norm.weight[...] * jnp.nan
    damaged = LanguageModel(description, module, slots=1, length=32)
    assert damaged.generate("x", max_tokens=3).finish_reason == "error"
    with pytest.raises(FloatingPointError, match="not numbers"):
        list(damaged.stream("x", max_tokens=3))


def test_what_generation_config_says(folder: Path, tmp_path: Path) -> None:
    values = {"eos_token_id": [7, 9], "temperature": 1, "top_k": -1, "top_p": None, "min_p": 0.25, "do_sample": True}
    found = describe(find_model(str(with_generation_config(folder, tmp_path, values))))
    assert found.eos_ids == {2, 7, 9}
    assert found.defaults == {"temperature": 1, "top_k": 0, "min_p": 0.25}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": 5}, r"temperature is 5; expected a number in \[0"),
        ({"temperature": "0.7"}, 'temperature is "0.7"; expected a number'),
        ({"temperature": True}, "temperature is true; expected a number"),
        ({"top_k": 50.5}, "top_k is 50.5; expected an integer"),
        ({"top_k": -2}, "top_k is -2"),
        ({"eos_token_id": ["2"]}, "eos_token_id is .*; expected a token id or a list of them"),
        ({"eos_token_id": [[2]]}, "eos_token_id"),
        ({"eos_token_id": -1}, "eos_token_id"),
    ],
)
def test_what_generation_config_cannot_say_is_told_with_its_name(
    folder: Path, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=rf"generation_config\.json: {message}"):
        describe(find_model(str(with_generation_config(folder, tmp_path, values))))
