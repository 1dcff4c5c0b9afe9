"""Which control tokens of a rendered prompt the template itself wrote.

A template and a user may both write `[INST]`; in the rendered text they look the same. So the control tokens in the
template's own literals are marked before it is compiled: each is put between two copies of a mark, six random
characters from a private plane of Unicode that are unknown outside this process. After rendering, text between marks is
a control token, and everything else is plain text: nothing that a caller sends is changed, searched or escaped, and
nothing that a caller sends can become a control token.

A token that a template builds from several pieces (`'<|' + role + '|>'`) is not recognised; the templates of Mistral's
models do not.
"""

# ruff: noqa: N802 (Jinja calls visitors by the names of its node classes)

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

from jinja2 import nodes
from jinja2.visitor import NodeTransformer

# Filters and functions whose arguments are searched for or names, never output.
_LOOKING = frozenset(
    {"select", "reject", "selectattr", "rejectattr", "sort", "groupby", "map", "trim", "unique", "attr"}
)


@dataclass(frozen=True, slots=True)
class ControlToken:
    """A control token in a prompt."""

    text: str
    id: int


class ControlMarks:
    """Marks control tokens in a template's text and finds them again in what it renders."""

    def __init__(self, control_tokens: Mapping[str, int], *, mark: str | None = None) -> None:
        """Draws a new mark for these control tokens, by their texts, unless one is given."""
        self._ids = {text: i for text, i in control_tokens.items() if text}
        self._mark = mark or "".join(chr(0xF0000 + secrets.randbelow(0xFFFE)) for _ in range(6))
        # Longest first, as tokenizers match them.
        self._pattern = "|".join(re.escape(text) for text in sorted(self._ids, key=len, reverse=True)) or "(?!)"

    @property
    def secret(self) -> str:
        """The mark, for the rendering process."""
        return self._mark

    @property
    def texts(self) -> tuple[str, ...]:
        """The control tokens."""
        return tuple(self._ids)

    @cached_property
    def _plain(self) -> re.Pattern[str]:
        return re.compile(self._pattern)

    @cached_property
    def _marked(self) -> re.Pattern[str]:
        return re.compile(f"{self._mark}({self._pattern}){self._mark}")

    def mark(self, text: str) -> str:
        """The text with each control token in it marked."""
        return self._plain.sub(lambda match: self._mark + match[0] + self._mark, text)

    def unmark(self, text: str) -> str:
        """The text without marks, for display."""
        return text.replace(self._mark, "")

    def split(self, rendered: str) -> list[str | ControlToken]:
        """Rendered text as its control tokens and the texts between them, none of them empty."""
        segments: list[str | ControlToken] = []
        end = 0
        # One match at a time, so that other threads can run between two of them.
        for match in self._marked.finditer(rendered):
            if text := self.unmark(rendered[end : match.start()]):
                segments.append(text)
            segments.append(ControlToken(match[1], self._ids[match[1]]))
            end = match.end()
        if text := self.unmark(rendered[end:]):
            segments.append(text)
        return segments

    def mark_template(self, tree: nodes.Template) -> nodes.Template:
        """Marks the control tokens in all literals that a template may write; changes the tree."""
        return cast("nodes.Template", _LiteralMarker(self).visit(tree))


class _LiteralMarker(NodeTransformer):
    """Marks literals, except where they are compared with a value or searched for in one."""

    def __init__(self, marks: ControlMarks) -> None:
        self._marks = marks

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
        node.data = self._marks.mark(node.data)
        return node

    def visit_Const(self, node: nodes.Const) -> nodes.Node:
        if isinstance(node.value, str):
            node.value = self._marks.mark(node.value)
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        return node

    def visit_Test(self, node: nodes.Test) -> nodes.Node:
        return node

    def visit_If(self, node: nodes.If) -> nodes.Node:
        return self._visit_fields(node, "body", "elif_", "else_")

    def visit_CondExpr(self, node: nodes.CondExpr) -> nodes.Node:
        return self._visit_fields(node, "expr1", "expr2")

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        return self._visit_fields(node, "node")

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:
        return self._visit_fields(node, "value")

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:
        return self._visit_fields(node, "node") if node.name in _LOOKING else self.generic_visit(node)

    def _visit_fields(self, node: nodes.Node, *names: str) -> nodes.Node:
        for name in names:
            value: Any = getattr(node, name)
            if isinstance(value, list):
                setattr(node, name, [self.visit(item) for item in cast("list[nodes.Node]", value)])
            elif value is not None:
                setattr(node, name, self.visit(value))
        return node
