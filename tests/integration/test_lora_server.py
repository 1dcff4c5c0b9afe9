"""A real server with adapters: many kinds of requests at once, adapters that come and go, and input that is wrong."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import jax
import numpy as np
import pytest

from mistral_jax.runtime.decode_loop import DecodeLoop, LoopResults
from serving.build import adapter_loader
from serving.build.build_service import build_service
from serving.engine.engine import JaxEngine
from serving.settings.settings import Settings
from tests.integration.adapted_models import write_adapter, write_base, write_mixture
from tests.serving.harness import TEXT, events_of, listening, wait_for, wait_until_ready

pytestmark = pytest.mark.slow(by="file")

ROOM = 2
"""Adapters that may be loaded later."""
REMOVED = "Success: LoRA adapter 'red' removed successfully."


@dataclass
class Adapted:
    """A server in this process, on a real port."""

    url: str
    engine: JaxEngine
    folder: Path
    """Its --lora-folder."""
    read: list[np.ndarray] = field(default_factory=list[np.ndarray])
    """The adapter weights that were brought to the host, step by step."""

    def post(self, path: str, body: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=60)

    def complete(self, **body: Any) -> dict[str, Any]:
        response = self.post(TEXT, {"prompt": "Once upon", "max_tokens": 12, "ignore_eos": True, **body})
        assert response.status_code == 200, response.text
        return response.json()["choices"][0]

    def refused(self, status: int = 400, path: str = TEXT, **body: Any) -> dict[str, Any]:
        response = self.post(path, {"prompt": "Once upon", "max_tokens": 2, **body} if path == TEXT else body)
        assert response.status_code == status, response.text
        return response.json()["error"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, mixture, extra and a folder of adapters that may be loaded."""
    root = tmp_path_factory.mktemp("adapted")
    base = write_base(root / "base")
    write_mixture(root / "mixture", base)
    write_adapter(root / "extra", base, seed=20, rank=2)
    (root / "later").mkdir()
    for i, name in enumerate(("red", "green", "blue")):
        write_adapter(root / "later" / name, base, seed=30 + i)
    write_adapter(root / "later" / "wide", base, seed=40, rank=9)
    write_adapter(root / "later" / "few", base, seed=41, parts=("k_proj",))
    return root


def settings_of(files: Path, **changes: Any) -> dict[str, Any]:
    return {
        "model_kind": "x-lora-mistral",
        "model_id": str(files / "base"),
        "xlora_model_id": str(files / "mixture"),
        "loras": (f"extra={files / 'extra'}",),
        "lora_folder": files / "later",
        "spare_loras": ROOM,
        "max_lora_rank": 8,
        "device": "cpu",
        "dtype": "float32",
        "max_seqs": 16,
        "max_seq_len": 128,
        "prefill_chunk": 16,
        "wait_for_programs": True,
        "compilation_cache": os.environ["JAX_COMPILATION_CACHE_DIR"],
        **changes,
    }


@pytest.fixture(scope="module")
def server(files: Path) -> Iterator[Adapted]:
    options = settings_of(files)
    service = build_service(Settings(**options))
    engine = service.engine
    assert isinstance(engine, JaxEngine)
    read: list[np.ndarray] = []
    step = DecodeLoop.step

    def watched(self: DecodeLoop[Any], *args: Any, **options: Any) -> LoopResults[Any]:
        results = step(self, *args, **options)
        if results.weights is not None:
            read.append(results.weights)
        return results

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DecodeLoop, "step", watched)
        with listening(service=service, **options) as server:
            wait_until_ready(engine)
            yield Adapted(server.url, engine, files / "later", read)


