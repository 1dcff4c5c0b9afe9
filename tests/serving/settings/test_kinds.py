"""The table of kinds: complete, without contradictions, and the source of the commands."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest

from serving.commands.cli import cli
from serving.settings.kinds import ADAPTED, GGUF, KINDS, LOADED, XLORA, Adapters, Kind, ModelKind, Weights, kind_of


def test_every_name_has_a_row_and_every_pair_of_choices_at_most_one() -> None:
    assert tuple(KINDS) == get_args(ModelKind)
    pairs = [(kind.weights, kind.adapters) for kind in KINDS.values()]
    assert len(pairs) == len(set(pairs))
    assert {("demo", "none"), *itertools.product(("safetensors", "gguf"), get_args(Adapters))} == set(pairs)
    assert {weights for weights, _ in pairs} == set(get_args(Weights))
    assert all(kind_of(kind.weights, kind.adapters) is kind for kind in KINDS.values())


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_name_says_both_choices(kind: Kind) -> None:
    base = {"demo": "demo", "safetensors": "mistral", "gguf": "gguf-mistral"}[kind.weights]
    assert kind.name == {"none": "", "lora": "lora-", "x-lora": "x-lora-"}[kind.adapters] + base


def test_groups_of_kinds_follow_from_the_choices() -> None:
    assert set(LOADED) == {"mistral", "lora-mistral", "x-lora-mistral"}
    assert set(GGUF) == {"gguf-mistral", "lora-gguf-mistral", "x-lora-gguf-mistral"}
    assert set(XLORA) == {"x-lora-mistral", "x-lora-gguf-mistral"}
    assert set(ADAPTED) == {"x-lora-mistral", "x-lora-gguf-mistral", "lora-mistral", "lora-gguf-mistral"}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_kind_has_its_command_and_its_second_name(kind: Kind) -> None:
    assert cli.commands[kind.name].help == kind.summary
    assert not cli.commands[kind.name].hidden
    if kind.other_name is not None:
        assert cli.commands[kind.other_name].hidden
        assert cli.commands[kind.other_name].params == cli.commands[kind.name].params
