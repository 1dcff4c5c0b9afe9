"""The adapters of one server, from loading until their place is freed: the single source for which may be used now.

The HTTP side looks up names and the loader gets keys. The engine asks, on its own thread, which requests it may take
and which places it may free. Thread-safe; calls no other component.

    LOADING   being read and put on the device; already known by name if the server starts with it
    READY     requests may use it
    DRAINING  takes no new requests; its name is free, its place is not
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
    """An adapter that is loaded, or that the server starts with."""

    name: str
    """Its name in the API (`adapter` and `adapters`)."""
    key: str
    """Its name in the adapter bank; never reused."""
    number: int
    """Its place in the adapter bank."""
    rank: int
    parts: tuple[str, ...] = ()
    """The kinds of linear layers that it changes."""
    source: str | None = None
    """Hub id or folder name that it was loaded from."""
    created: int = 0
    """Unix time at which it was loaded."""
    expert: bool = False
    """Whether it is part of the X-LoRA mixture."""
    removable: bool = False
    """Whether a request loaded it; requests can unload only such adapters."""


@dataclass(slots=True)
class _Entry:
    state: AdapterState
    info: AdapterInfo | None = None
    """None: requests cannot name it yet."""
    users: int = 0
    """Requests running or waiting that use it."""


class AdapterRegistry:
    """See the module. Adapters are identified by their keys.

    Args:
      adapters: those that the server starts with; they are ready once the engine has loaded them.
    """

    def __init__(self, adapters: Iterable[AdapterInfo] = ()) -> None:
        adapters = list(adapters)
        self._lock = threading.Lock()
        self._entries = {info.key: _Entry(AdapterState.LOADING, info) for info in adapters}
        self._by_name = {info.name: info for info in adapters}
        self._draining: set[str] = set()
        """Stored, not computed: the engine checks it before every round."""
        self._keys_made = 0

    # --- names ---

    @property
    def named(self) -> list[AdapterInfo]:
        """Adapters that requests may name, in loading order."""
        with self._lock:
            return list(self._by_name.values())

    def find(self, name: str) -> AdapterInfo | None:
        """The adapter with this name in the API, or None."""
        with self._lock:
            return self._by_name.get(name)

    def state(self, key: str) -> AdapterState:
        with self._lock:
            entry = self._entries.get(key)
            return AdapterState.GONE if entry is None else entry.state

    # --- loading and unloading ---

    def begin(self, name: str) -> str:
        """A new key for an adapter that is about to be loaded. A name can be reused while the previous adapter of that
        name still drains; a key cannot."""
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
        """Let no further request name or use an adapter. Returns how many requests still use it. Closing twice is
        harmless."""
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
        """Check that requests may use these adapters.

        Raises:
          AdapterGoneError: some may not be used; the message names them.
        """
        with self._lock:
            self._check(keys)

    def _check(self, keys: Iterable[str]) -> None:
        gone = {key for key in keys if key not in self._entries or self._entries[key].state is not AdapterState.READY}
        if gone:
            raise AdapterGoneError(f"an adapter of the request was unloaded: {', '.join(sorted(gone))}")

    def enter(self, requests: Sequence[Sequence[str]]) -> None:
        """Count requests as users of their adapters: all or none.

        Raises:
          AdapterGoneError: see `check`.
        """
        with self._lock:
            keys = [key for request in requests for key in request]
            self._check(keys)
            for key in keys:
                self._entries[key].users += 1

    def leave(self, keys: Iterable[str]) -> None:
        """Stop counting a request that has ended as a user of its adapters."""
        with self._lock:
            for key in keys:
                self._entries[key].users -= 1

    @property
    def has_unused(self) -> bool:
        """Whether the place of any closed adapter can be freed."""
        with self._lock:
            return any(self._entries[key].users == 0 for key in self._draining)

    def take_unused(self) -> list[str]:
        """Remove and return the closed adapters that no request uses any more; the caller frees their places."""
        with self._lock:
            unused = [key for key in self._draining if self._entries[key].users == 0]
            for key in unused:
                self._draining.remove(key)
                del self._entries[key]
            return unused

    def users(self) -> Mapping[str, int]:
        """Requests running or waiting, counted by the keys of the adapters that they use."""
        with self._lock:
            return Counter({key: entry.users for key, entry in self._entries.items() if entry.users})
