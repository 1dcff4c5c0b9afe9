"""Patterns of module names: what Python's engine would say, in linear time; what has no linear time is refused by
name."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conversion.adapters.errors import AdapterError
from conversion.adapters.lora.config import read_lora_config
from conversion.adapters.lora.files import open_lora
from conversion.adapters.lora.name_patterns import MAX_PATTERNS, NamePattern, PatternError, PatternTable
from conversion.adapters.modules import PARTS, ModuleKey
from tests.conversion.adapters.folders import keys, peft_config, write_adapter
from tests.cpu_time import cpu_seconds_at_most

NAMES = [
    f"{prefix}{ModuleKey(layer, part).path}" for prefix in ("", "language_") for layer in (0, 1, 10) for part in PARTS
]
EVERY = [ModuleKey(layer, part).path for layer in range(16) for part in PARTS]

# From expressions that are in use, and pieces of them.
USED = [
    r".*\.(q_proj|v_proj)",
    r"model\.layers\.(1[0-9]|2[0-3])\.self_attn\.(?:q|k|v|o)_proj",
    r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:k_proj|q_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:q_proj))",
    r"^(language_model|model)(.*)(mlp\.[^.]+)$",
    r"layers\.\d+\.mlp",
    r"q_proj",
    r"self.attn.q_proj",
    r".*",
    r"",
    r"(?i)Q_PROJ",
    r"layers.1.self_attn.q_proj",
    r"model.layers.*_proj",
]
ATOMS = st.sampled_from(
    [
        "q",
        "k",
        "_proj",
        "model",
        "layers",
        ".",
        r"\.",
        r"\d",
        r"\w",
        "[qk]",
        "[^.]",
        "0",
        "1",
        "self_attn",
        "mlp",
        "^",
        "$",
        r"\b",
    ]
)
EXPRESSIONS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=4).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: f"(?:{'|'.join(parts)})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "*?", "{1,3}", "{2}"])).map(
            lambda pair: f"(?:{pair[0]}){pair[1]}"
        ),
    ),
    max_leaves=6,
)


def by_python(patterns: dict[str, int], name: str) -> int:
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), 0)


@pytest.mark.parametrize("pattern", USED)
def test_patterns_in_use_match_what_they_match_in_python(pattern: str) -> None:
    found = [NamePattern(pattern).matches(name) for name in NAMES]
    assert found == [re.fullmatch(pattern, name) is not None for name in NAMES]
    if not pattern.startswith("(?i)"):  # a flag that PEFT's own wrapping makes an error
        assert [PatternTable({pattern: 7}).get(n, 0) for n in NAMES] == [by_python({pattern: 7}, n) for n in NAMES]


@settings(max_examples=60, deadline=None)
@given(patterns=st.lists(EXPRESSIONS, min_size=1, max_size=4, unique=True))
def test_the_first_pattern_that_matches_decides_as_in_python(patterns: list[str]) -> None:
    values = {pattern: i + 1 for i, pattern in enumerate(patterns)}
    table = PatternTable(values)
    for name in NAMES[::5]:
        assert table.get(name, 0) == by_python(values, name)


names = st.lists(
    st.sampled_from(["model", "layers", "1", "10", "self_attn", "q_proj", ".", "_", "x"]), min_size=1, max_size=6
).map("".join)


@settings(max_examples=60, deadline=None)
@given(patterns=st.lists(names, min_size=1, max_size=8, unique=True), name=names)
def test_patterns_that_are_looked_up_match_as_in_python(patterns: list[str], name: str) -> None:
    values = {pattern: i + 1 for i, pattern in enumerate(patterns)}
    table = PatternTable(values)
    for each in (name, *NAMES[:3], *patterns):
        assert table.get(each, 0) == by_python(values, each)


@pytest.mark.parametrize(
    ("pattern", "what"),
    [
        ("(?=q).*", r"a look-ahead \(\(\?=\)"),
        ("(?!vision).*", "a look-ahead"),
        ("(?<=a)b", "a look-behind"),
        ("(?<!a)b", "a look-behind"),
        (r"(q)\1", "a back reference"),
        ("(?P<n>q)(?P=n)", "a back reference"),
        ("(?>q+)", "an atomic group"),
        ("(q)(?(1)a|b)", "a condition"),
        ("q{,3}", "a repetition without a lower bound"),
        ("[[:alpha:]]", "a named class"),
        (r"\pL", "an escape that Python does not know"),
        ("(", "no regular expression"),
        ("a)|(b", "no regular expression"),
        ("a**", "no regular expression"),
        ("((a{1000}){1000}){1000}", "no regular expression"),
        ("(?:[a-z]{900}|[b-y]{800}){3}" * 9, "no regular expression|too large"),
        ("a" * 20_000, "20,000 characters"),
    ],
)
def test_what_is_not_matched_in_linear_time_is_refused_by_name(pattern: str, what: str) -> None:
    for make in (NamePattern, lambda p: PatternTable({p: 1})):
        with pytest.raises(PatternError, match=what) as caught:
            make(pattern)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500


HOSTILE = [
    "([a-z0-9_.]+)+!",
    "(a|a)*b",
    "(.*)*x",
    "(([a-z_.]*)*)*!",
    "([^!]*!?)*z",
    "(.{0,30}){0,30}!",
    "(?:.*.*.*.*.*.*.*.*.*)!",
]


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern", "target_modules", "exclude_modules"])
def test_no_pattern_takes_long(tmp_path: Path, field: str) -> None:
    with cpu_seconds_at_most(10.0):
        for pattern in HOSTILE:
            value = pattern if field.endswith("modules") else {pattern: 16}
            path = tmp_path / "adapter_config.json"
            path.write_text(json.dumps(peft_config(**{field: value})))
            try:
                config = read_lora_config(path)
            except AdapterError as error:
                assert field in str(error)  # noqa: PT017
                continue
            for name in EVERY:
                assert (config.rank_of(name), config.scale_of(name)) != (16, 16)
                config.targets(name, 0)


@pytest.mark.parametrize(
    "pattern", ["layers.{}.x", r"layers\.{}\.(q|k)_proj", "model.layers.{}.self_attn.q_proj", "x{}_proj.*"]
)
def test_thousands_of_patterns_take_no_longer_than_their_number(pattern: str) -> None:
    values = {pattern.replace("{}", str(i)): i for i in range(2000)}
    with cpu_seconds_at_most(15.0):  # 25 seconds with Python's engine
        table = PatternTable(values)
        for name in [*EVERY, *EVERY]:
            table.get(name, 0)


def test_too_many_patterns_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "adapter_config.json"
    for field, value in (
        ("rank_pattern", {f"m{i}": 8 for i in range(MAX_PATTERNS + 1)}),
        ("target_modules", [f"m{i}" for i in range(MAX_PATTERNS + 1)]),
        ("exclude_modules", [f"m{i}" for i in range(MAX_PATTERNS + 1)]),
    ):
        path.write_text(json.dumps(peft_config(**{field: value})))
        with pytest.raises(AdapterError, match=f"{field} has 4,097 .*expected at most 4,096"):
            read_lora_config(path)


# Files.


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with names")
@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_pipe_in_the_place_of_a_file_is_refused_at_once(tmp_path: Path, name: str) -> None:
    folder = write_adapter(tmp_path / "a", keys(["q_proj"]), target_modules=["q_proj"])
    (folder / name).unlink()
    os.mkfifo(folder / name)
    start = time.monotonic()
    with pytest.raises(AdapterError):
        open_lora(folder)
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"[" * 100_000, "JSON|nested"),
        (b'{"r": ' + b"9" * 5000 + b"}", "JSON"),
        (b'{"a": ' * 200 + b"1" + b"}" * 200, "nested"),
        (b" " * (5 << 20), "5,242,880 bytes"),
        (b"\xff{}", "UTF-8"),
        (b"[]", "expected an object"),
    ],
)
def test_a_configuration_out_of_bounds_is_one_line(tmp_path: Path, content: bytes, what: str) -> None:
    folder = write_adapter(tmp_path / "a", keys(["q_proj"]), target_modules=["q_proj"])
    (folder / "adapter_config.json").write_bytes(content)
    with pytest.raises(AdapterError, match=what) as caught:
        open_lora(folder)
    assert "\n" not in str(caught.value)


def test_a_layer_that_no_model_has_is_refused(tmp_path: Path) -> None:
    """Every layer below it would be asked about."""
    folder = write_adapter(tmp_path / "a", [ModuleKey(99999, "q_proj")], target_modules=["k_proj"])
    with pytest.raises(AdapterError, match=r"layer 99999; expected below 4,096"):
        open_lora(folder)
