"""Where arrays lie, and models over four devices: their logits are those of one device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from mistral_jax.quant.placement import Placement, choose_placement

# A process with four devices, and nine models in two forms each.
pytestmark = [pytest.mark.timeout(900), pytest.mark.slow(by="file")]
REPOSITORY = Path(__file__).parents[3]
TINY = {
    **{"vocab_size": 97, "hidden_size": 12, "intermediate_size": 20, "num_layers": 1},
    **{"num_heads": 8, "num_kv_heads": 4, "head_dim": 10},
}
WIDE = {
    **{"vocab_size": 1000, "hidden_size": 256, "intermediate_size": 704, "num_layers": 1},
    **{"num_heads": 16, "num_kv_heads": 4, "head_dim": 32},
}
FUSED, SINGLE = ["gate_up_proj", "qkv_proj"], ["down_proj", "o_proj"]
CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "tiny": ({"sizes": TINY, "dtype": "float32"}, [*FUSED, *SINGLE]),
    "tiny in bfloat16": ({"sizes": TINY, "dtype": "bfloat16"}, [*FUSED, *SINGLE]),
    "biases, and an output matrix that divides": (
        {"sizes": TINY | {"vocab_size": 100, "attention_bias": True, "mlp_bias": True}, "dtype": "float32"},
        [*FUSED, *SINGLE, "lm_head"],
    ),
    "tied embeddings": (
        {"sizes": TINY | {"vocab_size": 100, "tie_word_embeddings": True}, "dtype": "float32"},
        [*FUSED, *SINGLE],
    ),
    "outputs that do not divide after inputs that do": (
        {"sizes": TINY | {"hidden_size": 14}, "dtype": "float32"},
        FUSED,
    ),
    "nothing divides": (
        {
            "sizes": TINY | {"hidden_size": 14, "intermediate_size": 18, "num_kv_heads": 2},
            "dtype": "float32",
        },
        [],
    ),
    "wide": ({"sizes": WIDE, "dtype": "float32"}, [*FUSED, *SINGLE, "lm_head"]),
    "wide in q8_0": ({"sizes": WIDE, "dtype": "float32", "quant": "q8_0"}, [*FUSED, *SINGLE, "lm_head"]),
    "wide in int8": ({"sizes": WIDE, "dtype": "bfloat16", "quant": "int8"}, [*FUSED, *SINGLE, "lm_head"]),
    "adapters": ({"dtype": "float32", "devices": 2, "adapters": True}, [*FUSED, *SINGLE]),
}


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, Any]]:
    cases = json.dumps([case for case, _ in CASES.values()])
    command = [sys.executable, "-m", "tests.mistral_jax.quant.over_four_devices", cases]
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    done = subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, "XLA_FLAGS": flags}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(zip(CASES, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_logits_over_several_devices_are_those_of_one(found: dict[str, dict[str, Any]], case: str) -> None:
    result = found[case]
    assert result["divided"] == sorted(CASES[case][1])
    assert result["largest"] < (1e-5 if CASES[case][0]["dtype"] == "float32" else 2e-2)
    # Every sum is taken whole, by one device: bits differ only where those of a product depend on how many outputs it
    # has. With adapters they also differ on some processors where these products do not (seen on an AMD EPYC).
    assert result["equal"] or not result["same products"] or case == "adapters"
    if "int8" in case:
        assert result["same products"], "integers are summed exactly, whatever the shape"
    assert result["saved"], "tensors are saved with other values or in another order than those of one device"


def test_each_device_holds_its_share(found: dict[str, dict[str, Any]]) -> None:
    """A quarter of all matrices but the embedding, which is a sixth of this model."""
    assert found["nothing divides"]["held"] == 1
    assert 0.25 < found["wide"]["held"] < 0.4


def test_one_device_is_a_plain_placement() -> None:
    placement = Placement.default()
    assert (placement.count, placement.devices) == (1, (jax.devices()[0],))
    assert placement.sharding() == placement.sharding(1) == SingleDeviceSharding(jax.devices()[0])
    assert not placement.divides(8)
    array = placement.put(np.arange(3))
    assert array.sharding == SingleDeviceSharding(jax.devices()[0])
    assert Placement.of({"a": array}) == placement
    assert placement.free_memory() > 0
    assert placement.platform == "cpu"


def test_devices_that_are_not_there_are_named() -> None:
    assert choose_placement("auto") == choose_placement("cpu") == choose_placement("cpu:0") == Placement.default()
    with pytest.raises(ValueError, match="device cpu:99: there are only"):
        choose_placement("cpu:99")
    with pytest.raises(ValueError, match="device tpu: JAX finds no tpu here"):
        choose_placement("tpu")
