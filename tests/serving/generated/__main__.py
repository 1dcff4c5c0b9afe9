"""`python -m tests.serving.generated [--requests 5000] [--real]`: sends generated requests and prints the statuses."""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from pathlib import Path

from tests.serving.generated.real import real_service
from tests.serving.generated.servers import fake_services, serving_all
from tests.serving.generated.test_generated_requests import send

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--real", action="store_true", help="a small random model instead of fake engines")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        services = [real_service(Path(folder))] if arguments.real else fake_services()
        with serving_all(services) as servers:
            started = time.monotonic()
            try:
                send(servers, arguments.requests)
            finally:
                print(f"{sum(servers.by_status().values())} requests in {time.monotonic() - started:.0f} s")
                print("by status:", servers.by_status())
                print(f"slowest: {servers.slowest[0]:.2f} s, {servers.slowest[1]}")
