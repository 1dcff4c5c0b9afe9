"""The calls in progress by id, so that another request can cancel one. Used only on the event loop."""

from __future__ import annotations

from serving.api.errors import RequestCancelledError
from serving.api.service.generation import GenerationCall


class LiveCalls:
    """The calls of each caller, by the id of their response and by the id of their request. Clients choose request ids,
    so that several calls may have the same."""

    def __init__(self) -> None:
        self._by_id: dict[tuple[int, str], list[GenerationCall]] = {}

    def add(self, call: GenerationCall, *ids: str) -> None:
        """Let a call be found by these ids until it is removed."""
        for each in ids:
            self._by_id.setdefault((call.caller, each), []).append(call)

    def remove(self, call: GenerationCall, *ids: str) -> None:
        """Forget a call; harmless if it is not there."""
        for each in ids:
            calls = self._by_id.get((call.caller, each), [])
            if call in calls:
                calls.remove(call)
            if not calls:
                self._by_id.pop((call.caller, each), None)

    def cancel(self, id: str, *, caller: int) -> int:
        """End all calls of a caller with this id with an error. Returns their number."""
        calls = self._by_id.pop((caller, id), [])
        for call in calls:
            call.end(RequestCancelledError("the request was cancelled by its id"))
        return len(calls)
