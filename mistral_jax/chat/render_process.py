"""Chat templates are compiled and rendered in processes of their own.

A template comes with the weights and is not trusted. The sandbox (`limits`) keeps it from Python's internals and checks
the clock, but it only covers the known ways to waste time and memory, and one long call of C code holds the
interpreter, and with it all other requests. So templates run in a process that can be killed: the system bounds its
memory, and a watch ends it when its time is over. The next template gets a new process.

    ChatFormatter ──request──▶ pipe ──▶ render_child: compile, render (in the sandbox)
                  ◀──text────  pipe ◀──

A process serves all templates, caches compiled ones, and is reused: a rendering costs some tenths of a millisecond more
than in this process. There are at most two. They get no environment variables but a few, no open files or sockets, and
end with their standard input, so that none is left behind even if this process is killed.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import jinja2
import markupsafe
import psutil

from mistral_jax.chat import render_child
from mistral_jax.chat.errors import ChatTemplateError, ConversationError
from mistral_jax.chat.render_child import DONE, EXHAUSTED, FAILED, REFUSED, request_bytes
from mistral_jax.chat.trusted import ControlMarks

MEMORY = 1 << 30
"""Bytes that a process may take: the longest conversation, at four bytes a character, is in memory several times at
once."""

MAX_SOURCE = 1_000_000
"""Most characters of a template; the longest that are in use have some tens of thousands."""

MAX_PROCESSES = 2
START_TIME = 30.0
"""Seconds for a process to start, which takes a sixth of a second on an idle machine."""

GRACE = 0.25
"""Seconds after the sandbox's own time limit at which a process is killed. One that still checks the clock survives."""

_MAX_TEMPLATES = 64
_WATCH_INTERVAL = 0.05
_PIPE_BYTES = 1 << 20
_KEPT_VARIABLES = ("TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")
_START = (
    "import sys; sys.path += sys.argv[3:]; import importlib; "
    "importlib.import_module(sys.argv[1]).main(int(sys.argv[2]))"
)

_keys = itertools.count()

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


class IsolatedTemplate:
    """A template that is compiled and rendered in another process. Safe to use from several threads."""

    def __init__(self, source: str, marks: ControlMarks, *, max_text: int, time_limit: float) -> None:
        """Compiles a template.

        Args:
          source: The template.
          marks: Marks the control tokens in the template's own text.
          max_text: Most characters that a rendering may have.
          time_limit: Most seconds that compiling, and each rendering, may take.

        Raises:
          ChatTemplateError: the source is not a valid template, or the process cannot be started.
        """
        if len(source) > MAX_SOURCE:
            raise ChatTemplateError(
                f"The chat template has {len(source):,} characters; one of at most {MAX_SOURCE:,} was expected. "
                "Give another with --chat-template."
            )
        self._key: Final = next(_keys)
        self._max_bytes = 4 * max_text + 4 * render_child.LONGEST_MESSAGE
        self._time_limit = time_limit
        texts = tuple(marks.texts)
        self._compile = request_bytes("compile", self._key, source, marks.secret, texts, max_text, time_limit)
        flags = _pool.ask(self, None)
        self.reads_parts, self.reads_strings = flags[:1] == "1", flags[1:2] == "1"
        """Whether the template reads message contents as lists of parts, and whether it reads them as strings."""
        self.names: Final = frozenset(flags[2:].split())
        """Names of the variables, attributes and items that the template reads, such as `tools` and `tool_calls`."""

    def render(self, variables: Mapping[str, Any]) -> str:
        """The prompt with marked control tokens.

        Args:
          variables: Plain values, as `mistral_jax.chat.messages.plain` makes them.

        Raises:
          ConversationError: the template refuses the conversation with `raise_exception`, or it is nested too deeply.
          ChatTemplateError: the template fails, or exceeds its limits.
        """
        try:
            request = request_bytes("render", self._key, dict(variables))
        except ValueError as error:
            raise ConversationError("The conversation is nested too deeply.") from error
        return _pool.ask(self, request)

    def ask(self, process: RenderProcess, request: bytes | None) -> str:
        """Sends a request to a process, which compiles the template first if it has not yet.

        Raises:
          ChatTemplateError: see `render`.
        """
        flags = ""
        if self._key not in process.known:
            flags = process.ask(
                self._compile, seconds=START_TIME + self._time_limit, limit=self._time_limit, most=100_000
            )
            process.known.add(self._key)
        if request is None:
            return flags
        return process.ask(request, seconds=self._time_limit + GRACE, limit=self._time_limit, most=self._max_bytes)


