"""What the server tells on standard error."""

from __future__ import annotations

import logging


def configure_logging(level: str) -> None:
    """Our own messages on standard error, one line each; of the libraries, warnings."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("mistral_jax").setLevel(level.upper())
    logging.getLogger("uvicorn").setLevel(logging.WARNING if level != "error" else logging.ERROR)