@pytest.fixture
def compiled() -> Iterator[list[str]]:
    """Programs that are compiled meanwhile."""
    found: list[str] = []

    def listen(event: str, duration: float, **_: Any) -> None:
        if "backend_compile" in event:
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def mixed_requests() -> list[dict[str, Any]]:
    """Sixteen: the base, single adapters, mixtures by hand, X-LoRA with and without frozen weights; greedy and
    sampled."""
    uses: list[dict[str, Any]] = [
        {"model": "base"},
        {"model": "mixture"},
        {},
        {"model": "one"},
        {"model": "two"},
        {"adapter": "three"},
        {"model": "extra"},
        {"adapter": "extra"},
        {"adapters": {"one": 0.5, "extra": -0.7}},
        {"adapters": {"one": 0.2, "two": 0.3, "three": 0.5}},
        {"xlora": {"non_granular_index": 1}},
        {"xlora": {"non_granular_index": 5}},
        {"xlora": {"scalings": "tokens"}},
        {"xlora": {"scalings": "full"}},
        {"xlora": {"scalings": "summary"}, "model": "default"},
        {"adapter": "base", "xlora": {"scalings": "tokens"}},
    ]
    prompts = ["Once upon", "The", "A long story about a dog and a cat that", "Hello world"]
    return [
        {
            "prompt": prompts[i % 4] * (1 + i % 3),
            "max_tokens": 10 + i % 7,
            "ignore_eos": True,
            "seed": i,
            "temperature": (0.0, 1.0, 0.7)[i % 3],
            "logprobs": 3,
            **use,
        }
        for i, use in enumerate(uses)
    ]


def test_sixteen_kinds_of_requests_at_once_each_get_what_they_get_alone(server: Adapted) -> None:
    bodies = mixed_requests()

    async def run() -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:

            async def ask(body: dict[str, Any]) -> Any:
                response = await client.post(TEXT, json=body)
                assert response.status_code == 200, response.text
                return response.json()["choices"]

            alone = [await ask(body) for body in bodies]
            for _ in range(2):
                assert await asyncio.gather(*(ask(body) for body in bodies)) == alone
            texts = [choices[0]["text"] for choices in alone]
            assert texts[6] != texts[0]

    asyncio.run(run())


def test_names_lead_to_the_same_answers_as_what_they_stand_for(server: Adapted) -> None:
    text = {name: server.complete(model=name, temperature=0)["text"] for name in ("base", "one", "extra", "mixture")}
    assert len(set(text.values())) == 4
    assert server.complete(temperature=0)["text"] == text["mixture"]
    assert server.complete(model="base", adapters={"one": 1}, temperature=0)["text"] == text["one"]
    assert server.complete(model="one", adapter="one", temperature=0)["text"] == text["one"]
    assert server.complete(adapter="base", temperature=0)["text"] == text["base"]
    models = {model["id"]: model for model in httpx.get(f"{server.url}/v1/models").json()["data"]}
    assert list(models) == ["mixture", "base", "one", "two", "three", "extra"]
    assert models["mixture"]["aliases"] == ["default"]
    assert (models["one"]["parent"], models["one"]["root"]) == ("base", "one")
    listed = httpx.get(f"{server.url}/v1/lora_adapters").json()["data"]
    assert [(a["name"], a["rank"], a["expert"], a["removable"]) for a in listed] == [
        ("one", 3, True, False),
        ("two", 4, True, False),
        ("three", 5, True, False),
        ("extra", 2, False, False),
    ]
    assert listed[1]["target_modules"] == ["q_proj", "down_proj"]


def test_weights_are_told_in_three_ways_that_agree(server: Adapted) -> None:
    same = {"temperature": 0, "prompt": "Hello world", "max_tokens": 9}
    full = server.complete(xlora={"scalings": "full"}, **same)["xlora"]
    tokens = server.complete(xlora={"scalings": "tokens"}, **same)["xlora"]
    summary = server.complete(xlora={"scalings": "summary"}, **same)["xlora"]
    assert full["adapters"] == tokens["adapters"] == summary["adapters"] == ["one", "two", "three"]
    parts = ["self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"]
    assert full["modules"] == [f"model.layers.{layer}.{part}" for layer in range(2) for part in parts]
    assert "modules" not in tokens
    weights = np.array([token["weights"] for token in full["scalings"]])
    assert weights.shape == (9, 10, 3)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=5e-6)  # a softmax, six decimals
    np.testing.assert_allclose([t["weights"] for t in tokens["scalings"]], weights.mean(1), atol=2e-6)
    np.testing.assert_allclose(summary["scalings"], weights.mean((0, 1)), atol=2e-6)
    assert len({tuple(token["weights"]) for token in tokens["scalings"]}) > 1
    assert "".join(t["token"] for t in tokens["scalings"]).strip() == server.complete(**same)["text"].strip()