class RenderProcess:
    """One process. Used by one thread at a time."""

    def __init__(self) -> None:
        """Starts it, and does not wait.

        Raises:
          ChatTemplateError: it cannot be started.
        """
        homes = {Path(module.__file__ or "").parents[1] for module in (jinja2, markupsafe)}
        # This module's package and its requirements: nothing else can be imported.
        own = Path(__file__).parents[__name__.count(".")]
        command = [sys.executable, "-I", "-S", "-c", _START, render_child.__name__, str(MEMORY)]
        self.known: set[int] = set()
        """Keys of the templates that it has compiled."""
        try:
            self._process = subprocess.Popen(
                [*command, str(own), *map(str, homes)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ},
                cwd=os.sep,
                start_new_session=True,  # a Ctrl-C in the terminal does not concern it
            )
            _widen(self._process)
        except OSError as error:
            raise ChatTemplateError(
                f"The process that renders chat templates cannot be started with {sys.executable!r}: "
                f"{error.strerror or error}."
            ) from error

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, request: bytes, *, seconds: float, limit: float, most: int) -> str:
        """Sends a request and waits for its reply; ends the process if it takes too long.

        Args:
          seconds: to wait at most.
          limit: the time limit that an error names.
          most: bytes that a reply may have.

        Raises:
          ChatTemplateError: the template fails or was stopped.
        """
        with _Watch(self._process, seconds) as watch:
            try:
                kind, data = self._exchange(request, most)
            except BaseException:
                self.close()  # what is still in the pipe would be taken for the next reply
                raise
        if kind == DONE:
            return data.decode("utf-8", "surrogatepass")
        if kind == REFUSED:
            raise ConversationError(data.decode("utf-8", "replace"))
        if kind == FAILED:
            raise ChatTemplateError(data.decode("utf-8", "replace"))
        self.close()
        if kind == EXHAUSTED:
            raise ChatTemplateError(f"The chat template takes more than {MEMORY >> 20} MiB of memory, and was stopped.")
        raise ChatTemplateError(watch.reason(limit, self._process.returncode))

    def close(self) -> None:
        """Ends the process. Safe to call more than once."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # it had output left to write
                    pipe.close()

    def _exchange(self, request: bytes, most: int) -> tuple[bytes, bytes]:
        """Kind and data of the reply; an empty kind: the process has ended, or broke the protocol."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(request)
            stdin.flush()
        except OSError:
            return b"", b""
        head = stdout.read(9)
        size = int.from_bytes(head[1:], "little")
        if len(head) < 9 or size > most:
            return b"", b""
        data = stdout.read(size)
        return (head[:1], data) if len(data) == size else (b"", b"")


def _widen(process: subprocess.Popen[bytes]) -> None:
    """Enlarges the pipe beyond the usual 64 KiB where the system can: a long text takes a fifth of the time."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None and fcntl is not None and hasattr(fcntl, "F_SETPIPE_SZ"):
            with contextlib.suppress(OSError):
                fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


class _Watch:
    """Ends a process that works for too long, or takes too much memory where the system does not enforce the limit."""

    def __init__(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        self._process = process
        self._until = time.monotonic() + seconds
        self._done = threading.Event()
        self._too_long = self._too_large = False
        self._thread = threading.Thread(target=self._run, name="chat template", daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def reason(self, limit: float, status: int | None) -> str:
        """Why the process has ended, as an error message."""
        if self._too_large:
            return f"The chat template takes more than {MEMORY >> 20} MiB of memory, and was stopped."
        if self._too_long or status == -getattr(signal, "SIGXCPU", 0):
            return (
                f"The chat template was stopped after {limit:g} seconds. Does it loop over too much, "
                "or was the conversation extremely long?"
            )
        return f"The chat template was stopped: the process that renders it crashed (status {status})."

    def _run(self) -> None:
        while not self._done.wait(_WATCH_INTERVAL):
            self._too_long = time.monotonic() > self._until
            self._too_large = _memory(self._process.pid) > MEMORY
            if self._too_long or self._too_large:
                self._process.kill()
                return


def _memory(pid: int) -> int:
    try:
        return psutil.Process(pid).memory_info().rss
    except psutil.Error:  # it has ended
        return 0


class _Pool:
    """The processes, shared by all templates."""

    def __init__(self) -> None:
        self._change = threading.Condition()
        self._idle: list[RenderProcess] = []
        self._busy: set[RenderProcess] = set()

    def ask(self, template: IsolatedTemplate, request: bytes | None) -> str:
        process = self._take()
        try:
            return template.ask(process, request)
        finally:
            self._give_back(process)

    def close(self) -> None:
        """Ends all processes. The next request starts a new one."""
        with self._change:
            ended = [*self._idle, *self._busy]
            self._idle.clear()
        for process in ended:
            process.close()

    def forget(self) -> None:
        """After a fork: leaves the processes to the parent."""
        self.__init__()

    @property
    def pids(self) -> list[int]:
        with self._change:
            return [process.pid for process in (*self._idle, *self._busy)]

    def _take(self) -> RenderProcess:
        with self._change:
            while True:
                while self._idle:
                    process = self._idle.pop()
                    if process.alive:
                        break
                    process.close()
                else:
                    if len(self._busy) >= MAX_PROCESSES:
                        self._change.wait()
                        continue
                    process = RenderProcess()
                self._busy.add(process)
                return process

    def _give_back(self, process: RenderProcess) -> None:
        with self._change:
            self._busy.discard(process)
            if process.alive and len(process.known) < _MAX_TEMPLATES:
                self._idle.append(process)
            else:
                process.close()
            self._change.notify()


_pool = _Pool()
atexit.register(_pool.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.forget)


def process_ids() -> list[int]:
    """The processes that render templates now."""
    return _pool.pids
