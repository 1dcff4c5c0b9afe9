"""A Jinja environment whose templates can neither reach Python's internals nor run for ever.

A chat template comes with the weights and is not trusted. The sandbox keeps it from Python's internals. Jinja has no
`while`, but nested loops, recursive macros and growing strings can still take all time and memory. Therefore

- every loop iteration, macro, call and filter checks the clock (`check_time`; the parse tree is changed to call it),
- every operation that can make a small value huge (`*`, `**`, `%`, `+`, `~`, joining, replacing, padding, JSON) is
  refused before it runs if its result would be larger than `max_text`,
- the text as a whole may not be larger than `max_text` either.

The work of a single operation between two checks of the clock is then bounded by `max_text`.
"""

# ruff: noqa: N802 (Jinja calls visitors by the names of its node classes)

from __future__ import annotations

import functools
import json
import re
import string
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sized
from contextlib import contextmanager
from typing import Any, cast

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError
from jinja2.filters import FILTERS
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from mistral_jax.chat.errors import ChatTemplateError

# The stubs give every filter its own type; here they are functions.
_FILTERS = cast("dict[str, Callable[..., Any]]", FILTERS)
_MAX_ITEMS = 1_000_000
_MAX_BITS = 4096
# Methods whose arguments give the width of the result.
_PADDING = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs"})
# Field widths of five digits and more, and widths given as arguments.
_WIDE_PERCENT = re.compile(r"%[^a-zA-Z%]*(?:\*|\d{5})")
_WIDE_FIELD = re.compile(r"\{|\d{5}")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox with a clock and a limit on sizes. One environment may render in several threads at a time."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, *, max_text: int, clock: Callable[[], float] = time.monotonic, **options: Any) -> None:
        """Makes an environment whose values are at most `max_text` characters (or bytes of JSON) large."""
        super().__init__(**options, finalize=self._finalize)
        self.max_text = max_text
        self._clock = clock
        self._running = threading.local()
        self.globals = {name: self.globals[name] for name in ("range", "cycler", "joiner", "namespace", "dict")}
        replaced = self._bounded_filters()
        self.filters = {
            name: self._timed(replaced.get(name, function)) for name, function in _FILTERS.items() if name != "pprint"
        }
        self.concat = self._concat  # used by the compiled code of macros and blocks

    def compile_bounded(self, tree: nodes.Template) -> Template:
        """Compiles a parse tree, which is modified, to a template that checks the clock."""
        tree = _ClockInserter().visit(tree)
        tree.set_environment(self)
        return Template.from_code(self, self.compile(tree), self.make_globals(None))

    @contextmanager
    def deadline(self, seconds: float) -> Generator[None]:
        """Limits the renderings of this thread in the block to `seconds`."""
        self._running.until = self._clock() + seconds
        self._running.seconds = seconds
        try:
            yield
        finally:
            del self._running.until

    def check_time(self) -> str:
        """An empty string, as long as there is time.

        Raises:
          ChatTemplateError: there is not.
        """
        if self._clock() > getattr(self._running, "until", float("inf")):
            raise ChatTemplateError(
                f"The chat template was stopped after {self._running.seconds:g} seconds. Does it loop over too much, "
                "or was the conversation extremely long?"
            )
        return ""

    def check_size(self, size: int) -> None:
        """Refuses a value of too many characters.

        Raises:
          ChatTemplateError: it is over the limit.
        """
        if size > self.max_text:
            raise ChatTemplateError(
                f"The chat template makes a text of more than {self.max_text:,} characters, and was stopped."
            )

    # Hooks of the sandbox.

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        """Refuses on access what the sandbox would only refuse on use."""
        raise SecurityError(f"access to attribute {attribute!r} of {type(obj).__name__!r} object is unsafe")

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """The sandbox's own `str.format`, for formats without huge field widths."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None and _has_wide_field(value.__self__):
            raise SecurityError("a format with such wide fields is not allowed")
        return wrapped

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Carries out `+ * ** %` unless the result would be huge."""
        self.check_time()
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            self._check_bits(left.bit_length() * abs(right))
        elif operator == "*":
            self._check_product(left, right)
        elif operator == "+" and isinstance(left, Sized) and isinstance(right, Sized):
            self._check_length(left, len(left) + len(right))
        elif operator == "%" and isinstance(left, str):
            self._check_percent(left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Calls a function or method unless its result would be huge."""
        __self.check_time()
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            args = __self._check_method(owner, __obj.__name__, args)
        return super().call(__context, __obj, *args, **kwargs)

    def string_arguments(self, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """A hook for subclasses: the arguments with which a method of a string is called."""
        del name
        return args

    # Sizes.

    def _check_method(self, text: str, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        args = self.string_arguments(name, args)
        if name in _PADDING:
            width = next((a for a in args if isinstance(a, int)), 8)
            self.check_size(len(text) + width * (1 + text.count("\t") if name == "expandtabs" else 1))
        elif name == "replace" and len(args) >= 2:
            self.check_size(len(text) + text.count(args[0]) * len(args[1]))
        elif name == "join" and args:
            parts = self._items(args[0])
            self._check_joined(parts, text)
            args = (parts, *args[1:])
        elif name == "translate":
            raise SecurityError("str.translate is not allowed")
        return args

    def _check_product(self, left: Any, right: Any) -> None:
        if isinstance(left, int) and isinstance(right, int):
            self._check_bits(left.bit_length() + right.bit_length())
        for value, times in ((left, right), (right, left)):
            if isinstance(times, int) and isinstance(value, Sized):
                self._check_length(value, len(value) * times)

    def _check_percent(self, form: str, values: Any) -> None:
        if _WIDE_PERCENT.search(form):
            raise SecurityError("a format with such wide fields is not allowed")
        self.check_size(len(form) + self._measure(values))

    def _check_bits(self, bits: int) -> None:
        if bits > _MAX_BITS:
            raise ChatTemplateError(f"The chat template computes a number of over {_MAX_BITS} bits; it was stopped.")

    def _check_length(self, value: Any, length: int) -> None:
        self.check_size(length if isinstance(value, (str, bytes)) else length * (self.max_text // _MAX_ITEMS))

    def _check_joined(self, parts: list[Any], separator: str) -> None:
        self.check_size(len(separator) * len(parts) + sum(self._measure(part) for part in parts))

    def _items(self, values: Iterable[Any]) -> list[Any]:
        """The items of an iterable, up to the limit and while there is time."""
        items: list[Any] = []
        for item in values:
            items.append(item)
            if len(items) % 1024 == 0:
                self.check_time()
                self._check_length(items, len(items))
        return items

    def _measure(self, value: Any) -> int:
        """Approximate length of a value as text; stops as soon as that is too large.

        A list that contains another twice, which contains another twice, and so on, is small in memory and unbounded as
        text.
        """
        if isinstance(value, str):
            return len(value)
        total, stack = 0, [value]
        while stack:
            item = stack.pop()
            total += len(item) if isinstance(item, str) else 8
            if isinstance(item, dict):
                stack += [*item.keys(), *item.values()]
            elif isinstance(item, (list, tuple, set, frozenset)):
                stack += item
            if len(stack) + total > self.max_text:
                self.check_size(len(stack) + total)
        return total

    def _finalize(self, value: Any) -> Any:
        """Jinja's conversion of each value before it is written."""
        if not isinstance(value, str):
            self._measure(value)
        return value

    def _concat(self, parts: Iterable[str]) -> str:
        listed = self._items(parts)
        self._check_joined(listed, "")
        return "".join(listed)

    def join_text(self, *parts: Any) -> str:
        """What `a ~ b ~ c` does, within the limit."""
        self._check_joined(list(parts), "")
        return "".join(map(str, parts))

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.check_time()
            return function(*args, **kwargs)

        return timed

    def _bounded_filters(self) -> dict[str, Callable[..., Any]]:
        """The filters whose results can be much larger than their inputs, each behind a check."""

        def widths(name: str) -> Callable[..., Any]:
            @functools.wraps(_FILTERS[name])
            def checked(*args: Any, **kwargs: Any) -> Any:
                numbers = [a for a in (*args[1:], *kwargs.values()) if isinstance(a, int)]
                texts = [a for a in args if isinstance(a, str)]
                lines = 1 + texts[0].count("\n") if texts else 1
                self.check_size(sum(map(len, texts)) + lines * max(numbers, default=0))
                return _FILTERS[name](*args, **kwargs)

            return checked

        def replace(value: Any, old: str, new: str, count: int | None = None) -> str:
            text, (old, new) = str(value), self._check_method(str(value), "replace", (old, new))[:2]
            return text.replace(old, new, -1 if count is None else count)

        @functools.wraps(_FILTERS["join"])
        def join(eval_ctx: Any, value: Iterable[Any], d: str = "", attribute: Any = None) -> str:
            items = self._items(value)
            self._check_joined(items, str(d))
            return _FILTERS["join"](eval_ctx, items, d, attribute)

        def form(value: str, *args: Any, **kwargs: Any) -> str:
            self._check_percent(str(value), kwargs or args)
            return _FILTERS["format"](value, *args, **kwargs)

        def as_string(value: Any) -> str:
            return value if isinstance(value, str) else self.join_text(value)

        names = ("center", "indent", "batch", "slice", "round", "wordwrap", "truncate")
        filters = {name: widths(name) for name in names}
        return {
            **filters,
            "replace": replace,
            "join": join,
            "format": form,
            "string": as_string,
            "tojson": self.to_json,
        }

    def to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """JSON as transformers writes it for templates: no HTML escapes, other scripts as they are."""
        if indent is not None and not 0 <= indent <= 16:
            raise SecurityError(f"tojson indents by 0 to 16 spaces, not {indent}")
        encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        pieces: list[str] = []
        size = 0
        for piece in encoder.iterencode(value):
            pieces.append(piece)
            size += len(piece)
            self.check_size(size)
            if len(pieces) % 1024 == 0:
                self.check_time()
        return "".join(pieces)


class _ClockInserter(NodeTransformer):
    """Adds a check of the clock to every loop and macro, and the limit on sizes to `~`."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return self._with_clock(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._with_clock(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return self._with_clock(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _environment_call("join_text", node.nodes).set_lineno(node.lineno)

    def _with_clock(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_environment_call("check_time", [])).set_lineno(node.lineno))
        return node


def _has_wide_field(form: str) -> bool:
    """Whether a format of braces asks for a width of five digits, or takes one from its arguments. In one pass over the
    text."""
    try:
        return any(_WIDE_FIELD.search(spec) for *_, spec, _ in string.Formatter().parse(form) if spec)
    except ValueError:  # no valid format: formatting says so
        return False


def _environment_call(name: str, args: list[nodes.Expr]) -> nodes.Expr:
    return nodes.Call(nodes.EnvironmentAttribute(name), args, [], None, None)
