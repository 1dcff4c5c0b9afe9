"""Training adapters on a frozen model: one LoRA, or an X-LoRA mixture, whose classifier learns with or without its
experts.

    from mistral_jax.training import LoRATrainingSettings, train_lora
    result = train_lora(model, "questions.jsonl", settings=LoRATrainingSettings(steps=300), output="my-adapter")

Names are imported when they are first used: the command line reads the settings without loading JAX.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "BaseModel": "base",
    "ChatEncoder": "chat_data",
    "DataError": "chat_data",
    "Example": "chat_data",
    "LoRATrainingSettings": "settings",
    "TrainedLoRA": "lora_training",
    "TrainedXLoRA": "xlora_training",
    "TrainingError": "trainer",
    "TrainingSettings": "settings",
    "XLoRATrainingSettings": "settings",
    "read_chat_data": "chat_data",
    "train_lora": "lora_training",
    "train_xlora": "xlora_training",
}

__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
