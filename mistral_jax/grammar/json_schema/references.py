"""Finds what `$ref` refers to, inside one schema."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from mistral_jax.grammar.json_schema.values import Json, Where


class References:
    """The places of a schema by their references."""

    def __init__(self, root: Json) -> None:
        self._root = root
        own = root.get("$id", root.get("id")) if isinstance(root, dict) else None
        self._base = own.rstrip("#") if isinstance(own, str) else ""
        self._anchors: dict[str, list[Json]] = {}
        self._has_resources = False
        self._index(root, top=True)

    def resolve(self, reference: Json, where: Where) -> Json:
        """The schema that a reference means.

        Raises:
          GrammarError: there is none, or it may lie outside of the schema.
        """
        if not isinstance(reference, str):
            where.wrong("$ref", "a string", reference)
        fragment = self._fragment(reference, where)
        if self._has_resources:
            where.refuse("$ref", "references cannot be held in a schema with `$id` in inner schemas")
        if not fragment or fragment.startswith("/"):
            return self._at_pointer(fragment, reference, where)
        found = self._anchors.get(fragment, [])
        if len(found) != 1:
            where.refuse("$ref", f"there {'are several anchors' if found else 'is no anchor'} {reference!r}")
        return found[0]

    def _fragment(self, reference: str, where: Where) -> str:
        address, _, fragment = reference.partition("#")
        if address and address != self._base:
            where.refuse("$ref", f"{reference[:100]!r} lies outside of the schema; use one that begins with `#`")
        return unquote(fragment)

    def _at_pointer(self, pointer: str, reference: str, where: Where) -> Json:
        found: Any = self._root
        for part in pointer.split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict) and key in found:
                found = found[key]
            elif isinstance(found, list) and key.isascii() and key.isdigit() and int(key[:9]) < len(found):
                found = found[int(key)]
            else:
                where.refuse("$ref", f"there is nothing at {reference[:100]!r}")
        return found

    def _index(self, value: Json, *, top: bool = False) -> None:
        """Collects anchors, and whether inner schemas have addresses of their own."""
        if isinstance(value, list):
            for item in value:
                self._index(item)
        elif isinstance(value, dict):
            for name in ("$anchor", "$dynamicAnchor"):
                if isinstance(anchor := value.get(name), str):
                    self._anchors.setdefault(anchor, []).append(value)
            for name in ("$id", "id"):
                address = value.get(name)
                if isinstance(address, str) and address.startswith("#"):  # draft 7's anchors
                    self._anchors.setdefault(address[1:], []).append(value)
                elif isinstance(address, str) and name == "$id" and not top:
                    self._has_resources = True
            for item in value.values():
                self._index(item)
