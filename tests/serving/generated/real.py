"""A small random model with adapters and an X-LoRA mixture over it, behind the real engine, grammars and templates."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from serving.api.service.service import Service
from serving.app import build_service
from serving.settings.settings import Settings
from tests.integration.adapted_models import write_adapter, write_all

TEMPLATE = (
    "{{ bos_token }}{% if tools %}[TOOLS]{{ tools | tojson }}{% endif %}{% if mood %}({{ mood }}){% endif %}"
    "{% for document in documents or [] %}({{ document.text }}){% endfor %}"
    "{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}"
)


def real_service(folder: Path) -> tuple[Service, dict[str, Any]]:
    """The service and its settings."""
    root, loras = folder / "models", folder / "loras"
    root.mkdir()
    loras.mkdir()
    write_all(root)
    write_adapter(loras / "poet", root / "base", seed=5)
    settings: dict[str, Any] = {
        "model_kind": "x-lora-mistral",
        "model_id": str(root / "base"),
        "xlora_model_id": str(root / "mixture"),
        "lora_folder": loras,
        "max_seq_len": 256,
        "max_seqs": 2,
        "chat_template": TEMPLATE,
        "tool_format": "hermes",
        "compilation_cache": os.environ.get("JAX_COMPILATION_CACHE_DIR", "none"),
        "slots_endpoint": True,
        "wait_for_programs": True,
    }
    return build_service(Settings(**settings)), settings
