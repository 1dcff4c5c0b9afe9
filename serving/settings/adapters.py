"""The settings of LoRA adapters and of X-LoRA: part of `serving.settings.settings.Settings`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from conversion.files.regular_file import is_folder
from serving.settings.kinds import ADAPTED, XLORA
from serving.settings.model import MODEL_NAME, MODEL_NAME_EXPECTS, NOT_EMPTY, NOT_EMPTY_EXPECTS, ModelSettings
from serving.settings.spec import Option, SettingsError, local_name

DEFAULT_XLORA = "lamm-mit/x-lora"
SPARE_LORAS = 4
"""Default of `--spare-loras` with `--lora-folder`."""


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class AdapterSettings(ModelSettings):
    """Adapters over the base model, and room for adapters loaded later."""

    xlora_model_id: Annotated[
        str | None,
        Option(
            flags=("--xlora-model-id", "-x"),
            pattern=NOT_EMPTY,
            expects=NOT_EMPTY_EXPECTS,
            help="Hub id or folder of the X-LoRA classifier and its adapters.",
            default_text=DEFAULT_XLORA,
            kinds=XLORA,
        ),
    ] = None
    order: Annotated[
        Path | None,
        Option(
            flags=("--order", "-o"),
            help="Ordering file: the order of the adapters and of the modules in the classifier's output.",
            default_text="derived from the adapters",
            kinds=XLORA,
        ),
    ] = None
    xlora_kv_cache: Annotated[
        bool,
        Option(
            flags=("--xlora-kv-cache",),
            help="Keep a KV cache for both passes; without it, every token is recomputed (slow, same text).",
            kinds=XLORA,
        ),
    ] = True
    tgt_non_granular_index: Annotated[
        int | None,
        Option(
            flags=("--tgt-non-granular-index",),
            help="Reuse the adapter weights of this completion token (1 is the first) for all later ones: faster, an "
            "approximation.",
            default_text="new weights for each token",
            low=1,
            high=2**24,
            kinds=XLORA,
        ),
    ] = None
    loras: Annotated[
        tuple[str, ...],
        Option(
            flags=("--lora",),
            help="LoRA adapter to load: NAME=PATH, PATH or Hub id (the last part is the name); repeat it for several.",
            default_text="none",
            kinds=ADAPTED,
        ),
    ] = ()
    lora_folder: Annotated[
        Path | None,
        Option(
            flags=("--lora-folder",),
            help="Folder from which requests may load adapters while the server runs.",
            default_text="none: adapters are fixed at start",
            kinds=ADAPTED,
        ),
    ] = None
    spare_loras: Annotated[
        int | None,
        Option(
            flags=("--spare-loras",),
            help="Adapters that can be loaded in addition to those at start; device memory is reserved for them.",
            default_text=f"{SPARE_LORAS} with --lora-folder, else 0",
            low=1,
            high=256,
            kinds=ADAPTED,
        ),
    ] = None
    max_lora_rank: Annotated[
        int,
        Option(
            flags=("--max-lora-rank",),
            help="Largest rank of an adapter that is loaded while the server runs.",
            low=1,
            high=1024,
            kinds=ADAPTED,
        ),
    ] = 16

    def check_adapters(self) -> None:
        """Check that these settings are consistent.

        Raises:
          SettingsError: they are not; the message names them.
        """
        if not self.xlora_kv_cache and self.tgt_non_granular_index is not None:
            raise SettingsError(
                "--no-xlora-kv-cache and --tgt-non-granular-index exclude each other: the weights are reused from one "
                "token on, and without the cache the tokens before it would be recomputed with them too; leave out one "
                "of the two"
            )
        if self.spare_loras is not None and self.lora_folder is None:
            raise SettingsError("--spare-loras: adapters can be loaded only from a --lora-folder; give that, too")
        if self.lora_folder is not None and not is_folder(self.lora_folder.expanduser()):
            raise SettingsError(f"--lora-folder {self.lora_folder}: there is no such folder")
        if self.kind.adapters == "lora" and not self.loras and self.lora_folder is None:
            raise SettingsError(
                "--lora: no adapter is named; give --lora NAME=PATH, or --lora-folder FOLDER to load some later"
            )
        if (
            (self.kind.weights, self.kind.adapters) == ("gguf", "x-lora")
            and self.xlora_model_id not in (None, DEFAULT_XLORA)
            and not self.names_gguf
        ):
            raise SettingsError(
                f"--xlora-model-id {self.xlora_model_id}: name the GGUF file of its base model, too "
                "(--quantized-model-id, --quantized-filename)"
            )
        _ = self.lora_sources

    @property
    def lora_sources(self) -> dict[str, str]:
        """Folders or Hub ids of the adapters of `--lora`, by name.

        Raises:
          SettingsError: a name cannot be used, or is given twice.
        """
        sources: dict[str, str] = {}
        for text in self.loras:
            name, source = _named(text)
            if not source or not re.fullmatch(MODEL_NAME, name):
                raise SettingsError(
                    f"--lora: {text!r} is not valid; expected NAME=PATH, "
                    f"PATH or a Hub id, the name {MODEL_NAME_EXPECTS}"
                )
            if name in sources:
                raise SettingsError(f"--lora: two adapters are called {name!r}; give one another name with NAME=PATH")
            sources[name] = source
        return sources

    @property
    def room_for_loras(self) -> int:
        """Adapters that can be loaded while the server runs."""
        if self.lora_folder is None:
            return 0
        return SPARE_LORAS if self.spare_loras is None else self.spare_loras


def _named(text: str) -> tuple[str, str]:
    """Name and source of a `--lora`."""
    name, equals, source = text.partition("=")
    # A folder may have an equals sign in its name.
    if equals and "/" not in name:
        return name.strip(), source.strip()
    return local_name(text).rstrip("/").rpartition("/")[2], text
