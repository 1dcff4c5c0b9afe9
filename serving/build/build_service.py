"""Builds the service from the settings: the only place where the server and the model come together."""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import time
from pathlib import Path

from conversion.files.regular_file import is_file
from conversion.weights.ggml_types import BY_NAME
from conversion.weights.weight_files import parts_pattern
from mistral_jax.adapters.load_adapters import AdapterFiles, adapter_bytes, load_adapters
from mistral_jax.chat import ChatFormatter
from mistral_jax.checkpoint.description import ModelDescription, describe
from mistral_jax.checkpoint.load_module import load_module
from mistral_jax.checkpoint.summary import summarize
from mistral_jax.checkpoint.weights import choose_dtype, open_weights, plan_weights, settle_tying
from mistral_jax.grammar.cache import CompiledGrammars
from mistral_jax.grammar.compiler import GrammarCompiler
from mistral_jax.hub.files import DEMO, ModelFiles, find_gguf, find_model
from mistral_jax.model.kv_cache import BLOCK
from mistral_jax.quant.placement import Placement, choose_placement
from mistral_jax.runtime.buckets import DEFAULT_CHUNKS
from mistral_jax.runtime.recomputing import RecomputingRunner
from mistral_jax.runtime.runner import Runner
from mistral_jax.runtime.warming.compilation_cache import enable_compilation_cache
from serving.api.service.served_models import with_aliases
from serving.api.service.service import Service
from serving.build.adapter_loader import FolderLoader
from serving.build.build_adapters import files_digest, open_adapter_files, served_models, with_base_model
from serving.build.progress import TerminalProgress
from serving.engine.engine import JaxEngine, Report
from serving.engine.messages import ModelCard
from serving.settings.settings import Settings
from serving.version import version

logger = logging.getLogger("mistral_jax.server")

LONGEST_BY_DEFAULT = {"cpu": 4096, "gpu": 32768}
"""Longest sequence in tokens if `max_seq_len` is not set; less if memory does not allow it."""

_CACHE_SHARE = {"cpu": 0.5, "gpu": 0.9}
"""Fraction of the memory left by the weights that the KV cache may take if `max_seq_len` is not set."""


def build_service(settings: Settings) -> Service:
    """Find the model, read its small files, and make an engine that loads the weights when it is started.

    Raises:
      ValueError, OSError: the model cannot be found, is not implemented, or does not fit; the message is for the user.
    """
    use_compilation_cache(settings)
    settings = with_base_model(settings)
    description = describe(model_files(settings), chat_template=settings.chat_template)
    placement = choose_placement(settings.device)
    adapters = open_adapter_files(settings, description.config)
    models = with_aliases(served_models(settings, adapters, created=int(time.time())), settings.aliases)
    length = sequence_length(settings, description, placement, adapters)

    def load(report: Report) -> Runner:
        return load_runner(settings, description, placement, length=length, report=report, adapters=adapters)

    engine = JaxEngine(
        load=load,
        tokenizer=description.tokenizer,
        eos_ids=description.eos_ids,
        slots=settings.max_seqs,
        queue_limit=settings.max_queue,
        adapters=models.registry,
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


def sequence_length(
    settings: Settings, description: ModelDescription, placement: Placement, adapters: AdapterFiles | None = None
) -> int:
    """Longest sequence in tokens: `--max-seq-len`, or the model's context, limited by a default and by memory.

    Raises:
      ValueError: `--max-seq-len` is longer than the model's context, or not even a short sequence fits.
    """
    config = description.config
    if settings.max_seq_len is not None:
        if settings.max_seq_len > config.max_position_embeddings:
            raise ValueError(
                f"--max-seq-len {settings.max_seq_len}: this model supports a context of at most "
                f"{config.max_position_embeddings} tokens"
            )
        return settings.max_seq_len
    platform = "cpu" if placement.platform == "cpu" else "gpu"
    itemsize = choose_dtype(settings.dtype, config.dtype, placement.platform).itemsize
    weights = weight_bytes(settings, description, placement) + bytes_of_adapters(
        settings, description, placement, adapters
    )
    free = placement.free_memory() - weights
    per_token = caches_of(adapters) * config.kv_bytes_per_token(itemsize) * max(settings.max_seqs, 2)
    fits = int(free * _CACHE_SHARE[platform]) // per_token // BLOCK * BLOCK
    length = min(config.max_position_embeddings, LONGEST_BY_DEFAULT[platform], max(fits, 0))
    if length < min(2 * BLOCK, config.max_position_embeddings):
        raise ValueError(
            f"{weights / 2**30:.1f} GiB of weights and a cache for {settings.max_seqs} sequences do not fit into the "
            f"{placement.free_memory() / 2**30:.1f} GiB that are free; take fewer slots (--max-seqs), smaller "
            "weights (--quant q4_k), or set --max-seq-len yourself"
        )
    return length


def weight_bytes(settings: Settings, description: ModelDescription, placement: Placement) -> int:
    """Bytes of the weights on the device: exact if the files are local, else computed from the configuration."""
    files, config = description.files, description.config
    dtype = choose_dtype(settings.dtype, config.dtype, placement.platform)
    if files.repo_id is None or files.gguf is not None:
        source = open_weights(config, files.fetch_weights())
        planned = plan_weights(
            settle_tying(config, source),
            source,
            dtype=dtype,
            quant=settings.quant,
            in_groups=placement.is_one_gpu,
        )
        return sum(weight.nbytes for weight in planned)
    if settings.quant in ("none", "auto"):
        return config.num_parameters * dtype.itemsize
    bits = 8 if settings.quant == "int8" else BY_NAME[settings.quant.upper()].bits_per_weight
    return int(config.num_parameters * bits / 8)


def bytes_of_adapters(
    settings: Settings, description: ModelDescription, placement: Placement, adapters: AdapterFiles | None
) -> int:
    """Bytes on the device of the adapters, the X-LoRA classifier, and the room for further adapters."""
    if adapters is None:
        return 0
    dtype = choose_dtype(settings.dtype, description.config.dtype, placement.platform)
    return adapter_bytes(adapters, dtype=dtype, spare=settings.room_for_loras, spare_rank=settings.max_lora_rank)


def caches_of(adapters: AdapterFiles | None) -> int:
    """Number of KV caches: X-LoRA's two passes have one each."""
    return 1 if adapters is None or adapters.xlora is None else 2


def load_runner(
    settings: Settings,
    description: ModelDescription,
    placement: Placement,
    *,
    length: int,
    report: Report,
    slots: int | None = None,
    adapters: AdapterFiles | None = None,
) -> Runner:
    """Load the weights and make the runner, whose programs are compiled later, by `Runner.warm_up`."""
    report("fetching weight files", None)

    def progress(done: int, total: int) -> None:
        report(f"loading weights: {done / 2**20:,.0f} of {total / 2**20:,.0f} MiB", done / total)

    module = load_module(
        description, dtype=settings.dtype, quant=settings.quant, placement=placement, progress=progress
    )
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
    )


def chunk_sizes(settings: Settings) -> tuple[int, ...]:
    """Lengths of prefill chunks: `--prefill-chunk`, and the default ones below it for the rest of a prompt."""
    longest = settings.prefill_chunk
    if longest is None:
        return DEFAULT_CHUNKS
    return (*(size for size in DEFAULT_CHUNKS if size < longest), longest)


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
