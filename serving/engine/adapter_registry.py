"""Every adapter of one server, from its loading until its place is free: the one answer to what may be used now.

The HTTP side asks it for names, the loader for keys, and the engine, on its own thread, which requests it may take and
which places it may free. Safe to use from any thread; it calls nobody.

    LOADING   read and put on the device; known by name already if the server starts with it
    READY     requests may use it
    DRAINING  no further request may; its name is free, its place is not
    GONE      no request uses it any more
"""

from __future__ import annotations

import enum
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from serving.engine.messages import AdapterGoneError


class AdapterState(enum.StrEnum):
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    GONE = "gone"


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterInfo:
    """What is known of an adapter that is loaded, or that the server starts with."""

    name: str
    """What requests call it, in `adapter` and `adapters`."""
    key: str
    """Its name in the bank of adapters, which no later adapter has."""
    number: int
    """Its place among the weights."""
    rank: int
    parts: tuple[str, ...] = ()
    """The kinds of linear layers that it changes."""
    source: str | None = None
    """Hub id, or name of the folder, that it is from."""
    created: int = 0
    """Unix time at which it was loaded."""
    expert: bool = False
    """Whether it is part of the X-LoRA mixture."""
    removable: bool = False
    """Whether it was loaded by a request, and may be unloaded by one."""


@dataclass(slots=True)
class _Entry:
    state: AdapterState
    info: AdapterInfo | None = None
    """None: nobody can name it."""
    users: int = 0
    """Requests that run or wait."""


class AdapterRegistry:
    """See the module. Adapters are known by their keys.

    Args:
      adapters: those that the server starts with; they are ready once the engine has loaded them.
    """

    def __init__(self, adapters: Iterable[AdapterInfo] = ()) -> None:
        adapters = list(adapters)
        self._lock = threading.Lock()
        self._entries = {info.key: _Entry(AdapterState.LOADING, info) for info in adapters}
        self._by_name = {info.name: info for info in adapters}
        self._draining: set[str] = set()
        """Asked before every round of the engine, so it is kept."""
        self._keys_made = 0

    # --- names ---

    @property
    def named(self) -> list[AdapterInfo]:
        """Those that requests may name, in the order in which they were loaded."""
        with self._lock:
            return list(self._by_name.values())

    def find(self, name: str) -> AdapterInfo | None:
        """The adapter that requests call so."""
        with self._lock:
            return self._by_name.get(name)

    def state(self, key: str) -> AdapterState:
        with self._lock:
            entry = self._entries.get(key)
            return AdapterState.GONE if entry is None else entry.state

    # --- loading and unloading ---

    def begin(self, name: str) -> str:
        """A key for an adapter that is about to be loaded. A name may come again while an adapter that had it is still
        in use; its key may not."""
        with self._lock:
            while True:
                self._keys_made += 1
                key = f"{name}#{self._keys_made}"
                if key not in self._entries:
                    self._entries[key] = _Entry(AdapterState.LOADING)
                    return key

    def give_up(self, key: str) -> None:
        """Forget an adapter that could not be loaded."""
        with self._lock:
            self._entries.pop(key, None)

    def loaded_at_start(self, keys: Iterable[str]) -> None:
        """Let requests use the adapters with which the engine has started."""
        with self._lock:
            for key in keys:
                self._entries.setdefault(key, _Entry(AdapterState.LOADING)).state = AdapterState.READY

    def ready(self, info: AdapterInfo) -> None:
        """Let requests name and use an adapter that was loaded. Its name must be free."""
        with self._lock:
            entry = self._entries.setdefault(info.key, _Entry(AdapterState.LOADING))
            entry.state, entry.info = AdapterState.READY, info
            self._by_name[info.name] = info

    def close(self, key: str) -> int:
        """Let no further request name or use an adapter. Returns how many requests still do; closing again does no
        more than that."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return 0
            if entry.state is not AdapterState.DRAINING:
                entry.state = AdapterState.DRAINING
                self._draining.add(key)
                if entry.info is not None:
                    self._by_name.pop(entry.info.name, None)
            return entry.users

    # --- the engine ---

    def check(self, keys: Iterable[str]) -> None:
        """Whether requests may use these adapters.

        Raises:
          AdapterGoneError: it names those that they may not.
        """
        with self._lock:
            self._check(keys)

    def _check(self, keys: Iterable[str]) -> None:
        gone = {key for key in keys if key not in self._entries or self._entries[key].state is not AdapterState.READY}
        if gone:
            raise AdapterGoneError(f"an adapter of the request was unloaded: {', '.join(sorted(gone))}")

    def enter(self, requests: Sequence[Sequence[str]]) -> None:
        """Count requests as users of their adapters: all of them or none.

        Raises:
          AdapterGoneError: see `check`.
        """
        with self._lock:
            keys = [key for request in requests for key in request]
            self._check(keys)
            for key in keys:
                self._entries[key].users += 1

    def leave(self, keys: Iterable[str]) -> None:
        """Count a request that has ended as a user no more."""
        with self._lock:
            for key in keys:
                self._entries[key].users -= 1

    @property
    def has_unused(self) -> bool:
        """Whether there is an adapter whose place can be freed."""
        with self._lock:
            return any(self._entries[key].users == 0 for key in self._draining)

    def take_unused(self) -> list[str]:
        """The closed adapters that no request uses any more; they are gone, and the caller frees their places."""
        with self._lock:
            unused = [key for key in self._draining if self._entries[key].users == 0]
            for key in unused:
                self._draining.remove(key)
                del self._entries[key]
            return unused

    def users(self) -> Mapping[str, int]:
        """Requests that run or wait, by the keys of the adapters that they use."""
        with self._lock:
            return Counter({key: entry.users for key, entry in self._entries.items() if entry.users})
