"""Loads adapters from one folder while the engine runs.

Requests name folders below it, relative or absolute; `..` and links cannot lead outside. Files are read and checked in
a separate thread, which is abandoned if it takes too long. The engine's thread gets only the loaded arrays, between two
rounds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from conversion.adapters.lora.config import CONFIG_NAME
from conversion.adapters.lora.files import WEIGHTS_NAME, LoRAFiles, LoRAModule, check_fits, open_lora
from conversion.adapters.modules import ModuleKey, parts_of
from conversion.weights.tensor_source import Array, WeightFileError
from mistral_jax.adapters.bank import AdapterEntry, BankFullError
from mistral_jax.model.config import MistralConfig
from mistral_jax.model.low_rank import part_features
from mistral_jax.runtime.runner import Runner
from serving.api.errors import InvalidRequestError, NoRoomError, NotFoundError, UnavailableError, without_paths
from serving.engine.adapter_registry import AdapterInfo, AdapterRegistry
from serving.engine.messages import Engine

READ_TIMEOUT = 120.0
"""Seconds that reading an adapter's files may take. A read from a hanging disk cannot be interrupted, only
abandoned."""

MAX_STUCK = 4
"""Most abandoned readers still running; beyond this, no new one is started."""

LOAD_TIMEOUT = 120.0
"""Seconds until the engine must have started to load an adapter."""


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
    """Implements `serving.api.service.service.AdapterLoader`.

    Args:
      adapters: registry of adapters; each is in it from the start of its loading.
      folder: contains the adapters' folders.
      max_rank: largest rank that fits in the bank.
    """

    def __init__(
        self,
        engine: Engine,
        adapters: AdapterRegistry,
        config: MistralConfig,
        folder: Path,
        *,
        max_rank: int,
        read_timeout: float = READ_TIMEOUT,
    ) -> None:
        self._engine = engine
        self._adapters = adapters
        self._config = config
        self._folder = folder.expanduser().resolve()
        self._spellings = (self._folder, folder.expanduser().absolute())
        self._max_rank = max_rank
        self._readers = Readers(read_timeout)

    def load(self, name: str, path: str, replaced: AdapterInfo | None = None) -> AdapterInfo:
        """See `AdapterLoader.load`.

        Raises:
          InvalidRequestError: the path leads outside, or the adapter is broken or does not fit.
          NotFoundError: there is no such folder.
          NoRoomError: all places in the bank are taken.
          UnavailableError: the engine is busy or has stopped.
        """
        key = self._adapters.begin(name)
        try:
            return self._load(name, path, key, replaced)
        except BaseException:
            self._adapters.give_up(key)
            raise

    def _load(self, name: str, path: str, key: str, replaced: AdapterInfo | None) -> AdapterInfo:
        try:
            folder, read = self._readers.run(lambda: self._open(path, key))
        except WeightFileError as error:
            raise InvalidRequestError(
                f"lora_path: {without_paths(str(error)).replace(key, name)}", param="lora_path", code="invalid_adapter"
            ) from error
        try:
            entry = self._put(read)
        except BankFullError as error:
            if replaced is None:
                raise NoRoomError(str(error)) from error
            entry = self._put_in_place_of(replaced, read)
        return AdapterInfo(
            name=name,
            key=key,
            number=entry.number,
            rank=read.rank,
            parts=parts_of(read.modules),
            source=str(folder.relative_to(self._folder)),
            created=int(time.time()),
            removable=True,
        )

    def _put(self, read: _ReadLoRA) -> AdapterEntry:
        return self._wait(self._engine.between_rounds(lambda runner: _put(runner, read)))

    def _put_in_place_of(self, replaced: AdapterInfo, read: _ReadLoRA) -> AdapterEntry:
        """Free the place of an adapter that no request uses, and take it."""
        used = f"there is no room for both, and requests still use {replaced.name!r}; try again later"
        if self._adapters.users().get(replaced.key):
            raise NoRoomError(used)
        self.unload(replaced)
        try:
            return self._put(read)
        except BankFullError as error:  # a request came in between
            raise NoRoomError(f"{used}. It takes no new requests") from error

    def unload(self, adapter: AdapterInfo) -> int:
        """See `AdapterLoader.unload`."""
        users = self._adapters.close(adapter.key)
        self._engine.unload_closed()
        return users

    def _wait(self, loading: Future[AdapterEntry]) -> AdapterEntry:
        try:
            return loading.result(LOAD_TIMEOUT)
        except TimeoutError as error:
            if not loading.cancel():  # it has just started, and takes milliseconds
                return loading.result()
            raise UnavailableError(
                f"the engine was too busy to take the adapter for {LOAD_TIMEOUT:.0f} seconds; nothing was loaded, try "
                "again later"
            ) from error

    def _open(self, path: str, key: str) -> tuple[Path, _ReadLoRA]:
        folder = inside(self._folder, path, self._spellings)
        lora = open_lora(folder, name=key)
        try:
            return folder, self._read(lora)
        finally:
            lora.close()

    def _read(self, lora: LoRAFiles) -> _ReadLoRA:
        check_fits(lora, num_layers=self._config.num_layers, features=part_features(self._config))
        if lora.rank > self._max_rank:
            raise WeightFileError(
                f"the adapter has rank {lora.rank}, and this server has room for adapters of rank {self._max_rank} "
                "(--max-lora-rank)"
            )
        factors = {key: lora.read(key) for key in lora.modules}
        return _ReadLoRA(name=lora.name, rank=lora.rank, modules=lora.modules, factors=factors)


class Readers:
    """Runs each function that reads files in its own thread, and abandons the thread on timeout, so that the next one
    does not wait for it.

    Args:
      timeout: seconds.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._stuck: list[threading.Thread] = []

    def run[T](self, read: Callable[[], T]) -> T:
        """Call `read` and return its result.

        Raises:
          UnavailableError: it took too long, or too many abandoned readers are still running.
        """
        self._stuck = [thread for thread in self._stuck if thread.is_alive()]
        if len(self._stuck) >= MAX_STUCK:
            raise UnavailableError(
                f"{len(self._stuck)} adapters are still being read from a folder that does not answer; nothing was "
                "loaded",
                code="adapter_folder_stuck",
            )
        reading: Future[T] = Future()

        def work() -> None:
            try:
                reading.set_result(read())
            except BaseException as error:
                reading.set_exception(error)

        # Not a pool thread: the interpreter would wait for it at exit.
        thread = threading.Thread(target=work, name="adapter files", daemon=True)
        thread.start()
        try:
            return reading.result(self._timeout)
        except TimeoutError as error:
            if reading.done():
                raise
            self._stuck.append(thread)
            raise UnavailableError(
                f"reading the adapter's files took more than {self._timeout:g} seconds; nothing was loaded",
                code="adapter_read_timeout",
            ) from error


