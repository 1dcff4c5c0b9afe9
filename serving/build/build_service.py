"""Builds the service from the settings: the only place where the server and the model come together."""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from conversion.files.regular_file import is_file
from conversion.weights.weight_files import parts_pattern
from mistral_jax.adapters.load_adapters import AdapterFiles, load_adapters
from mistral_jax.chat import ChatFormatter
from mistral_jax.checkpoint.description import ModelDescription, describe
from mistral_jax.checkpoint.load_module import load_module
from mistral_jax.checkpoint.summary import summarize
from mistral_jax.checkpoint.weights import Progress
from mistral_jax.grammar.cache import CompiledGrammars
from mistral_jax.grammar.compiler import GrammarCompiler
from mistral_jax.hub.files import DEMO, ModelFiles, find_gguf, find_model
from mistral_jax.model.mistral import Mistral
from mistral_jax.quant.placement import Placement
from mistral_jax.runtime.recomputing import RecomputingRunner
from mistral_jax.runtime.runner import Runner
from mistral_jax.runtime.warming.compilation_cache import enable_compilation_cache
from serving.api.service.served_models import with_aliases
from serving.api.service.service import Service
from serving.build.adapter_loader import FolderLoader
from serving.build.build_adapters import files_digest, open_adapter_files, served_models, with_base_model
from serving.build.gpus import choose_device
from serving.build.memory import chunk_sizes, plan_cache
from serving.build.progress import TerminalProgress
from serving.engine.engine import JaxEngine, PlainCompletions, Report
from serving.engine.messages import ModelCard
from serving.settings.settings import Settings
from serving.version import version

logger = logging.getLogger("mistral_jax.server")


def build_service(settings: Settings) -> Service:
    """Find the model, read its small files, and make an engine that loads the weights when it is started.

    Raises:
      ValueError, OSError: the model cannot be found, is not implemented, or does not fit; the message is for the user.
    """
    use_compilation_cache(settings)
    settings = with_base_model(settings)
    description = describe(model_files(settings), chat_template=settings.chat_template)
    placement = choose_device(settings)
    adapters = open_adapter_files(settings, description.config)
    models = with_aliases(served_models(settings, adapters, created=int(time.time())), settings.aliases)
    plan = plan_cache(settings, description, placement, adapters)
    length = plan.length

    def load(report: Report) -> Runner:
        return load_runner(
            settings,
            description,
            placement,
            length=length,
            report=report,
            adapters=adapters,
            cache_blocks=plan.blocks,
        )

    engine = JaxEngine(
        load=load,
        tokenizer=description.tokenizer,
        eos_ids=description.eos_ids,
        slots=settings.max_seqs,
        queue_limit=settings.max_queue,
        adapters=models.registry,
        prefix_cache="off" if not settings.prefix_cache else "shared" if settings.share_prefix_cache else "own",
        # On a GPU, XLA times kernels while it compiles, so nothing else should run.
        behind=PlainCompletions(models.base.choice.xlora)
        if placement.platform == "cpu" and not settings.wait_for_programs
        else None,
        observe=TerminalProgress(),
    )
    card = ModelCard(
        max_model_len=length,
        vocab_size=description.config.vocab_size,
        hidden_size=description.config.hidden_size,
        fingerprint=fingerprint(
            description,
            settings.dtype,
            settings.quant,
            settings.activations,
            placement.platform,
            *([] if adapters is None else [files_digest(adapters)]),
        ),
        defaults=description.defaults,
        eos_ids=frozenset(description.eos_ids),
    )
    loader = None
    if settings.lora_folder is not None:
        loader = FolderLoader(
            engine, models.registry, description.config, settings.lora_folder, max_rank=settings.max_lora_rank
        )
    return Service(
        engine=engine,
        card=card,
        models=models,
        tokenizer=description.tokenizer,
        grammars=CompiledGrammars(
            GrammarCompiler(
                description.tokenizer, vocab_size=description.config.vocab_size, eos_ids=description.eos_ids
            )
        ),
        chat=chat_format(settings, description),
        loader=loader,
    )


def chat_format(settings: Settings, description: ModelDescription) -> ChatFormatter | None:
    """The model's chat format, with the format of tool calls that the settings name."""
    chat = description.chat
    if chat is None:
        return None
    if settings.tool_format != "auto":
        chat = chat.with_tool_format(None if settings.tool_format == "none" else settings.tool_format)
    tools = chat.output.tools if chat.knows_tools else None
    logger.info(
        "chat: tool calls: %s; reasoning: %s",
        "none" if tools is None else tools.name,
        "none" if chat.output.reasoning is None else chat.output.reasoning.start.text,
    )
    return chat


