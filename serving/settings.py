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

from serving.setting_types import Option, SettingsError, SettingSpec, TokenSource, specs_of

__all__ = ["SPECS", "ModelKind", "Settings", "SettingsError", "TokenSource"]

ModelKind = Literal["demo", "mistral", "gguf-mistral", "x-lora-mistral"]

DEFAULT_MODEL_IDS: dict[str, str] = {"mistral": "mistralai/Mistral-7B-Instruct-v0.1"}

_CACHED_TOKEN = TokenSource()
_NOT_EMPTY = r"(?s).*\S.*"
_LOADED = ("mistral",)
"""Kinds that load the files of a model that the user names."""
_GGUF = ("gguf-mistral",)

DEFAULT_GGUF = ("TheBloke/Mistral-7B-Instruct-v0.1-GGUF", "mistral-7b-instruct-v0.1.Q4_K_M.gguf")
"""Hub id and file that `gguf-mistral` serves where it is told neither."""


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Settings:
    """One server's settings. Direct construction checks ranges too.

    Raises:
      SettingsError: a value is out of its range, or two values exclude each other.
    """

    model_kind: Annotated[
        ModelKind,
        Option(
            flags=(),
            cli=False,
            help="What is served: the bundled model (demo), a model of yours (mistral), or a GGUF file (gguf-mistral).",
            default_text="mistral where a model id is given, gguf-mistral where a GGUF file is, else demo",
        ),
    ] = "demo"

    # The model: options of the command.
    model_id: Annotated[
        str | None,
        Option(
            flags=("--model-id", "-m"),
            pattern=_NOT_EMPTY,
            expects="a name that is not empty",
            help="Hugging Face Hub id, folder, GGUF file, or single safetensors file of the model.",
            default_text=DEFAULT_MODEL_IDS["mistral"],
            kinds=_LOADED,
        ),
    ] = None
    quantized_model_id: Annotated[
        str | None,
        Option(
            flags=("--quantized-model-id", "-m"),
            pattern=_NOT_EMPTY,
            expects="a name that is not empty",
            help="Hub id or folder that holds the GGUF file.",
            default_text=DEFAULT_GGUF[0],
            kinds=_GGUF,
        ),
    ] = None
    quantized_filename: Annotated[
        str | None,
        Option(
            flags=("--quantized-filename", "-f"),
            pattern=_NOT_EMPTY,
            expects="a name that is not empty",
            help="Name of the GGUF file there, or the path of one here.",
            default_text=f"{DEFAULT_GGUF[1]}, or the only one that is there",
            kinds=_GGUF,
        ),
    ] = None
    tok_model_id: Annotated[
        str | None,
        Option(
            flags=("--tok-model-id", "-t"),
            pattern=_NOT_EMPTY,
            expects="a name that is not empty",
            help="Hub id or folder whose tokenizer and chat template are used instead of the model's own.",
            default_text="the model's own",
            kinds=_LOADED + _GGUF,
        ),
    ] = None
    revision: Annotated[
        str | None,
        Option(
            flags=("--revision",),
            help="Branch, tag or commit of the model on the Hub.",
            default_text="the main branch",
            kinds=_LOADED + _GGUF,
        ),
    ] = None
    weight_files: Annotated[
        tuple[str, ...],
        Option(
            flags=("--weight-file",),
            help="File to read weights from, a name in the model's folder or a path; repeat it for several.",
            default_text="the model's own safetensors files",
            kinds=_LOADED,
        ),
    ] = ()
    repeat_last_n: Annotated[
        int,
        Option(
            flags=("--repeat-last-n",),
            help="How many of the last tokens a repetition penalty looks back on.",
            low=1,
            high=65536,
            kinds=_LOADED + _GGUF,
        ),
    ] = 64

    # The network.
    port: Annotated[
        int, Option(flags=("--port", "-p"), help="TCP port to listen on; 0 takes a free one.", low=0, high=65535)
    ] = 1234
    host: Annotated[
        str,
        Option(flags=("--host",), help="Address to listen on; 0.0.0.0 for every network interface."),
    ] = "127.0.0.1"
    allowed_hosts: Annotated[
        tuple[str, ...],
        Option(
            flags=("--allowed-host",),
            help="Name under which clients may address the server (the Host header); repeat it for several; * for any.",
            default_text="localhost and --host when listening on loopback, else any",
        ),
    ] = ()
    allowed_origins: Annotated[
        tuple[str, ...],
        Option(
            flags=("--allowed-origin",),
            help="Web origin whose pages may call the server (CORS), such as https://example.org; "
            "repeat it for several; * for any.",
            default_text="none",
        ),
    ] = ()
    api_keys: Annotated[
        tuple[str, ...],
        Option(
            flags=("--api-key",),
            help="Key that clients must send, as a Bearer token or in X-Api-Key; repeat it for several. "
            "Prefer the variable: others can read a command line.",
            default_text="none: everyone who reaches the port may use it",
            secret=True,
            pattern=r"[\x21-\x7e]+",
            expects="printable characters without spaces",
        ),
    ] = ()
    max_body_bytes: Annotated[
        int, Option(flags=("--max-body-bytes",), help="Largest request body that is read.", low=1024, high=2**31)
    ] = 10 * 2**20

    # Requests.
    served_name: Annotated[
        str | None,
        Option(
            flags=("--served-name",),
            help="The model's name in the API.",
            default_text="the model id, or demo",
            pattern=r"[^\s\x00-\x1f]{1,256}",
            expects="a name without spaces",
        ),
    ] = None
    truncate_sequence: Annotated[
        bool,
        Option(
            flags=("--truncate-sequence", "-t"),
            help="Cut prompts that are too long from the left instead of refusing them.",
        ),
    ] = False
    max_tokens: Annotated[
        int | None,
        Option(
            flags=("--max-tokens",),
            help="Most tokens of an answer where the request does not say.",
            default_text="as many as the context has room for",
            low=1,
        ),
    ] = None
    request_timeout: Annotated[
        float | None,
        Option(
            flags=("--request-timeout",),
            help="Seconds after which a request is ended, waiting included.",
            default_text="no limit",
            low=0.001,
            high=10**7,
        ),
    ] = None
    keep_alive: Annotated[
        float,
        Option(
            flags=("--keep-alive",),
            help="Seconds without a token after which a stream carries a comment, so that proxies keep it open.",
            low=0.01,
            high=10**7,
        ),
    ] = 10.0
    drain_timeout: Annotated[
        float,
        Option(
            flags=("--drain-timeout",),
            help="Seconds that running answers get to finish when the server stops.",
            low=0,
            high=10**7,
        ),
    ] = 30.0
    log: Annotated[
        Path | None,
        Option(
            flags=("--log", "-l"),
            help="File that gets every request and response as JSON lines (prompts and answers included).",
            default_text="no such file",
        ),
    ] = None
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Option(flags=("--log-level",), help="What is told on standard error."),
    ] = "info"

    # The engine.
    max_seqs: Annotated[
        int, Option(flags=("--max-seqs",), help="Answers generated at the same time (slots).", low=1, high=4096)
    ] = 8
    max_seq_len: Annotated[
        int | None,
        Option(
            flags=("--max-seq-len",),
            help="Most tokens of prompt and answer together; the cache is sized for it.",
            default_text="what the model was made for, within reason",
            low=16,
            high=2**24,
        ),
    ] = None
    max_queue: Annotated[
        int,
        Option(
            flags=("--max-queue",),
            help="Requests that may wait for a slot; more are told to come back.",
            low=1,
            high=10**6,
        ),
    ] = 128
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
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Option(flags=("--dtype",), help="Type in which weights are held and multiplied; auto takes the files' own."),
    ] = "auto"
    quant: Annotated[
        Literal["none", "auto", "q8_0", "q4_0", "q4_k", "int8"],
        Option(
            flags=("--quant",),
            help="Form of the weights on the device: auto keeps what the file has, none unpacks it, the others quantise "
            "while loading.",
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
            help="Folder that keeps compiled programs for the next start; none to keep none.",
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
        if self.model_id is None and self.model_kind in DEFAULT_MODEL_IDS:
            object.__setattr__(self, "model_id", DEFAULT_MODEL_IDS[self.model_kind])
        if self.model_id is not None and self.model_kind == "demo":
            raise SettingsError("model_id: the demo has its own model; use the command mistral to serve another")

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> Settings:
        """Settings from environment variables alone, for `litestar --app serving.app:create_app run`."""
        return cls.resolve({}, env=env)

    @classmethod
    def resolve(
        cls,
        given: Mapping[str, str | bool | Sequence[str] | None],
        *,
        kind: ModelKind | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Settings:
        """Settings from `given` (by name, as texts from the command line), then the environment, then the defaults.

        Without a `kind`, a model id makes it "mistral", and none makes it "demo". Empty variables count as not set, and
        variables that do not apply to the kind are not read.

        Raises:
          SettingsError: a value cannot be used.
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
                gguf = {"quantized_model_id", "quantized_filename"} & found.keys()
                kind = "mistral" if "model_id" in found else "gguf-mistral" if gguf else "demo"
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
        """The model's name in the API: `served_name`, or "demo", or the model id (of a local path, its last part)."""
        if self.served_name:
            return self.served_name
        if self.model_kind == "gguf-mistral":
            name = self.quantized_filename or ""
            if self.quantized_model_id is not None and not Path(name).expanduser().is_file():
                name = self.quantized_model_id
            return _local_name(name or DEFAULT_GGUF[0])
        return "demo" if self.model_id is None else _local_name(self.model_id)

    @property
    def compilation_cache_dir(self) -> Path | None:
        """Where compiled programs are kept; None: nowhere."""
        if self.compilation_cache.lower() == "none":
            return None
        if self.compilation_cache != "auto":
            return Path(self.compilation_cache).expanduser()
        base = os.environ.get("XDG_CACHE_HOME", "").strip()
        return (Path(base) if base else Path.home() / ".cache") / "mistral-jax" / "xla"

    def described(self) -> dict[str, str]:
        """The value of every setting that applies to the model kind, as text; secrets hidden."""
        applicable = (spec for spec in SPECS if not spec.option.kinds or self.model_kind in spec.option.kinds)
        return {spec.name: spec.show(getattr(self, spec.name)) for spec in applicable}

    def __repr__(self) -> str:
        return "Settings(" + ", ".join(f"{name}={text!r}" for name, text in self.described().items()) + ")"


def _local_name(name: str) -> str:
    """The last part of a path that exists, without the suffix of a GGUF file; other names as they are.

    Of a file its own, of a folder that which links and dots lead to: in the cache of the Hub files link to others without names.
    """
    path = Path(name).expanduser()
    try:
        if path.is_file():
            return path.name.removesuffix(".gguf")
        return path.resolve().name if path.exists() else name
    except OSError:
        return name


def _other_kind(source: str, spec: SettingSpec, kind: str, found: Mapping[str, Any]) -> str:
    """Why an option does not go with a kind of model."""
    if "gguf-mistral" in spec.option.kinds and kind == "mistral" and "model_id" in found:
        return f"{source}: --model-id names the model already; for a GGUF file of a repository give --quantized-model-id instead"
    if kind == "gguf-mistral":
        return f"{source}: this option is for models that are named by --model-id, not for a GGUF file"
    return f"{source}: only a model of your own has this option; give its --model-id too"


SPECS: tuple[SettingSpec, ...] = specs_of(Settings)
"""The declarations above, in order."""
