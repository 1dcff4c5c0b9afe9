"""Which model is served, and where its files are: part of `serving.settings.settings.Settings`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from conversion.files.regular_file import is_file
from serving.settings.kinds import DEFAULT_GGUF, DEFAULT_MODEL_ID, GGUF, KINDS, LOADED, Kind, ModelKind
from serving.settings.spec import Option, SettingsError, local_name

MODEL_NAME = r"[^\s\x00-\x1f]{1,256}"
"""Names that requests may use for a model or an adapter."""
MODEL_NAME_EXPECTS = "a name without spaces, of at most 256 characters"
NOT_EMPTY = r"(?s).*\S.*"
NOT_EMPTY_EXPECTS = "a name that is not empty"

ToolFormatName = Literal[
    "auto", "none", "mistral-v2", "mistral-v3", "mistral-v7", "mistral-v11", "mistral-v13", "hermes", "llama3"
]
"""Formats of tool calls: those of `mistral_jax.chat.output.formats`, the model's own, and none."""


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class ModelSettings:
    """The model, or with adapters the base model."""

    model_kind: Annotated[
        ModelKind,
        Option(
            flags=(),
            cli=False,
            help="Kind of model: the bundled one (demo), one of yours (mistral), or a GGUF file (gguf-mistral); the "
            "latter two also with LoRA adapters (lora-...) or an X-LoRA mixture (x-lora-...).",
            default_text="demo, or what fits the given model and adapters",
        ),
    ] = "demo"

    # The model: options of the command.
    model_id: Annotated[
        str | None,
        Option(
            flags=("--model-id", "-m"),
            pattern=NOT_EMPTY,
            expects=NOT_EMPTY_EXPECTS,
            help="Hugging Face Hub id, folder, GGUF file, or single safetensors file of the model.",
            default_text=DEFAULT_MODEL_ID,
            kinds=LOADED,
        ),
    ] = None
    quantized_model_id: Annotated[
        str | None,
        Option(
            flags=("--quantized-model-id", "-m"),
            pattern=NOT_EMPTY,
            expects=NOT_EMPTY_EXPECTS,
            help="Hub id or folder that holds the GGUF file.",
            default_text=DEFAULT_GGUF[0],
            kinds=GGUF,
        ),
    ] = None
    quantized_filename: Annotated[
        str | None,
        Option(
            flags=("--quantized-filename", "-f"),
            pattern=NOT_EMPTY,
            expects=NOT_EMPTY_EXPECTS,
            help="Name of the GGUF file there, or a local path.",
            default_text=f"{DEFAULT_GGUF[1]}, or the only one there",
            kinds=GGUF,
        ),
    ] = None
    tok_model_id: Annotated[
        str | None,
        Option(
            flags=("--tok-model-id", "-t"),
            pattern=NOT_EMPTY,
            expects=NOT_EMPTY_EXPECTS,
            help="Hub id or folder whose tokenizer and chat template are used instead of the model's own.",
            default_text="the model's own",
            kinds=LOADED + GGUF,
        ),
    ] = None
    revision: Annotated[
        str | None,
        Option(
            flags=("--revision",),
            help="Branch, tag or commit of the model on the Hub.",
            default_text="the main branch",
            kinds=LOADED + GGUF,
        ),
    ] = None
    weight_files: Annotated[
        tuple[str, ...],
        Option(
            flags=("--weight-file",),
            help="File to read weights from, a name in the model's folder or a path; repeat it for several.",
            default_text="the model's own safetensors files",
            kinds=LOADED,
        ),
    ] = ()
    repeat_last_n: Annotated[
        int,
        Option(
            flags=("--repeat-last-n",),
            help="Number of last tokens that repetition_penalty counts.",
            low=1,
            high=65536,
            kinds=LOADED + GGUF,
        ),
    ] = 64

    def check_model(self) -> None:
        """Check that these settings are consistent; sets the kind's default model if none is given.

        Raises:
          SettingsError: they are not; the message names them.
        """
        if self.model_id is None and self.kind.default_model_id is not None:
            object.__setattr__(self, "model_id", self.kind.default_model_id)
        if self.model_id is not None and self.kind.weights == "demo":
            raise SettingsError("model_id: the demo has its own model; use the command mistral to serve another")

    @property
    def kind(self) -> Kind:
        """The row of the model's kind."""
        return KINDS[self.model_kind]

    @property
    def names_gguf(self) -> bool:
        """Whether the settings name a GGUF file or its repository."""
        return self.quantized_model_id is not None or self.quantized_filename is not None

    @property
    def default_gguf(self) -> tuple[str, str]:
        """Hub id and filename of the default GGUF file."""
        return self.kind.default_gguf

    @property
    def base_id(self) -> str:
        """The name of the base model, as far as it is known before files are read."""
        if self.kind.weights == "gguf":
            name = self.quantized_filename or ""
            if self.quantized_model_id is not None and not is_file(Path(name).expanduser()):
                name = self.quantized_model_id
            return local_name(name or self.default_gguf[0])
        if self.model_id is None:
            return "demo" if self.kind.weights == "demo" else "base"
        return local_name(self.model_id)
