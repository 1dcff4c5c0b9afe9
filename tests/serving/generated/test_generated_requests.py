"""Requests that nobody thought of: see `tests.serving.generated`."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

import serving.app
from serving.api.endpoints import ENDPOINTS
from tests.serving.generated.cases import Case, cases
from tests.serving.generated.real import real_service
from tests.serving.generated.servers import Servers, fake_services, serving_all


def send(servers: Servers, requests: int) -> None:
    """Generate so many requests and send them, one after another."""

    @given(cases(ENDPOINTS, servers=len(servers.running)))
    @settings(
        max_examples=requests,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    def check(case: Case) -> None:
        servers.send(case)

    check()


def check_mix(servers: Servers, requests: int) -> None:
    """What was sent must have been answered in all the ways that matter."""
    counts = servers.by_status()
    assert sum(counts.values()) >= requests
    assert counts[200] > requests / 10, counts
    assert counts[400] > requests / 10, counts


@pytest.mark.parametrize("requests", [300, pytest.param(2500, marks=pytest.mark.slow)])
def test_with_a_fake_engine_nothing_generated_makes_a_5xx_or_what_is_not_described(requests: int) -> None:
    with serving_all(fake_services()) as servers:
        send(servers, requests)
        check_mix(servers, requests)
    posted = {endpoint.path for endpoint in serving.app.ENDPOINTS if endpoint.method == "POST"}
    if requests > 1000:
        reached = {name.partition(" ")[2] for (name, status) in servers.statuses if status != 401}
        assert {path for path in posted if "{" not in path} <= reached


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_with_a_real_model(tmp_path: Path) -> None:
    with serving_all([real_service(tmp_path)]) as servers:
        send(servers, 400)
        check_mix(servers, 400)
