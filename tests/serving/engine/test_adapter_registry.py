"""One registry of adapters: names, states, users; the same for whoever asks, from any thread."""

from __future__ import annotations

import threading

import pytest

from serving.engine.adapter_registry import AdapterInfo, AdapterRegistry, AdapterState
from serving.engine.messages import AdapterGoneError


def info(name: str, key: str | None = None, **changes) -> AdapterInfo:
    return AdapterInfo(**{"name": name, "key": key or name, "number": 0, "rank": 4, **changes})


def test_adapters_of_the_start_have_names_before_requests_may_use_them() -> None:
    registry = AdapterRegistry([info("poet"), info("cook")])
    assert [adapter.name for adapter in registry.named] == ["poet", "cook"]
    assert registry.state("poet") is AdapterState.LOADING
    with pytest.raises(AdapterGoneError, match="poet"):
        registry.enter([["poet"]])
    registry.loaded_at_start(["poet", "cook"])
    registry.enter([["poet"], ["cook", "poet"], []])
    assert registry.users() == {"poet": 2, "cook": 1}


def test_an_adapter_from_its_loading_until_its_place_is_free() -> None:
    registry = AdapterRegistry()
    key = registry.begin("poet")
    assert (registry.state(key), registry.find("poet")) == (AdapterState.LOADING, None)
    registry.ready(info("poet", key))
    assert (registry.state(key), registry.find("poet")) == (AdapterState.READY, info("poet", key))
    registry.enter([[key]])
    assert (registry.close(key), registry.close(key)) == (1, 1)
    assert (registry.state(key), registry.find("poet")) == (AdapterState.DRAINING, None)
    with pytest.raises(AdapterGoneError, match=key):
        registry.check([key])
    assert (registry.has_unused, registry.take_unused()) == (False, [])
    registry.leave([key])
    assert (registry.has_unused, registry.take_unused()) == (True, [key])
    assert (registry.state(key), registry.has_unused, registry.close(key)) == (AdapterState.GONE, False, 0)


def test_a_name_may_come_again_while_its_old_adapter_is_in_use() -> None:
    registry = AdapterRegistry([info("poet#1")])
    first = registry.begin("poet")
    assert first != "poet#1"
    registry.ready(info("poet", first))
    registry.enter([[first]])
    registry.close(first)
    second = registry.begin("poet")
    registry.ready(info("poet", second, number=1))
    assert second != first
    assert registry.find("poet") == info("poet", second, number=1)
    registry.leave([first])
    assert registry.take_unused() == [first]
    assert registry.find("poet") == info("poet", second, number=1)


def test_what_could_not_be_loaded_is_forgotten() -> None:
    registry = AdapterRegistry()
    key = registry.begin("poet")
    registry.give_up(key)
    assert (registry.state(key), registry.named) == (AdapterState.GONE, [])
    assert registry.begin("poet") != key


def test_all_requests_of_a_call_enter_or_none() -> None:
    registry = AdapterRegistry()
    registry.ready(info("poet"))
    with pytest.raises(AdapterGoneError, match="cook"):
        registry.enter([["poet"], ["poet", "cook"]])
    assert registry.users() == {}


def test_users_are_counted_from_many_threads() -> None:
    registry = AdapterRegistry()
    registry.ready(info("poet"))

    def use() -> None:
        for _ in range(500):
            registry.enter([["poet"]])
            registry.leave(["poet"])

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert registry.users() == {}
    assert registry.close("poet") == 0
