"""GET /livez and GET /version: what supervisors and clients ask before anything else."""

from __future__ import annotations

import pytest

from mistral_jax import __version__
from serving.engine.messages import EngineState
from tests.serving.fakes import FakeEngine
from tests.serving.harness import running

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (EngineState.LOADING, 200),
        (EngineState.WARMING_UP, 200),
        (EngineState.READY, 200),
        (EngineState.DRAINING, 200),
        (EngineState.FAILED, 503),
    ],
)
async def test_livez_fails_only_after_a_failure(state: EngineState, status: int) -> None:
    async with running(FakeEngine(state=state)) as client:
        assert (await client.get("/livez")).status_code == status
        assert (await client.head("/livez")).status_code == status


async def test_both_need_no_key() -> None:
    async with running(api_keys=("key",)) as client:
        assert (await client.get("/livez")).json() == {"status": "ok"}
        assert (await client.get("/version")).json() == {"version": __version__}
