"""`mistral-jax chat`: talk to a model in the terminal, in this process."""

from __future__ import annotations

import importlib
import sys
import time
from dataclasses import replace
from typing import Any

from mistral_jax.adapters.choice import BASE_NAME
from mistral_jax.adapters.load_adapters import load_adapters
from mistral_jax.checkpoint.description import describe
from mistral_jax.notebook.language_model import LanguageModel
from mistral_jax.runtime.sampling.params import SamplingParams, SamplingParamsError
from serving.build.build_adapters import open_adapter_files, with_base_model
from serving.build.build_service import load_weights_of, model_files, use_compilation_cache
from serving.build.gpus import choose_device
from serving.build.memory import chunk_sizes, plan_cache
from serving.settings.settings import Settings, SettingsError

_HELP = """\
/help             this list
/system TEXT      start over with a system message
/clear            start over
/adapter NAME     use one adapter, "base" for none, or (without a NAME) the default
/set NAME VALUE   change a sampling parameter: temperature, top_k, top_p, min_p, repetition_penalty, max_tokens, seed
/exit             leave (so does Ctrl-D); Ctrl-C stops a completion"""

_SETTABLE = {
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "typical_p": float,
    "top_n_sigma": float,
    "xtc_probability": float,
    "xtc_threshold": float,
    "repetition_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "dry_multiplier": float,
    "dry_base": float,
    "dry_allowed_length": int,
    "dry_penalty_last_n": int,
    "min_tokens": int,
    "max_tokens": int,
    "seed": int,
}


class _Conversation:
    """The messages so far, and the sampling parameters."""

    def __init__(
        self, model: LanguageModel, *, system: str | None, max_tokens: int | None, freeze_after: int | None = None
    ) -> None:
        self._model = model
        self._adapter: str | None = None
        self._freeze_after = freeze_after
        self._sampling: dict[str, Any] = {**model.description.defaults, "max_tokens": max_tokens}
        self._system = system
        self.clear()

    def clear(self) -> None:
        self._messages: list[dict[str, Any]] = [{"role": "system", "content": self._system}] if self._system else []

    def command(self, line: str) -> str | None:
        """Run a line that begins with a slash. Returns the text to print; None: leave."""
        name, _, rest = line.partition(" ")
        match name:
            case "/exit" | "/quit":
                return None
            case "/clear":
                self.clear()
                return "(a new conversation)"
            case "/system":
                self._system = rest.strip() or None
                self.clear()
                return "(a new conversation)"
            case "/adapter":
                return self._use(rest.strip() or None)
            case "/set":
                return self._set(rest.split())
            case _:
                return _HELP

    def _use(self, name: str | None) -> str:
        if name is not None and name not in (BASE_NAME, *self._model.adapters):
            there = ", ".join(self._model.adapters) or "none"
            return f"there is no adapter {name!r}; adapters: {there}; or {BASE_NAME} for the model alone"
        self._adapter = name
        return f"(using {name or 'the default'})"

    def _set(self, words: list[str]) -> str:
        if len(words) != 2 or words[0] not in _SETTABLE:
            return f"expected /set NAME VALUE with one of {', '.join(_SETTABLE)}"
        kind = _SETTABLE[words[0]]
        try:
            changed: dict[str, Any] = {**self._sampling, words[0]: kind(words[1])}
            SamplingParams(**changed)
        except SamplingParamsError as error:
            return str(error)
        except ValueError:
            return f"{words[0]} is {words[1]!r}; expected {'an integer' if kind is int else 'a number'}"
        self._sampling = changed
        return f"({words[0]} = {words[1]})"

    def reply(self, text: str) -> None:
        """Stream a completion to standard output and add it to the conversation."""
        self._messages.append({"role": "user", "content": text})
        pieces: list[str] = []
        start = time.perf_counter()
        try:
            stream = self._model.stream_chat(
                self._messages,
                SamplingParams(**self._sampling),
                adapter=self._adapter,
                freeze_after=self._freeze_after if self._adapter is None else None,
            )
            for piece in stream:
                pieces.append(piece)
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            print(" [stopped]", end="")
        except (ValueError, ArithmeticError) as error:
            self._messages.pop()
            print(f"({error}; /clear starts over)" if len(self._messages) > 1 else f"({error})")
            return
        self._messages.append({"role": "assistant", "content": "".join(pieces)})
        print(f"\n\x1b[2m({time.perf_counter() - start:.1f} s)\x1b[0m" if sys.stdout.isatty() else "")


def run_chat(settings: Settings, *, system: str | None) -> int:
    """Load the model and talk until the input ends. Returns the exit status."""
    if not settings.xlora_kv_cache:
        raise SettingsError("--no-xlora-kv-cache: only a server can do without the cache")
    settings = with_base_model(replace(settings, max_seqs=1))  # one conversation; the length is chosen for one slot
    use_compilation_cache(settings)
    description = describe(model_files(settings), chat_template=settings.chat_template)
    if description.chat is None:
        raise ValueError("this model has no chat template; give one with --chat-template")
    placement = choose_device(settings)
    files = open_adapter_files(settings, description.config)
    length = plan_cache(settings, description, placement, files, shared=False).length
    print(f"Loading {settings.served_id} …", file=sys.stderr)
    module = load_weights_of(settings, description, placement)
    adapters = xlora = None
    if files is not None and files.loras:
        adapters, xlora = load_adapters(files, dtype=module.dtype, placement=placement)
    model = LanguageModel(
        description,
        module,
        slots=settings.max_seqs,
        length=length,
        chunks=chunk_sizes(settings),
        repeat_last_n=settings.repeat_last_n,
        adapters=adapters,
        xlora=xlora,
    )
    model.runner.warm_up(model.runner.new_state())
    if sys.stdin.isatty():
        importlib.import_module("readline")  # line editing and history for input()
        print(f"Talking to {settings.served_id}. /help lists the commands, /exit leaves.", file=sys.stderr)
        if model.adapters:
            who = "their X-LoRA mixture" if xlora is not None else "the model without them"
            print(f"Adapters: {', '.join(model.adapters)}; {who} answers until /adapter NAME.", file=sys.stderr)
    conversation = _Conversation(
        model, system=system, max_tokens=settings.max_tokens, freeze_after=settings.tgt_non_granular_index
    )
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            return 0
        if line.startswith("/"):
            said = conversation.command(line)
            if said is None:
                return 0
            print(said)
        elif line:
            conversation.reply(line)
