"""Every setting of the server, declared once; flags and environment variables are generated from the declarations.

A value comes from the command line, or else from the environment variable `MISTRAL_JAX_<NAME>`, or else from the
default. Nothing else in the project reads the environment.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from serving.settings.adapters import DEFAULT_XLORA
from serving.settings.kinds import ADAPTED, GGUF, LOADED, XLORA, Adapters, ModelKind, Weights, kind_of
from serving.settings.model import MODEL_NAME, MODEL_NAME_EXPECTS, ToolFormatName
from serving.settings.network import NetworkSettings
from serving.settings.spec import Option, SettingsError, SettingSpec, TokenSource, local_name, specs_of

__all__ = ["SPECS", "ModelKind", "Settings", "SettingsError", "TokenSource"]

_CACHED_TOKEN = TokenSource()


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Settings(NetworkSettings):
    """One server's settings. The constructor checks ranges.

    Raises:
      SettingsError: a value is out of its range, or two values exclude each other.
    """

    # Requests.
    served_name: Annotated[
        str | None,
        Option(
            flags=("--served-name",),
            help="The model's name in the API.",
            default_text="the model id, or demo",
            pattern=MODEL_NAME,
            expects=MODEL_NAME_EXPECTS,
        ),
    ] = None
    aliases: Annotated[
        tuple[str, ...],
        Option(
            flags=("--alias",),
            help="Further name of the default model, for clients with one built in; repeat it for several; * for any.",
            default_text="none",
            pattern=MODEL_NAME,
            expects=MODEL_NAME_EXPECTS,
        ),
    ] = ()
    truncate_sequence: Annotated[
        bool,
        Option(
            flags=("--truncate-sequence", "-t"),
            help="Truncate prompts that are too long from the left instead of refusing them.",
        ),
    ] = False
    strict_fields: Annotated[
        bool,
        Option(
            flags=("--strict-fields",),
            help="Refuse requests with unknown fields, instead of naming them in the response's headers and the log.",
        ),
    ] = False
    max_tokens: Annotated[
        int | None,
        Option(
            flags=("--max-tokens",),
            help="Default max_tokens of requests.",
            default_text="as many as fit in the context",
            low=1,
        ),
    ] = None
    request_timeout: Annotated[
        float | None,
        Option(
            flags=("--request-timeout",),
            help="Deadline of a request in seconds, time in the queue included.",
            default_text="no limit",
            low=0.001,
            high=10**7,
        ),
    ] = None
    keep_alive: Annotated[
        float,
        Option(
            flags=("--keep-alive",),
            help="Seconds without a token after which a stream sends a comment, so that proxies keep it open.",
            low=0.01,
            high=10**7,
        ),
    ] = 10.0
    drain_timeout: Annotated[
        float,
        Option(
            flags=("--drain-timeout",),
            help="Seconds that running requests get to finish when the server stops.",
            low=0,
            high=10**7,
        ),
    ] = 30.0
    slots_endpoint: Annotated[
        bool,
        Option(
            flags=("--slots-endpoint",),
            help="Serve GET /slots: what runs in each slot, without its texts, to anyone with a key.",
        ),
    ] = False
    tokenizer_info_endpoint: Annotated[
        bool,
        Option(
            flags=("--tokenizer-info-endpoint",),
            help="Serve GET /tokenizer_info: special tokens and chat template, for clients that tokenise themselves.",
        ),
    ] = False
    log: Annotated[
        Path | None,
        Option(
            flags=("--log", "-l"),
            help="File to log every request and response to, as JSON lines (prompts and completions included).",
            default_text="none",
        ),
    ] = None
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Option(flags=("--log-level",), help="Log level of messages on standard error."),
    ] = "info"

    # The engine.
    max_seqs: Annotated[
        int, Option(flags=("--max-seqs",), help="Sequences generated at the same time (slots).", low=1, high=4096)
    ] = 8
    max_seq_len: Annotated[
        int | None,
        Option(
            flags=("--max-seq-len",),
            help="Most tokens of prompt and completion together; the KV cache is sized for it.",
            default_text="the model's context, if it fits in memory",
            low=16,
            high=2**24,
        ),
    ] = None
    cache_memory: Annotated[
        float | None,
        Option(
            flags=("--cache-memory",),
            help="GiB for the KV cache, which all sequences share; what they do not need keeps prompts for later ones. "
            "When they need more, the youngest waits.",
            default_text="what max-seqs sequences of max-seq-len tokens take, if it is free",
            low=0.001,
            high=2**20,
        ),
    ] = None
    prefix_cache: Annotated[
        bool,
        Option(
            flags=("--prefix-cache",),
            help="Prompts of one API key that begin alike share what the KV cache holds of them. Completions do not "
            "depend on it.",
        ),
    ] = True
    share_prefix_cache: Annotated[
        bool,
        Option(
            flags=("--share-prefix-cache",),
            help="Prompts of all API keys share it: the time of a response then tells what others have asked.",
        ),
    ] = False
    max_queue: Annotated[
        int,
        Option(
            flags=("--max-queue",),
            help="Requests of each API key that may wait for a slot; beyond this: 503 with Retry-After.",
            low=1,
            high=10**6,
        ),
    ] = 128
    gpu_memory_utilization: Annotated[
        float | None,
        Option(
            flags=("--gpu-memory-utilization",),
            help="Share of a GPU's memory to reserve, for weights, cache and programs together. Refused if other "
            "processes hold too much of it.",
            default_text="0.9, or less if other processes hold memory",
            low=0.01,
            high=0.99,
        ),
    ] = None
    prompt_lookup: Annotated[
        bool,
        Option(
            flags=("--prompt-lookup",),
            help="Generate several tokens in a step where text repeats what came before. Completions are the same "
            "without.",
        ),
    ] = True
    wait_for_programs: Annotated[
        bool,
        Option(
            flags=("--wait-for-programs",),
            help="Compile all programs before the first request is served. By default a CPU compiles those for "
            "embeddings, scores, forced tokens and other models' adapters later; such a request may wait some seconds. "
            "A GPU always compiles all.",
        ),
    ] = False
    prefill_chunk: Annotated[
        int | None,
        Option(
            flags=("--prefill-chunk",),
            help="Prompt tokens processed between two decode steps.",
            default_text="256",
            low=2,
            high=65536,
        ),
    ] = None
    pooling: Annotated[
        Literal["none", "mean", "last"],
        Option(
            flags=("--pooling",),
            help="How /v1/embeddings makes one vector of the hidden states of a text's tokens; none: no embeddings.",
        ),
    ] = "mean"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Option(flags=("--dtype",), help="Type of weights and activations; auto: the type in the files."),
    ] = "auto"
    quant: Annotated[
        Literal["none", "auto", "q8_0", "q4_0", "q4_k", "int8"],
        Option(
            flags=("--quant",),
            help="Quantisation of the weights on the device: auto keeps the file's, none dequantises, the others "
            "quantise while loading.",
        ),
    ] = "auto"
    activations: Annotated[
        Literal["auto", "float", "int8"],
        Option(
            flags=("--activations",),
            help="Activations in products with packed weights on a CPU: int8 rounds them to 8 bits, 32 at a time, and "
            "multiplies integers; float does not round; auto: int8 where the kernels work.",
        ),
    ] = "auto"
    device: Annotated[
        str,
        Option(
            flags=("--device",),
            help="Device to compute on: auto, cpu, gpu or gpu:N.",
            pattern=r"auto|cpu|gpu(:\d{1,3})?",
            expects="auto, cpu, gpu or gpu:N",
        ),
    ] = "auto"
    chat_template: Annotated[
        str | None,
        Option(
            flags=("--chat-template",),
            help="Jinja chat template: a file, or the template itself.",
            default_text="the model's own",
        ),
    ] = None
    tool_format: Annotated[
        ToolFormatName,
        Option(
            flags=("--tool-format",),
            help="Format in which the model writes tool calls: auto infers it from the chat template, none serves no "
            "tools.",
        ),
    ] = "auto"
    token_source: Annotated[
        TokenSource,
        Option(
            flags=("--token-source",),
            help="Where the Hugging Face token comes from: cache, env, env:NAME, literal:VALUE, path:FILE or none.",
        ),
    ] = _CACHED_TOKEN
    compilation_cache: Annotated[
        str,
        Option(
            flags=("--compilation-cache",),
            help="Folder for compiled programs, reused at the next start; none: no such folder.",
            default_text="~/.cache/mistral-jax/xla",
        ),
    ] = "auto"

    def __post_init__(self) -> None:
        for spec in SPECS:
            value = getattr(self, spec.name)
            try:
                spec.checked(value)
            except ValueError as error:
                raise SettingsError(f"{spec.name}: {spec.show(value)} is not valid; {error}") from error
        self.check_model()
        self.check_adapters()

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> Settings:
        """Settings from environment variables alone, for `litestar --app serving.app:create_app run`, which has its own
        options for address and port."""
        return cls.resolve({}, env=env)

    @classmethod
    def resolve(
        cls,
        given: Mapping[str, str | bool | Sequence[str] | None],
        *,
        kind: ModelKind | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Settings:
        """Settings from `given` (by name, as command-line strings), then the environment, then the defaults.

        Without a `kind`, it follows from the given options: "demo" from none, "mistral" from a model id, and so on.
        Empty variables count as unset; variables that do not apply to the kind are ignored.

        Raises:
          SettingsError: a value is invalid.
        """
        env = os.environ if env is None else env
        found: dict[str, tuple[str, str | bool | Sequence[str]]] = {}
        for spec in SPECS:
            value = given.get(spec.name)
            if value is not None and value != ():
                found[spec.name] = (spec.option.flags[0] if spec.option.flags else spec.name, value)
            elif text := env.get(spec.env, "").strip():
                found[spec.name] = (spec.env, text)
        by_name = {spec.name: spec for spec in SPECS}
        if kind is None:
            if "model_kind" in found:
                source, text = found["model_kind"]
                kind = by_name["model_kind"].parse(text, source=source)
            else:
                kind = _kind_of(found)
                if kind == "lora-mistral" and "model_id" not in found:
                    found["model_id"] = ("--model-id", "demo")
        found["model_kind"] = ("command", str(kind))
        values: dict[str, Any] = {}
        for name, (source, text) in found.items():
            spec = by_name[name]
            if spec.option.kinds and kind not in spec.option.kinds:
                if source != spec.env:
                    raise SettingsError(_other_kind(source, spec, str(kind), found))
                continue
            values[name] = spec.parse(text, source=source)
        return cls(**values)

    @property
    def served_id(self) -> str:
        """The id of the default model in the API: `served_name`, or else the name of the X-LoRA model or of the model
        (for a local path, its last part)."""
        if self.served_name:
            return self.served_name
        if self.kind.adapters == "x-lora":
            return local_name(self.xlora_model_id or DEFAULT_XLORA)
        return self.base_id

    @property
    def compilation_cache_dir(self) -> Path | None:
        """Folder of compiled programs; None: they are not kept."""
        if self.compilation_cache.lower() == "none":
            return None
        if self.compilation_cache != "auto":
            return Path(self.compilation_cache).expanduser()
        base = os.environ.get("XDG_CACHE_HOME", "").strip()
        return (Path(base) if base else Path.home() / ".cache") / "mistral-jax" / "xla"

    def described(self) -> dict[str, str]:
        """The value of every setting that applies to the model kind, as text, with secrets hidden."""
        applicable = (spec for spec in SPECS if not spec.option.kinds or self.model_kind in spec.option.kinds)
        return {spec.name: spec.show(getattr(self, spec.name)) for spec in applicable}

    def __repr__(self) -> str:
        return "Settings(" + ", ".join(f"{name}={text!r}" for name, text in self.described().items()) + ")"


def _kind_of(found: Mapping[str, Any]) -> ModelKind:
    """The kind of model that follows from the given settings, if no command names it."""
    gguf = bool({"quantized_model_id", "quantized_filename"} & found.keys()) and "model_id" not in found
    adapters: Adapters = "none"
    if "xlora_model_id" in found:
        adapters = "x-lora"
    elif {"loras", "lora_folder"} & found.keys():
        adapters = "lora"
    # The demo has its own adapters: naming others selects a kind with a named model, even if that is the bundled one.
    named = adapters != "none" or "model_id" in found
    weights: Weights = "gguf" if gguf else "safetensors" if named else "demo"
    return kind_of(weights, adapters).name


def _other_kind(source: str, spec: SettingSpec, kind: str, found: Mapping[str, Any]) -> str:
    """Error message: why an option does not apply to a kind of model."""
    if spec.option.kinds == XLORA:
        return f"{source}: only an X-LoRA model has this option; give its --xlora-model-id too"
    if spec.option.kinds == ADAPTED:
        return f"{source}: only a model with adapters has this option; name some with --lora or --xlora-model-id"
    if spec.option.kinds == GGUF and kind in LOADED and "model_id" in found:
        return (
            f"{source}: --model-id names the model already; for a GGUF file of a repository give "
            "--quantized-model-id instead"
        )
    if kind in GGUF:
        return f"{source}: this option is for models that are named by --model-id, not for a GGUF file"
    return f"{source}: only a model of your own has this option; give its --model-id too"


SPECS: tuple[SettingSpec, ...] = specs_of(Settings)
"""The declarations above, in order."""