def use_compilation_cache(settings: Settings) -> None:
    """Enable JAX's compilation cache, if the settings name a folder for it.

    Raises:
      OSError: the folder cannot be used.
    """
    if settings.compilation_cache_dir is None:
        return
    try:
        enable_compilation_cache(settings.compilation_cache_dir)
    except OSError as error:
        raise OSError(f"{error}; choose another folder with --compilation-cache, or none") from error


def model_files(settings: Settings) -> ModelFiles:
    """The files of the model that the settings name."""
    if settings.kind.weights == "gguf":
        repository, filename = settings.default_gguf
        # A path that does not exist is an error, not a filename to look for in the default repository.
        is_path = settings.quantized_filename is not None and "/" in settings.quantized_filename
        return find_gguf(
            settings.quantized_model_id or (None if is_path else repository),
            settings.quantized_filename,
            preferred=filename,
            tokenizer_id=settings.tok_model_id,
            revision=settings.revision,
            token=settings.token_source.token(),
        )
    return find_model(
        settings.model_id or DEMO,
        revision=settings.revision,
        token=settings.token_source.token(),
        weight_files=settings.weight_files,
        tokenizer_id=settings.tok_model_id,
    )


def load_weights_of(
    settings: Settings, description: ModelDescription, placement: Placement, *, progress: Progress | None = None
) -> Mistral:
    """The model, with its weights in the types and forms that the settings say."""
    return load_module(
        description,
        dtype=settings.dtype,
        quant=settings.quant,
        activations=settings.activations,
        placement=placement,
        progress=progress,
    )


def load_runner(
    settings: Settings,
    description: ModelDescription,
    placement: Placement,
    *,
    length: int,
    report: Report,
    slots: int | None = None,
    adapters: AdapterFiles | None = None,
    cache_blocks: Sequence[int] | None = None,
) -> Runner:
    """Load the weights and make the runner, whose programs are compiled later, by `Runner.warm_up`.

    Args:
      cache_blocks: see `Runner`.
    """
    report("fetching weight files", None)

    def progress(done: int, total: int) -> None:
        report(f"loading weights: {done / 2**20:,.0f} of {total / 2**20:,.0f} MiB", done / total)

    module = load_weights_of(settings, description, placement, progress=progress)
    logger.info("weights: %s", summarize(module))
    bank = xlora = None
    if adapters is not None:
        report("loading adapters", None)
        bank, xlora = load_adapters(
            adapters,
            dtype=module.dtype,
            placement=placement,
            spare=settings.room_for_loras,
            spare_rank=settings.max_lora_rank,
        )
        logger.info("adapters: %s (%.1f MiB)", ", ".join(adapters.names) or "none yet", bank.nbytes / 2**20)
    runner = Runner if settings.xlora_kv_cache else RecomputingRunner
    return runner(
        module,
        slots=slots or settings.max_seqs,
        length=length,
        chunks=chunk_sizes(settings),
        repeat_last_n=settings.repeat_last_n,
        adapters=bank,
        xlora=xlora,
        embeds=settings.pooling != "none",
        cache_blocks=cache_blocks,
        looks_up=settings.prompt_lookup,
    )


def fingerprint(description: ModelDescription, *others: str) -> str:
    """A digest of what a completion depends on besides the request: weights, configuration, versions and `others`.

    The weights of a Hub model, which may not be downloaded yet, are identified by its commit; those of a local folder
    by sizes and times of its files.
    """
    files = description.files
    gguf = files.gguf and str(files.gguf.relative_to(files.folder))  # a repository may have several
    digest = hashlib.sha256(repr((description.config, files.weight_files, gguf, others)).encode())
    if files.repo_id is not None:
        digest.update(f"{files.repo_id} {files.folder.name}".encode())
    else:
        own = files.folder.glob(parts_pattern(files.gguf.name) if files.gguf else "*.safetensors")
        for path in sorted({*own, *map(Path, files.weight_files)}):
            if is_file(path):
                stat = path.stat()
                digest.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}".encode())
    for part in (version(), _version("jax"), _version("jaxlib")):
        digest.update(part.encode())
    return f"b{version()}-{digest.hexdigest()[:10]}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "0"