@pytest.mark.parametrize("detail", ["summary", "tokens", "full"])
def test_streams_tell_the_same_weights(server: Adapted, detail: str) -> None:
    body = {"prompt": "Hello", "max_tokens": 10, "temperature": 0, "ignore_eos": True, "xlora": {"scalings": detail}}
    whole = server.complete(**body)["xlora"]
    chunks = [c["choices"][0] for c in events_of(server.post(TEXT, body | {"stream": True}).text)]
    told = [chunk["xlora"] for chunk in chunks if "xlora" in chunk]
    assert all(one["adapters"] == whole["adapters"] for one in told)
    if detail == "summary":
        assert told[-1] == whole
        assert chunks[-1]["xlora"] == whole
        assert told[0]["scalings"] != whole["scalings"]
    else:
        assert [token for one in told for token in one["scalings"]] == whole["scalings"]
        assert [one.get("modules") for one in told[1:]] == [None] * (len(told) - 1)
        assert told[0].get("modules") == whole.get("modules")


def test_fixed_weights_and_frozen_ones_are_told_as_what_they_are(server: Adapted) -> None:
    wanted = {"xlora": {"scalings": "tokens"}, "max_tokens": 6}
    base = server.complete(model="base", **wanted)["xlora"]
    assert [token["weights"] for token in base["scalings"]] == [[0, 0, 0]] * 6
    hand = server.complete(adapters={"two": 0.25, "extra": -1.5}, **wanted)["xlora"]
    assert hand["adapters"] == ["one", "two", "three", "extra"]
    assert [token["weights"] for token in hand["scalings"]] == [[0, 0.25, 0, -1.5]] * 6
    live = server.complete(**wanted, temperature=0)["xlora"]["scalings"]
    frozen = server.complete(max_tokens=6, xlora={"scalings": "tokens", "non_granular_index": 2}, temperature=0)[
        "xlora"
    ]["scalings"]
    assert [t["weights"] for t in frozen[:3]] == [t["weights"] for t in live[:3]]
    assert all(t["weights"] == frozen[2]["weights"] for t in frozen[3:])
    assert live[3]["weights"] != live[2]["weights"]


def test_weights_come_to_the_host_only_for_those_who_ask(server: Adapted) -> None:
    server.read.clear()
    server.complete(max_tokens=20)
    server.complete(model="one", xlora={"scalings": "full"})
    assert server.read == []
    server.complete(max_tokens=20, xlora={"scalings": "summary"})
    assert len(server.read) >= 20


def test_metrics_tell_shares_only_once_somebody_asks(server: Adapted) -> None:
    def metrics() -> dict[str, float]:
        response = httpx.get(f"{server.url}/metrics")
        assert response.headers["content-type"].startswith("text/plain")
        lines = [line for line in response.text.splitlines() if not line.startswith("#")]
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}

    before = metrics()
    server.read.clear()
    server.complete(max_tokens=20)
    server.complete(model="one", max_tokens=20)
    after = metrics()
    # One round in a second; a speculative first round gives no token.
    assert 1 <= len(server.read) <= 3
    shares = [after[f'mistral_jax_adapter_share{{adapter="{name}"}}'] for name in ("one", "two", "three")]
    assert sum(shares) == pytest.approx(1, abs=1e-5)
    counts = {key: after[key] - before.get(key, 0) for key in after}
    assert counts["mistral_jax_generated_tokens_total"] == 40
    assert counts['mistral_jax_requests_total{adapter="mixture",model="mixture"}'] == 1
    assert counts['mistral_jax_requests_total{adapter="one",model="one"}'] == 1
    assert (after["mistral_jax_slots"], after["mistral_jax_ready"]) == (16, 1)


def load(server: Adapted, name: str, path: str | None = None) -> None:
    body = {"lora_name": name} if path is None else {"lora_name": name, "lora_path": path}
    response = server.post("/v1/load_lora_adapter", body)
    assert response.status_code == 200, response.text


def unload(server: Adapted, name: str) -> dict[str, Any]:
    response = server.post("/v1/unload_lora_adapter", {"lora_name": name})
    assert response.status_code == 200, response.text
    return response.json()


