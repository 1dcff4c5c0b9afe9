"""The bounds on the work of grammars, which come from strangers.

Llguidance counts its own work, in lexer states and in items of its parser, and stops at a limit; within the limits here
a mask takes some milliseconds at most. What it does not count is bounded before it sees a grammar: sizes, nesting,
numbers of rules, intersections of expressions (the work doubles with each). It goes through definitions recursively,
so grammars are compiled in threads with much stack: the largest that pass the limits need less than 16 MiB. Masks need
less than half a MiB.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from llguidance import LLParserLimits

from mistral_jax.grammar.grammar import GrammarError

MAX_CHOICES = 2_000
"""Texts of a `choice`."""

MAX_CHOICE_BYTES = 65_536
"""Bytes of all texts of a `choice` together."""

TIME_LIMIT = 10.0
"""Seconds to compile a grammar; the slowest that pass the other limits take about a second on an idle core."""

STACK = 128 << 20
"""Bytes of address space for the stack of a thread that compiles. Memory is used as far as the stack grows."""

MAX_COMPILING = 2
"""Grammars that are compiled at once."""

PARSER_LIMITS: Final = LLParserLimits(
    max_items_in_row=2_000,
    initial_lexer_fuel=400_000,
    step_lexer_fuel=60_000,
    step_max_items=20_000,
    max_lexer_states=50_000,
    max_grammar_size=200_000,
    verbose_errors=False,
)
"""Llguidance's own counts, a half to a fifth of its defaults, and twice what the masks of ordinary schemas need."""

_slots = threading.BoundedSemaphore(MAX_COMPILING)
_stack_size = threading.Lock()


def with_stack[T](work: Callable[[], T]) -> T:
    """Runs some work in a thread with much stack, and waits for it, but not longer than the time limit.

    Raises:
      GrammarError: it takes too long, or others do. It then goes on alone, and keeps its place among those that run.
      Exception: what the work raises.
    """
    if not _slots.acquire(timeout=TIME_LIMIT):
        raise GrammarError("The server is busy with other grammars. Try again later.")
    results, errors = list[T](), list[BaseException]()

    def run() -> None:
        try:
            results.append(work())
        except RecursionError:
            errors.append(GrammarError("The grammar is nested too deeply."))
        except BaseException as error:
            errors.append(error)
        finally:
            _slots.release()

    with _stack_size:  # the size is a setting of the process, for all threads that start now
        before = threading.stack_size(STACK)
        try:
            thread = threading.Thread(target=run, name="grammar", daemon=True)
            thread.start()
        except BaseException:
            _slots.release()
            raise
        finally:
            threading.stack_size(before)
    thread.join(TIME_LIMIT)
    if thread.is_alive():
        raise GrammarError(f"The grammar takes longer than {TIME_LIMIT:g} seconds to compile. Simplify it.")
    if errors:
        raise errors[0]
    return results[0]
