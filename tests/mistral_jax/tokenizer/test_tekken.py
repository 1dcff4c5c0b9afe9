"""TekkenTokenizer against mistral-common (which runs tiktoken)."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_common.tokens.tokenizers.tekken import Tekkenizer

from conversion.tokenizer.tekken_file import ReasoningEfforts
from mistral_jax.tokenizer import TekkenTokenizer, TokenizerError
from tests.cpu_time import cpu_seconds_at_most
from tests.mistral_jax.tokenizer.tokenizer_corpus import (
    LOOK_ALIKES,
    TEKKEN,
    TEXTS,
    plain_text,
    tokenizer,
    write_small_tekken,
)

names = pytest.mark.parametrize("name", TEKKEN)


@cache
def reference(name: str) -> Tekkenizer:
    return Tekkenizer.from_file(TEKKEN[name])


@names
def test_encodes_and_decodes_as_mistral_common(name: str) -> None:
    ours, theirs = tokenizer(name), reference(name)
    assert (ours.vocab_size, ours.bos_id, ours.eos_id, ours.unk_id, ours.pad_id) == (131072, 1, 2, 0, 11)
    assert not ours.strips_leading_space
    assert ours.instruct_version == theirs.version.value
    assert {i: t for t, i in ours.control_tokens.items()} == {i: theirs.id_to_piece(i) for i in range(1000)}
    for text in TEXTS:
        ids = theirs.encode(text, bos=False, eos=False)
        assert ours.encode(text) == ours.encode(text, at_start=False) == ids, text
        assert ours.decode(ids) == text


def test_every_token_has_the_bytes_of_the_reference() -> None:
    ours, theirs = tokenizer("240718"), reference("240718")
    assert [ours.token_bytes(i) for i in range(131072)] == [theirs.id_to_byte_piece(i) for i in range(131072)]


@settings(max_examples=150, deadline=None)
@given(text=plain_text)
def test_any_text_encodes_as_the_reference_without_control_tokens(text: str) -> None:
    ours = tokenizer("240718")
    ids = ours.encode(text)
    assert ids == reference("240718").encode(text, bos=False, eos=False)
    assert min(ids, default=1000) >= 1000
    assert b"".join(map(ours.token_bytes, ids)) == text.encode()


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.one_of(st.integers(1000, 1255), st.integers(0, 131071)), max_size=12))
def test_any_ids_decode_to_the_bytes_with_replacement(ids: list[int]) -> None:
    ours = tokenizer("240718")
    data = b"".join(reference("240718").id_to_byte_piece(i) for i in ids)
    assert ours.decode(ids) == data.decode("utf-8", "replace")


def test_look_alikes_stay_text() -> None:
    ours = tokenizer("240911")
    for text in LOOK_ALIKES:
        assert ours.decode(ours.encode(text)) == text
    assert ours.decode([1, 3, *ours.encode("x"), 4], skip_control=False) == "<s>[INST]x[/INST]"


@pytest.mark.parametrize("text", ["a" * 1_000_000, " " * 1_000_000, "[INST]" * 150_000, "0" * 300_000, "aB" * 200_000])
def test_long_texts_take_linear_time(text: str) -> None:
    with cpu_seconds_at_most(10.0):
        ids = tokenizer("240718").encode(text)
    assert tokenizer("240718").decode(ids) == text


def _tiny(**changes: object) -> dict[str, object]:
    entries = [bytes([b]) for b in range(256)] + [b"ab", b"abc", b"unused"]
    vocab = [{"rank": i, "token_bytes": _base64(e), "token_str": None} for i, e in enumerate(entries)]
    config = {"pattern": r"\S+|\s+", "default_vocab_size": 278, "default_num_special_tokens": 20, "version": "v3"}
    return {"config": config, "vocab": vocab, **changes}


def _base64(data: bytes) -> str:
    import base64

    return base64.b64encode(data).decode()


def test_the_vocabulary_is_cut_to_its_size(tmp_path: Path) -> None:
    path = tmp_path / "tekken.json"
    path.write_text(json.dumps(_tiny()))
    ours = TekkenTokenizer.from_file(path)
    assert ours.vocab_size == 278
    assert ours.encode("abc ab") == [20 + 257, 20 + 32, 20 + 256]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": {}}, "version is missing"),
        ({"vocab": [{"rank": 0, "token_bytes": "AA=="}]}, "promises 258 ranked tokens and lists 1"),
        ({"vocab": [{"rank": 0, "token_bytes": "*"}] * 258}, "a form that we do not know"),
        ({"vocab": [{"rank": i, "token_bytes": _base64(b"%d" % i)} for i in range(258)]}, "lacks single bytes"),
        ({"special_tokens": [{"rank": 5, "token_str": "<s>"}]}, "have gaps"),
    ],
)
def test_errors_say_what_is_wrong(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = tmp_path / "tekken.json"
    path.write_text(json.dumps(_tiny(**changes)))
    with pytest.raises(TokenizerError, match=message):
        TekkenTokenizer.from_file(path)


def test_a_new_version_must_list_its_control_tokens(tmp_path: Path) -> None:
    data = _tiny()
    data["config"] = {**data["config"], "version": "v13"}
    path = tmp_path / "tekken.json"
    path.write_text(json.dumps(data))
    with pytest.raises(TokenizerError, match="v13 must list"):
        TekkenTokenizer.from_file(path)


def test_reasoning_efforts(tmp_path: Path) -> None:
    path = tmp_path / "tekken.json"
    write_small_tekken(path, "v15")
    assert TekkenTokenizer.from_file(path).reasoning_efforts == ReasoningEfforts(("none", "high"), "none")
    data = json.loads(path.read_bytes())
    for builder, message in (
        ({"reasoning_effort": {"values": ["none"], "default": "high"}}, "expected one of its values"),
        ({"reasoning_effort": {"values": ["none", 1], "default": "none"}}, "a list of texts"),
        ({"reasoning_effort": {"values": ["none"]}}, "default is missing"),
        ([], "an object"),
    ):
        path.write_text(json.dumps(data | {"model_settings_builder": builder}))
        with pytest.raises(TokenizerError, match=message):
            TekkenTokenizer.from_file(path)
    for builder in (None, {}, {"json_schema": {}}):
        path.write_text(json.dumps(data | {"model_settings_builder": builder}))
        assert TekkenTokenizer.from_file(path).reasoning_efforts is None