def test_adapters_come_and_go_under_load_and_nothing_is_compiled(server: Adapted, compiled: list[str]) -> None:
    bodies = mixed_requests()[:10]
    alone = [server.post(TEXT, body).json()["choices"] for body in bodies]
    load(server, "red")
    red = server.complete(model="red", temperature=0)["text"]
    assert red not in (
        server.complete(model="base", temperature=0)["text"],
        server.complete(model="extra", temperature=0)["text"],
    )
    unload(server, "red")
    server.refused(404, model="red")
    stop = threading.Event()
    wrong: list[Any] = []

    def keep_asking(index: int) -> None:
        while not stop.is_set():
            got = server.post(TEXT, bodies[index]).json()
            if got.get("choices") != alone[index]:
                wrong.append(got)

    askers = [threading.Thread(target=keep_asking, args=(i,)) for i in range(len(bodies))]
    for asker in askers:
        asker.start()
    try:
        for _ in range(3):
            for name in ("green", "red", "blue", "few"):
                load(server, "paint" if name == "red" else name, name)
                if name == "red":
                    assert server.complete(model="paint", temperature=0)["text"] == red
                unload(server, "paint" if name == "red" else name)
    finally:
        stop.set()
        for asker in askers:
            asker.join()
    assert wrong == []
    assert compiled == []


