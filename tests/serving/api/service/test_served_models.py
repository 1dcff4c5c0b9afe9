"""Names of models and adapters: what each stands for, and which names are taken."""

from __future__ import annotations

import pytest

from mistral_jax.adapters.choice import BASE, AdapterChoice
from serving.api.service.served_models import (
    NameTakenError,
    ServedModels,
    adapted_models,
    plain_models,
    with_aliases,
)
from serving.engine.adapter_registry import AdapterInfo


def info(name: str, number: int, **changes) -> AdapterInfo:
    return AdapterInfo(**{"name": name, "key": name, "number": number, "rank": 4, **changes})


def models(**changes) -> ServedModels:
    given = {
        "base_id": "lab/base",
        "base_root": "lab/base",
        "adapters": [info("poet", 0, expert=True), info("cook", 1, expert=True), info("extra", 2)],
        "created": 7,
        "mixture_id": "lab/mixture",
        "mixture_root": "lab/mixture",
    }
    return adapted_models(**given | changes)


def meaning(served: ServedModels, name: str | None) -> tuple[str, AdapterChoice] | None:
    found = served.find(name)
    return None if found is None else (found.id, found.choice)


def test_a_plain_model_has_its_id_and_default() -> None:
    served = plain_models("lab/base")
    assert meaning(served, None) == meaning(served, "default") == meaning(served, "lab/base") == ("lab/base", BASE)
    assert meaning(served, "base") is None
    assert not served.has_mixture
    assert served.adapters == served.experts == []


def test_with_adapters_the_default_is_the_base_and_each_adapter_has_its_name() -> None:
    served = models(mixture_id=None)
    assert meaning(served, None) == meaning(served, "base") == ("lab/base", BASE)
    assert meaning(served, "cook") == ("cook", AdapterChoice(weights=((1, 1.0),)))
    assert [model.id for model in served.models] == ["lab/base", "poet", "cook", "extra"]
    assert not served.has_mixture


def test_with_a_mixture_that_is_the_default_and_base_is_the_base() -> None:
    served = models(freeze_after=3)
    mixed = AdapterChoice(xlora=True, freeze_after=3)
    assert (
        meaning(served, None) == meaning(served, "default") == meaning(served, "lab/mixture") == ("lab/mixture", mixed)
    )
    assert meaning(served, "base") == meaning(served, "lab/base") == ("lab/base", BASE)
    assert [adapter.name for adapter in served.experts] == ["poet", "cook"]
    assert [(model.kind, model.parent) for model in served.models] == [
        ("base", None),
        *[("adapter", "lab/base")] * 3,
        ("mixture", "lab/base"),
    ]


def test_adapters_of_the_demo_have_a_prefix_in_their_ids_and_answer_to_their_names_too() -> None:
    served = models(
        base_id="demo", mixture_id="demo-xlora", adapter_prefix="demo-", adapters=[info("sums", 0, expert=True)]
    )
    assert [model.id for model in served.models] == ["demo", "demo-sums", "demo-xlora"]
    assert served.find("demo-sums") is served.find("sums") is not None
    assert served.find_adapter("demo-sums") == served.find_adapter("sums") == info("sums", 0, expert=True)
    assert meaning(served, "base") == ("demo", BASE)
    assert meaning(served, None) == ("demo-xlora", AdapterChoice(xlora=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapters": [info("base", 0)]}, "'base' would be the name of the base model and of the adapter 'base'"),
        ({"mixture_id": "lab/base"}, "'lab/base' would be the name of the base model and of the X-LoRA mixture"),
        ({"mixture_id": "poet"}, "'poet' would be the name of the adapter 'poet' and of the X-LoRA mixture"),
        (
            {"adapters": [info("default", 0)]},
            "'default' would be the name of the adapter 'default' and of the X-LoRA mixture",
        ),
    ],
)
def test_two_things_with_one_name_are_refused(changes, message: str) -> None:
    with pytest.raises(NameTakenError, match=message):
        models(**changes)


def test_adapters_come_and_go() -> None:
    served = models()
    first = info("new", 3, removable=True)
    assert served.add(first).id == "new"
    assert meaning(served, "new") == ("new", AdapterChoice(weights=((3, 1.0),)))
    for name in ("new", "poet", "base", "default", "lab/mixture", "lab/base"):
        with pytest.raises(NameTakenError, match=f"'{name}' is the name of"):
            served.check_free(name)
    served.remove(first)
    assert served.find("new") is None
    again = info("new", 4, removable=True)
    served.add(again)
    assert served.find_adapter("new") == again
    assert served.adapters[-1] == again


def test_the_default_is_listed_first() -> None:
    assert [model.id for model in models().listed] == ["lab/mixture", "lab/base", "poet", "cook", "extra"]
    assert [model.id for model in models(mixture_id=None).listed] == ["lab/base", "poet", "cook", "extra"]
    assert models().default.id == "lab/mixture"


def test_aliases_are_names_of_the_default() -> None:
    for served in (plain_models("lab/base"), models(mixture_id=None), models()):
        named = with_aliases(served, ["gpt-4o", "gpt-4o", "any/thing"])
        assert named.find("gpt-4o") is named.find("any/thing") is named.find(None) is named.default
        assert named.default.aliases[-2:] == ("gpt-4o", "any/thing")
        assert named.find("gpt-5") is None
        assert named.registry is served.registry
        with pytest.raises(NameTakenError, match="'gpt-4o' is the name of"):
            named.check_free("gpt-4o")


@pytest.mark.parametrize("name", ["poet", "lab/mixture", "lab/base", "base", "default"])
def test_an_alias_that_is_taken_is_refused(name: str) -> None:
    with pytest.raises(NameTakenError, match=f"--alias {name}: '{name}' is the name of"):
        with_aliases(models(), ["free", name])


def test_the_alias_for_any_name_stands_behind_all_others() -> None:
    served = with_aliases(models(), ["*"])
    assert served.find("gpt-4o") is served.find("*") is served.default
    assert meaning(served, "poet") == ("poet", AdapterChoice(weights=((0, 1.0),)))
    assert meaning(served, "base") == ("lab/base", BASE)
    served.add(info("new", 3, removable=True))
    assert meaning(served, "new") == ("new", AdapterChoice(weights=((3, 1.0),)))
    assert served.find_adapter("gpt-4o") is None
