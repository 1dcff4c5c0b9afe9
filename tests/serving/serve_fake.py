"""`mistral-jax` in a process of its own, with a fake engine: `python -m tests.serving.serve_fake PLAN OPTIONS...`."""

from __future__ import annotations

import sys
import time

import serving.app
import serving.server
from mistral_jax.chat.output.formats import OutputFormat, reasoning_format, tool_format
from serving.api.service.service import Service
from serving.commands.cli import main
from serving.engine.messages import EngineState
from serving.settings.settings import Settings
from tests.serving.fakes import FakeChat, FakeEngine, fake_service


def build(plan: str) -> Service:
    match plan:
        case "slow":
            return fake_service(FakeEngine("x" * 50, delay=0.01))
        case "endless":
            return fake_service(FakeEngine("x" * 200, delay=0.2))
        case "flood":
            return fake_service(FakeEngine("x" * 240, delay=0.001))
        case "tools":
            output = OutputFormat(
                tools=tool_format("hermes", {}), reasoning=reasoning_format("<think>", "</think>", {})
            )
            return fake_service(FakeEngine("ok"), chat=FakeChat(output))
        case "dies":
            return fake_service(FakeEngine("x" * 100, delay=0.01, die_after=5))
        case "loading":
            return fake_service(FakeEngine(state=EngineState.LOADING))
        case "stuck":
            time.sleep(60)
            raise AssertionError
        case _:
            raise OSError("no model at ./nowhere; give a Hub id or a folder")


if __name__ == "__main__":
    chosen = sys.argv.pop(1)

    def build_service(_settings: Settings) -> Service:
        return build(chosen)

    serving.app.build_service = build_service
    serving.server.FAILURE_GRACE = 0.5
    main()