def test_an_adapter_in_use_is_refused_at_once_and_freed_when_its_last_request_ends(server: Adapted) -> None:
    load(server, "red")
    expected = server.complete(model="red", max_tokens=100, temperature=0)["text"]
    other = server.complete(model="extra", max_tokens=100, temperature=0)["text"]
    body = {
        "model": "red",
        "prompt": "Once upon",
        "max_tokens": 100,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    with httpx.stream("POST", server.url + TEXT, json=body, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        left = unload(server, "red")
        assert left in (
            {"name": "red", "status": "draining", "requests": 1, "message": REMOVED},
            {"name": "red", "status": "unloaded", "requests": 0, "message": REMOVED},
        )
        server.refused(404, model="red")
        load(server, "red", "green")  # the name is free at once, with another number
        assert server.complete(model="extra", max_tokens=100, temperature=0)["text"] == other
        got = [json.loads(line[6:])["choices"][0]["text"] for line in lines if line.startswith("data: {")]
    assert expected.endswith("".join(got))
    assert server.complete(model="red", max_tokens=100, temperature=0)["text"] != expected
    unload(server, "red")
    for name in ("red", "green"):  # all places are free again
        load(server, name)
    for name in ("red", "green"):
        unload(server, name)


def test_a_draining_adapter_keeps_its_place_until_its_request_has_ended(server: Adapted) -> None:
    gate = threading.Event()
    load(server, "red")
    load(server, "green")
    server.engine.between_rounds(lambda _: gate.wait(30))  # nothing runs meanwhile
    answer: list[dict[str, Any]] = []
    asking = threading.Thread(target=lambda: answer.append(server.complete(model="red", temperature=0)))
    asking.start()
    wait_for(lambda: server.engine.adapter_users())
    assert unload(server, "red") == {"name": "red", "status": "draining", "requests": 1, "message": REMOVED}
    waiting: list[httpx.Response] = []
    loading = threading.Thread(
        target=lambda: waiting.append(server.post("/v1/load_lora_adapter", {"lora_name": "blue"}))
    )
    loading.start()
    gate.set()
    asking.join()
    loading.join()
    assert answer[0]["finish_reason"] == "length"
    if waiting[0].status_code == 200:  # the request had ended before
        unload(server, "blue")
    else:
        assert waiting[0].status_code == 507
    unload(server, "green")


def test_a_load_that_the_engine_has_no_time_for_leaves_nothing_behind(
    server: Adapted, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    server.engine.between_rounds(lambda _: gate.wait(30))
    with monkeypatch.context() as patch:
        patch.setattr(adapter_loader, "LOAD_TIMEOUT", 0.1)
        answer = server.post("/v1/load_lora_adapter", {"lora_name": "red"})
    gate.set()
    assert answer.status_code == 503
    assert "too busy to take the adapter" in answer.json()["error"]["message"]
    for name in ("red", "green"):  # all places are free
        load(server, name)
    for name in ("red", "green"):
        unload(server, name)


def test_wrong_loads_are_refused_each_with_its_reason(server: Adapted, tmp_path: Path) -> None:
    later = server.folder
    secret = write_adapter(tmp_path / "secret", later.parent / "base", seed=50)
    (later / "linked").symlink_to(secret)
    (later / "half").mkdir(exist_ok=True)
    (later / "half" / "adapter_config.json").symlink_to(secret / "adapter_config.json")
    (later / "half" / "adapter_model.safetensors").symlink_to(secret / "adapter_model.safetensors")
    (later / "empty").mkdir(exist_ok=True)
    base = later.parent / "base"
    nan = write_adapter(later / "nan", base, seed=51)
    data = bytearray((nan / "adapter_model.safetensors").read_bytes())
    data[-4:] = np.float32(np.nan).tobytes()
    (nan / "adapter_model.safetensors").write_bytes(bytes(data))
    cut = write_adapter(later / "cut", base, seed=52)
    (cut / "adapter_model.safetensors").write_bytes((cut / "adapter_model.safetensors").read_bytes()[:-40])
    ranks = write_adapter(later / "ranks", base, seed=53)
    config = json.loads((ranks / "adapter_config.json").read_text())
    (ranks / "adapter_config.json").write_text(json.dumps(config | {"r": 5}))
    path = "/v1/load_lora_adapter"
    wrong: list[tuple[int, dict[str, Any], str]] = [
        (400, {"lora_name": "x", "lora_path": "../extra"}, "is not valid"),
        (400, {"lora_name": "x", "lora_path": "red/../../extra"}, "is not valid"),
        (400, {"lora_name": "x", "lora_path": str(later.parent / "extra")}, "leads out of the server's --lora-folder"),
        (400, {"lora_name": "x", "lora_path": str(later / "linked")}, "leads out of the server's --lora-folder"),
        (400, {"lora_name": "x", "lora_path": f"{later}/red/../../extra"}, "is not valid"),
        (400, {"lora_name": "x", "lora_path": "/"}, "leads out of the server's --lora-folder"),
        (404, {"lora_name": "x", "lora_path": str(later)}, "there is no folder"),
        (404, {"lora_name": "x", "lora_path": str(later / "nothing")}, "there is no folder"),
        (400, {"lora_name": "x", "lora_path": ""}, "is not valid"),
        (400, {"lora_name": "x", "lora_path": "~"}, "is not valid"),
        (400, {"lora_name": "x", "lora_path": "red\u0000"}, "is not valid"),
        (400, {"lora_name": "x", "lora_path": "linked"}, "leads out of the server's --lora-folder"),
        (400, {"lora_name": "x", "lora_path": "half"}, "leads out of the server's --lora-folder"),
        (400, {"lora_name": "x", "lora_path": "."}, "is not valid"),
        (404, {"lora_name": "x", "lora_path": "nothing"}, "there is no folder 'nothing'"),
        (404, {"lora_name": "x", "lora_path": "n" * 5000}, "there is no folder"),
        (400, {"lora_name": "x", "lora_path": "empty"}, "has no adapter_model.safetensors"),
        (400, {"lora_name": "x", "lora_path": "nan"}, "NaN"),
        (400, {"lora_name": "x", "lora_path": "cut"}, "is not a whole safetensors file"),
        (400, {"lora_name": "x", "lora_path": "ranks"}, "has rank 4"),
        (400, {"lora_name": "x", "lora_path": "wide"}, "has rank 9, and this server has room for adapters of rank 8"),
        (400, {"lora_name": "two words", "lora_path": "red"}, "a name without spaces"),
        (400, {"lora_name": "", "lora_path": "red"}, "a name without spaces"),
        (400, {"lora_name": "one", "lora_path": "red"}, "is the name of the adapter 'one'"),
        (400, {"lora_name": "mixture", "lora_path": "red"}, "is the name of the X-LoRA mixture"),
        (400, {"lora_name": "default", "lora_path": "red"}, "is the name of"),
        (400, {"lora_name": "base", "lora_path": "red"}, "is the name of the base model"),
        (400, {"lora_path": "red"}, "lora_name"),
        (400, {"lora_name": 1}, "lora_name"),
        (400, {"lora_name": "one", "lora_path": "red", "load_inplace": True}, "was loaded when the server started"),
        (400, {"lora_name": "red", "is_3d_lora_weight": True}, "is_3d_lora_weight"),
    ]
    for status, body, message in wrong:
        error = server.refused(status, path, **body)
        assert message in error["message"], (body, error)
        assert str(later) not in error["message"] or str(later) in str(body), error
    for name, status, message in (
        ("nothing", 404, "there is no adapter 'nothing'"),
        ("one", 400, "was loaded when the server started"),
        ("mixture", 404, "there is no adapter"),
    ):
        assert message in server.refused(status, "/v1/unload_lora_adapter", lora_name=name)["message"]
    load(server, "red")
    load(server, "green")
    assert "places for adapters are taken" in server.refused(507, path, lora_name="blue")["message"]
    assert "'red' is the name of the adapter" in server.refused(400, path, lora_name="red")["message"]
    unload(server, "red")
    unload(server, "green")


def test_an_adapter_is_loaded_by_an_absolute_path_as_vllms_clients_do(server: Adapted) -> None:
    body = {"lora_name": "red", "lora_path": str(server.folder / "red"), "base_model_name": "base"}
    response = server.post("/v1/load_lora_adapter", body)
    assert "Success: LoRA adapter 'red' added successfully." in response.text
    assert str(server.folder) not in response.text
    assert response.json()["root"] == "red"
    assert server.complete(model="red", max_tokens=2)
    assert REMOVED in server.post("/v1/unload_lora_adapter", {"lora_name": "red", "lora_int_id": 1}).text


def test_an_adapter_is_replaced_in_place_and_by_number_it_is_another(server: Adapted, compiled: list[str]) -> None:
    load(server, "paint", "red")
    red = server.complete(model="paint", temperature=0)["text"]
    before = {each["name"]: each["id"] for each in httpx.get(server.url + "/lora-adapters").json()}
    assert server.complete(lora=[{"id": before["paint"], "scale": 1}], temperature=0)["text"] == red
    refusal = server.refused(400, "/v1/load_lora_adapter", lora_name="paint", lora_path="green")
    assert (refusal["code"], "load_inplace" in refusal["message"]) == ("name_taken", True)
    inplace = {"lora_name": "paint", "lora_path": "green", "load_inplace": True}
    assert server.post("/v1/load_lora_adapter", inplace).status_code == 200
    green = server.complete(model="paint", temperature=0)["text"]
    assert green != red
    after = {each["name"]: each["id"] for each in httpx.get(server.url + "/lora-adapters").json()}
    assert server.complete(lora=[{"id": after["paint"], "scale": 1.0}], temperature=0)["text"] == green
    assert server.complete(lora=[{"id": after["paint"], "scale": 0}], temperature=0) == server.complete(
        model="base", temperature=0
    )
    # Where there is no room for both, the place of the old one is taken, unless a request uses it.
    load(server, "other", "blue")
    assert server.post("/v1/load_lora_adapter", inplace | {"lora_path": "red"}).status_code == 200
    assert server.complete(model="paint", temperature=0)["text"] == red
    broken = inplace | {"lora_path": "nothing"}
    assert server.post("/v1/load_lora_adapter", broken).status_code == 404
    assert server.complete(model="paint", temperature=0)["text"] == red
    fresh = server.post("/v1/load_lora_adapter", inplace | {"lora_name": "new"})
    assert fresh.status_code == 507
    unload(server, "paint")
    assert server.post("/v1/load_lora_adapter", inplace | {"lora_name": "new"}).status_code == 200
    for name in ("new", "other"):
        unload(server, name)
    assert compiled == []


def test_a_used_adapter_gives_up_its_place_only_when_it_is_free(server: Adapted) -> None:
    gate = threading.Event()
    load(server, "red")
    load(server, "green")
    answer: list[dict[str, Any]] = []
    server.engine.between_rounds(lambda _: gate.wait(30))
    asking = threading.Thread(target=lambda: answer.append(server.complete(model="red", temperature=0)))
    asking.start()
    wait_for(lambda: server.engine.adapter_users())
    body = {"lora_name": "red", "lora_path": "blue", "load_inplace": True}
    replies: list[httpx.Response] = []
    loading = threading.Thread(target=lambda: replies.append(server.post("/v1/load_lora_adapter", body)))
    loading.start()
    gate.set()
    loading.join()
    asking.join()
    assert answer[0]["finish_reason"] == "length"
    if replies[0].status_code != 200:  # unless the request had ended before
        assert (replies[0].status_code, "requests still use 'red'" in replies[0].text) == (507, True)
        assert server.complete(model="red", max_tokens=2)
    for name in ("red", "green"):
        unload(server, name)


def test_scales_for_all_requests_are_refused(server: Adapted) -> None:
    listed = httpx.get(server.url + "/lora-adapters").json()
    assert [(each["id"], each["name"], each["scale"]) for each in listed] == [
        (0, "one", 0.0),
        (1, "two", 0.0),
        (2, "three", 0.0),
        (3, "extra", 0.0),
    ]
    response = httpx.post(server.url + "/lora-adapters", json=[{"id": 0, "scale": 1}])
    assert (response.status_code, "lora: [{id, scale}]" in response.text) == (501, True)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"adapter": "nobody"}, "there is no adapter 'nobody'; expected one of one, two, three, extra"),
    ({"adapter": "mixture"}, "there is no adapter 'mixture'"),
    ({"adapter": 3}, "adapter"),
    ({"adapter": ["one"]}, "adapter"),
    ({"adapters": {}}, "at least one adapter"),
    ({"adapters": []}, "adapters"),
    ({"adapters": {"nobody": 1}}, "there is no adapter 'nobody'"),
    ({"adapters": {"one": "much"}}, "adapters"),
    ({"adapters": {"one": None}}, "adapters"),
    ({"adapters": {"one": 101}}, "from -100 to 100"),
    ({"adapters": {"one": -1e300}}, "from -100 to 100"),
    ({"adapters": {f"a{i}": 1 for i in range(5)}}, "5 weights; this server has 4 adapters"),
    ({"adapter": "one", "adapters": {"one": 1}}, "expected one of the two"),
    ({"model": "one", "adapter": "two"}, "model names another adapter, 'one'"),
    ({"model": "one", "adapters": {"two": 1}}, "model names an adapter already"),
    ({"xlora": {"scalings": "all"}}, "xlora.scalings"),
    ({"xlora": {"scaling": "full"}}, "scaling"),
    ({"xlora": "full"}, "xlora"),
    ({"xlora": {"non_granular_index": 0}}, "non_granular_index is 0"),
    ({"xlora": {"non_granular_index": 129}}, "non_granular_index is 129"),
    ({"xlora": {"non_granular_index": 1.5}}, "non_granular_index"),
    ({"xlora": {"non_granular_index": 10**30}}, ""),
    ({"xlora": {"non_granular_index": 1}, "model": "base"}, "no X-LoRA mixture is asked for"),
    ({"xlora": {"non_granular_index": 1}, "adapter": "one"}, "no X-LoRA mixture is asked for"),
]


