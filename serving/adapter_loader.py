"""Loads adapters from one folder while the engine runs.

Requests name folders below it; nothing outside can be reached, by `..` or by links. Files are read and checked on the calling
thread; only what was read goes to the engine's, between two rounds.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from conversion.adapters.lora_config import CONFIG_NAME
from conversion.adapters.lora_files import WEIGHTS_NAME, LoRAFiles, LoRAModule, check_fits, open_lora
from conversion.adapters.modules import ModuleKey
from conversion.tensor_source import Array, WeightFileError
from mistral_jax.adapters import AdapterEntry, BankFullError
from mistral_jax.config import MistralConfig
from mistral_jax.lora import part_features
from mistral_jax.runner import Runner
from serving.adapters import AdapterInfo
from serving.engine import JaxEngine
from serving.errors import InvalidRequestError, NoRoomError, NotFoundError, UnavailableError, without_paths

LOAD_TIMEOUT = 120.0
"""Seconds that the engine has to begin taking an adapter."""


@dataclass(frozen=True, kw_only=True)
class _ReadLoRA:
    """An adapter in memory."""

    name: str
    rank: int
    modules: Mapping[ModuleKey, LoRAModule]
    factors: Mapping[ModuleKey, tuple[Array, Array]]

    def read(self, key: ModuleKey) -> tuple[Array, Array]:
        return self.factors[key]


class FolderLoader:
    """Implements `serving.service.AdapterLoader`.

    Args:
      folder: that adapters are in.
      max_rank: the largest for which there is room.
    """

    def __init__(self, engine: JaxEngine, config: MistralConfig, folder: Path, *, max_rank: int) -> None:
        self._engine = engine
        self._config = config
        self._folder = folder.expanduser().resolve()
        self._max_rank = max_rank
        self._numbers = itertools.count(1)

    def load(self, name: str, path: str) -> AdapterInfo:
        """See `AdapterLoader.load`.

        Raises:
          InvalidRequestError: the path leads elsewhere, or the adapter is broken or does not fit.
          NotFoundError: there is no such folder.
          NoRoomError: all places are taken.
          UnavailableError: the engine is busy, or has ended.
        """
        folder = inside(self._folder, path)
        # A name may come again while an adapter that had it is still in use.
        key = f"{name}#{next(self._numbers)}"
        try:
            lora = open_lora(folder, name=key)
            try:
                read = self._read(lora)
                parts = lora.parts
            finally:
                lora.close()
        except WeightFileError as error:
            raise InvalidRequestError(
                f"lora_path: {without_paths(str(error)).replace(key, name)}", param="lora_path", code="invalid_adapter"
            ) from error
        try:
            entry = self._wait(self._engine.between_rounds(lambda runner: _put(runner, read)))
        except BankFullError as error:
            raise NoRoomError(str(error)) from error
        self._engine.open_adapter(key)
        return AdapterInfo(
            name=name,
            key=key,
            number=entry.number,
            rank=lora.rank,
            parts=parts,
            source=str(folder.relative_to(self._folder)),
            created=int(time.time()),
            removable=True,
        )

    def unload(self, adapter: AdapterInfo) -> int:
        """See `AdapterLoader.unload`."""
        self._engine.close_adapter(adapter.key)
        return self._engine.adapter_users()[adapter.key]

    def _wait(self, loading: Future[AdapterEntry]) -> AdapterEntry:
        try:
            return loading.result(LOAD_TIMEOUT)
        except TimeoutError as error:
            if not loading.cancel():  # it has just begun, and is a matter of milliseconds
                return loading.result()
            raise UnavailableError(
                f"the engine was too busy to take the adapter for {LOAD_TIMEOUT:.0f} seconds; nothing was loaded, try again later"
            ) from error

    def _read(self, lora: LoRAFiles) -> _ReadLoRA:
        check_fits(lora, num_layers=self._config.num_layers, features=part_features(self._config))
        if lora.rank > self._max_rank:
            raise WeightFileError(
                f"the adapter has rank {lora.rank}, and this server has room for adapters of rank {self._max_rank} "
                "(--max-lora-rank)"
            )
        factors = {key: lora.read(key) for key in lora.modules}
        return _ReadLoRA(name=lora.name, rank=lora.rank, modules=lora.modules, factors=factors)


def inside(folder: Path, path: str) -> Path:
    """The adapter's folder that `path` leads to from `folder`, which is resolved.

    Raises:
      InvalidRequestError: it is no relative path, or it or its files lie elsewhere.
      NotFoundError: there is no such folder.
    """
    parts = PurePosixPath(path).parts
    if not parts or "\0" in path or "\\" in path or path.startswith(("/", "~")) or ".." in parts:
        raise InvalidRequestError(
            f"lora_path: {path[:200]!r} is not valid; expected the name of a folder in the server's --lora-folder",
            param="lora_path",
        )
    found = folder.joinpath(*parts)
    try:
        resolved = found.resolve()
        files = [(found / name).resolve() for name in (CONFIG_NAME, WEIGHTS_NAME)]
        is_folder = resolved.is_dir()
    except (OSError, ValueError, RuntimeError) as error:  # a name that is too long, or links in a circle
        raise _no_folder(path) from error
    if not all(file.is_relative_to(folder) for file in (resolved, *files)):
        raise InvalidRequestError(
            f"lora_path: {path[:200]!r} leads out of the server's --lora-folder", param="lora_path"
        )
    if not is_folder or resolved == folder:
        raise _no_folder(path)
    return resolved


def _no_folder(path: str) -> NotFoundError:
    return NotFoundError(
        f"lora_path: there is no folder {path[:200]!r} in the server's --lora-folder",
        param="lora_path",
        code="adapter_not_found",
    )


def _put(runner: Runner, lora: _ReadLoRA) -> AdapterEntry:
    assert runner.adapters is not None
    return runner.adapters.load(lora)
