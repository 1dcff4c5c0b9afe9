"""One compiled chat template, in the dialect that transformers defines."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser

from mistral_jax.chat.errors import ChatTemplateError, ConversationError
from mistral_jax.chat.limits import BoundedEnvironment
from mistral_jax.chat.trusted import ControlMarks

_SEARCHES = frozenset(
    {
        *("split", "rsplit", "startswith", "endswith", "find", "rfind", "index", "rindex", "count"),
        *("strip", "lstrip", "rstrip", "removeprefix", "removesuffix", "partition", "rpartition"),
    }
)

_LONGEST_NAME, _MOST_NAMES = 40, 1000


class ChatTemplate:
    """Jinja source, compiled once, rendered for each conversation."""

    def __init__(self, source: str, marks: ControlMarks, *, max_text: int, time_limit: float) -> None:
        """Compiles a template.

        Args:
          source: The template.
          marks: Marks the control tokens in the template's own text.
          max_text: Most characters that a rendering may have.
          time_limit: Most seconds that a rendering may take.

        Raises:
          ChatTemplateError: the source is not a valid template.
        """
        self._marks = marks
        self._time_limit = time_limit
        self._environment = _TemplateEnvironment(marks, max_text)
        try:
            tree = self._environment.parse(source)
            self.reads_parts, self.reads_strings = _content_forms(tree)
            self.names = _names_read(tree)
            self._template = self._environment.compile_bounded(marks.mark_template(tree))
        except jinja2.TemplateSyntaxError as error:
            raise ChatTemplateError(
                f"The chat template is broken in line {error.lineno}: {error.message}. "
                "Give another with --chat-template."
            ) from error
        except RecursionError as error:
            raise ChatTemplateError("The chat template is nested too deeply.") from error

    def render(self, variables: Mapping[str, Any]) -> str:
        """The prompt with marked control tokens.

        Raises:
          ConversationError: the template refuses the conversation with `raise_exception`.
          ChatTemplateError: the template fails, or exceeds its limits.
        """
        pieces: list[str] = []
        size = 0
        try:
            with self._environment.deadline(self._time_limit):
                for piece in self._template.generate(**variables):
                    size += len(piece)
                    self._environment.check_size(size)
                    pieces.append(piece)
        except ChatTemplateError:
            raise
        except SecurityError as error:
            raise ChatTemplateError(f"The chat template does something that is not allowed: {error}.") from error
        except (RecursionError, MemoryError) as error:
            raise ChatTemplateError(f"The chat template was stopped: {type(error).__name__}.") from error
        except Exception as error:  # a template is a program and may raise anything
            reason = self._marks.unmark(f"{type(error).__name__}: {error}")
            raise ChatTemplateError(
                f"The chat template failed on this conversation ({reason}). Either the template is broken or it "
                "expects messages of another form."
            ) from error
        return "".join(pieces)


class _TemplateEnvironment(BoundedEnvironment):
    """Adds what chat templates rely on: `{% generation %}`, `raise_exception`, `strftime_now`."""

    def __init__(self, marks: ControlMarks, max_text: int) -> None:
        extensions = [_GenerationTag, "jinja2.ext.loopcontrols"]
        super().__init__(max_text=max_text, trim_blocks=True, lstrip_blocks=True, extensions=extensions)
        self._marks = marks
        self.globals |= {"raise_exception": self._raise_exception, "strftime_now": _strftime_now}

    def string_arguments(self, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Strings that a template searches for in a user's text have no marks."""
        if name in _SEARCHES:
            return tuple(self._unmark(arg) for arg in args)
        return (self._unmark(args[0]), *args[1:]) if name == "replace" and args else args

    def _raise_exception(self, message: object = "") -> str:
        raise ConversationError(self._marks.unmark(str(message)))

    def _unmark(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(self._unmark(item) for item in value)
        return self._marks.unmark(value) if isinstance(value, str) else value


class _GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's text for training; here it is just its content."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        """Reads the block."""
        lineno = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=lineno)


def _strftime_now(form: str) -> str:
    if len(form) > 200 or re.search(r"\d{3}", form):
        raise ChatTemplateError("The chat template asks for a date of unreasonable length.")
    return datetime.datetime.now().astimezone().strftime(form)


def _names_read(tree: nodes.Template) -> tuple[str, ...]:
    """Names of the variables, attributes and items that a template reads, such as `tools` and `tool_calls`."""
    names = {name.name for name in tree.find_all(nodes.Name) if name.ctx == "load"}
    names |= {node.attr for node in tree.find_all(nodes.Getattr)}
    keys: list[nodes.Node] = [node.arg for node in tree.find_all(nodes.Getitem)]
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Getattr) and call.node.attr == "get":
            keys += call.args[:1]
    names |= {key.value for key in keys if isinstance(key, nodes.Const) and isinstance(key.value, str)}
    known = sorted(name for name in names if name.isidentifier() and len(name) <= _LONGEST_NAME)
    return tuple(known[:_MOST_NAMES])


def _content_forms(tree: nodes.Template) -> tuple[bool, bool]:
    """Whether a template reads message contents as lists of parts, and whether it reads them as strings.

    A template that loops over something called content reads parts; unless it also tests whether that is a string (or a
    list), it cannot read strings.
    """
    loops = any(_is_content(loop.iter) for loop in tree.find_all(nodes.For))
    tests = {"string", "iterable", "sequence", "mapping"}
    asks = any(test.name in tests and _is_content(test.node) for test in tree.find_all(nodes.Test))
    return loops, asks or not loops


def _is_content(node: nodes.Node) -> bool:
    while isinstance(node, (nodes.Filter, nodes.Getitem, nodes.Getattr)) and node.node is not None:
        if isinstance(node, nodes.Getattr) and node.attr == "content":
            return True
        if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and node.arg.value == "content":
            return True
        node = node.node
    return isinstance(node, nodes.Name) and node.name == "content"