def inside(folder: Path, path: str, spellings: Sequence[Path] = ()) -> Path:
    """The adapter's folder: `path` resolved relative to `folder`, which must be resolved already.

    Args:
      spellings: what absolute paths may begin with. Nothing is read outside of them.

    Raises:
      InvalidRequestError: it is not a path below `folder`, or it or its files lie outside.
      NotFoundError: there is no such folder.
    """
    given = PurePosixPath(path)
    if not given.parts or "\0" in path or "\\" in path or path.startswith("~") or ".." in given.parts:
        raise InvalidRequestError(
            f"lora_path: {path[:200]!r} is not valid; expected the path of a folder in the server's --lora-folder",
            param="lora_path",
        )
    outside = InvalidRequestError(
        f"lora_path: {path[:200]!r} leads out of the server's --lora-folder", param="lora_path"
    )
    if given.is_absolute():
        root = next((spelling for spelling in spellings if given.is_relative_to(spelling)), None)
        if root is None:
            raise outside
        given = given.relative_to(root)
    found = folder.joinpath(*given.parts)
    try:
        resolved = found.resolve()
        files = [(found / name).resolve() for name in (CONFIG_NAME, WEIGHTS_NAME)]
        is_folder = resolved.is_dir()
    except (OSError, ValueError, RuntimeError) as error:  # the name is too long, or links form a loop
        raise _no_folder(path) from error
    if not all(file.is_relative_to(folder) for file in (resolved, *files)):
        raise outside
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