@pytest.mark.parametrize(("body", "message"), WRONG, ids=[json.dumps(body)[:60] for body, _ in WRONG])
def test_wrong_fields_are_refused_each_with_its_reason(server: Adapted, body: dict[str, Any], message: str) -> None:
    assert message in server.refused(400, **body)["message"]


@pytest.mark.parametrize(
    "text", ['{"one": NaN}', '{"one": Infinity}', '{"one": 1e999}', '{"one": 1', '{"one": 1, "one": 2}']
)
def test_weights_that_are_no_numbers_in_json_are_refused(server: Adapted, text: str) -> None:
    content = f'{{"prompt": "x", "max_tokens": 1, "adapters": {text}}}'
    response = httpx.post(server.url + TEXT, content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == (200 if text.endswith("2}") else 400), response.text


def test_a_wrong_model_is_told_all_names(server: Adapted) -> None:
    message = server.refused(404, model="nobody")["message"]
    assert all(name in message for name in ("base", "one", "two", "three", "extra", "mixture", "default"))


def test_after_all_that_the_server_answers_as_before(server: Adapted) -> None:
    assert httpx.get(f"{server.url}/health").json()["status"] == "ok"
    assert server.engine.adapter_users() == {}
    first, second = (server.post(TEXT, mixed_requests()[1]).json()["choices"] for _ in range(2))
    assert first == second
