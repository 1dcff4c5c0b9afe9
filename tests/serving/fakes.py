"""An engine, a tokenizer and a chat format without a model: scripted text, real threads, real events."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mistral_jax.chat.encoding import PromptPieces
from mistral_jax.chat.output.formats import OutputFormat
from mistral_jax.grammar.compiler import GrammarCompiler
from mistral_jax.text.detokenizer import shown_token
from serving.api.service.served_models import ServedModels, plain_models
from serving.api.service.service import AdapterLoader, Service
from serving.engine.clock import SequenceClock
from serving.engine.messages import (
    Deliver,
    EngineState,
    EngineStatus,
    EngineUnavailableError,
    Event,
    FinishReason,
    ModelCard,
    QueueFullError,
    Request,
    SlotStatus,
    TokenLogprob,
    Work,
)

BOS, EOS, OFFSET = 1, 2, 3
"""Token id of byte b is b + OFFSET."""

VOCAB = 256 + OFFSET
HIDDEN = 6
CONTROL = 0xE000
"""In the reply of a `FakeEngine`, `chr(CONTROL + i)` is the control token i."""


class FakeTokenizer:
    """One token for each byte."""

    vocab_size = VOCAB
    bos_id = BOS
    eos_id = EOS
    unk_id = 0
    pad_id = None
    add_bos = True
    control_tokens = {"<unk>": 0, "<s>": BOS, "</s>": EOS}  # noqa: RUF012
    strips_leading_space = False

    def encode(self, text: str, *, at_start: bool = True) -> list[int]:
        return [byte + OFFSET for byte in text.encode()]

    def encode_pieces(self, text: str, *, at_start: bool = True) -> Iterator[list[int]]:
        for start in range(0, len(text), 1000):
            yield self.encode(text[start : start + 1000])

    def least_tokens(self, text: str) -> int:
        return len(text)

    def token_bytes(self, token_id: int) -> bytes:
        return b"" if token_id < OFFSET else bytes([token_id - OFFSET])

    def token_text(self, token_id: int) -> str:
        return repr(self.token_bytes(token_id))

    def decode(self, token_ids: Sequence[int], *, skip_control: bool = True) -> str:
        return b"".join(self.token_bytes(token) for token in token_ids).decode(errors="replace")


class FakeChat:
    """Renders `[role]content` for each message, `(text)` for each document and `{mood=value}` for that variable; `|`
    stands for no generation prompt, `_` for a last message to be continued. Keeps what else it is given.

    Args:
      output: what the model writes besides text.
      knows_tools, variables: see `ChatEncoder`.
      in_reasoning: whether its prompts begin the reasoning.
    """

    def __init__(
        self,
        output: OutputFormat | None = None,
        *,
        knows_tools: bool = True,
        variables: Sequence[str] = ("mood", "documents"),
        in_reasoning: bool = False,
    ) -> None:
        self.output = output or OutputFormat()
        self.knows_tools = knows_tools
        self.variables = frozenset(variables)
        self._in_reasoning = in_reasoning
        self.asked: list[dict[str, Any]] = []
        """The arguments of each call."""

    template = "{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}"

    def encode_pieces(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[dict[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> PromptPieces:
        self.asked.append({"messages": messages, "tools": tools, **kwargs})
        text = self.render(
            messages,
            add_generation_prompt=add_generation_prompt,
            documents=documents,
            continue_final_message=continue_final_message,
            **kwargs,
        )
        tokenizer = FakeTokenizer()
        pieces = itertools.chain([[BOS]], tokenizer.encode_pieces(text))
        return PromptPieces(least=1 + tokenizer.least_tokens(text), pieces=pieces, in_reasoning=self._in_reasoning)

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[dict[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> str:
        if messages[0]["content"] == "raise":
            raise ValueError("conversation roles must alternate")
        text = "".join(f"[{message['role']}]{message['content']}" for message in messages)
        text += "".join(f"({document.get('text')})" for document in documents or ())
        if "mood" in kwargs:
            text += f"{{mood={kwargs['mood']}}}"
        if not add_generation_prompt:
            text += "_" if continue_final_message else "|"
        return text


def prompt_text(request: Request) -> str:
    return FakeTokenizer().decode(request.prompt)


@dataclass
class _Live:
    request: Request
    deliver: Deliver
    reply: bytes
    position: int = 0
    shown: int = 0
    scored: int = 1
    processed: int = 0
    clock: SequenceClock = field(default_factory=SequenceClock)
    pending: list[TokenLogprob] = field(default_factory=list[TokenLogprob])


class FakeEngine:
    """Answers `reply` one byte at a time, one byte of every live request in each round, on a thread of its own.

    Args:
      reply: the text, or a function of the request.
      delay: seconds between rounds.
      slots, queue_limit: as of a real engine; requests beyond the slots wait.
      fail_after: tokens after which a request ends with an error.
      die_after: rounds after which the engine fails as a whole.
      gate: rounds wait until it is set.
    """

    def __init__(
        self,
        reply: str | Callable[[Request], str] = "Hello, wörld! 🙂",
        *,
        delay: float = 0.0,
        slots: int = 8,
        queue_limit: int = 128,
        state: EngineState = EngineState.READY,
        fail_after: int | None = None,
        die_after: int | None = None,
        gate: threading.Event | None = None,
    ) -> None:
        self.reply = reply
        self.delay, self.slot_count, self.queue_limit = delay, slots, queue_limit
        self.fail_after, self.die_after, self.gate = fail_after, die_after, gate
        self.state = state
        self.detail = ""
        self.submitted: list[Request] = []
        self.cancelled: list[str] = []
        self.rounds = self.unloads = 0
        self.shares: tuple[float, ...] = ()
        self._live: dict[str, _Live] = {}
        self._to_cancel: set[str] = set()
        self._wake = threading.Condition()
        self._stop = False
        self._thread = threading.Thread(target=self._run, name="fake-engine", daemon=True)

    def between_rounds[T](self, run: Callable[[Any], T]) -> Future[T]:
        """Runs it at once, on the caller's thread; there is nothing to drive."""
        done: Future[T] = Future()
        try:
            done.set_result(run(None))
        except Exception as error:
            done.set_exception(error)
        return done

    def unload_closed(self) -> None:
        self.unloads += 1

    @property
    def status(self) -> EngineStatus:
        running = min(len(self._live), self.slot_count)
        return EngineStatus(
            state=self.state,
            detail=self.detail,
            running=running,
            waiting=len(self._live) - running,
            slots=self.slot_count,
            queue_limit=self.queue_limit,
            cache_usage=sum(slot.held for slot in self.slots()) / (self.slot_count * CARD.max_model_len),
        )

    def slots(self) -> Sequence[SlotStatus]:
        with self._wake:
            live = list(self._live.values())[: self.slot_count]
        busy = [
            SlotStatus(
                id=slot,
                params=each.request.params,
                prompt_tokens=len(each.request.prompt),
                processed=len(each.request.prompt),
                generated=each.position,
                max_tokens=each.request.params.max_tokens or 0,
                adapters=each.request.adapters,
            )
            for slot, each in enumerate(live)
        ]
        return [*busy, *(SlotStatus(id=slot) for slot in range(len(busy), self.slot_count))]

    @property
    def adapter_shares(self) -> tuple[float, ...]:
        return self.shares

    def start(self) -> None:
        self._thread.start()

    def submit(self, requests: Sequence[Request], deliver: Deliver) -> None:
        with self._wake:
            if self.state is not EngineState.READY:
                raise EngineUnavailableError(f"the engine is {self.state}", state=self.state, retry_after=5)
            if len(self._live) + len(requests) > self.slot_count + self.queue_limit:
                raise QueueFullError("the queue is full", retry_after=3)
            self.submitted += requests
            for request in requests:
                assert request.params.seed is not None
                assert request.params.max_tokens is not None
                reply = self.reply if isinstance(self.reply, str) else self.reply(request)
                self._live[request.request_id] = _Live(request, deliver, reply.encode())
            self._wake.notify()

    def cancel(self, request_id: str) -> None:
        with self._wake:
            if request_id in self._live:
                self._to_cancel.add(request_id)
                self.cancelled.append(request_id)
                self._wake.notify()

    def drain(self, timeout: float) -> None:
        with self._wake:
            if self.state is not EngineState.FAILED:
                self.state = EngineState.DRAINING
        deadline = time.monotonic() + timeout
        while self._live and time.monotonic() < deadline and self._thread.is_alive():
            time.sleep(0.005)
        with self._wake:
            self._to_cancel |= set(self._live)
            self._stop = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(5)
        if self.state is not EngineState.FAILED:
            self.state = EngineState.STOPPED

    @property
    def live(self) -> int:
        return len(self._live)

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._live or self._stop)
                if self._stop and not self._live:
                    return
                news: list[tuple[Deliver, Event]] = []
                for request_id in self._to_cancel & set(self._live):
                    live = self._live.pop(request_id)
                    news.append((live.deliver, Event(request_id=request_id, finish_reason="cancelled")))
                self._to_cancel.clear()
                if self.die_after is not None and self.rounds >= self.die_after:
                    for request_id, live in self._live.items():
                        event = Event(request_id=request_id, finish_reason="error", error="the engine failed")
                        news.append((live.deliver, event))
                    self._live.clear()
                    self.state, self.detail, self._stop = EngineState.FAILED, "RuntimeError: device lost", True
                elif self.gate is None or self.gate.is_set():
                    self.rounds += 1
                    for live in list(self._live.values())[: self.slot_count]:
                        news += [(live.deliver, event) for event in self._timed_step(live)]
            by_receiver: dict[Deliver, list[Event]] = {}
            for deliver, event in news:
                by_receiver.setdefault(deliver, []).append(event)
            for deliver, events in by_receiver.items():
                deliver(events)
            time.sleep(self.delay or 0.0002)

    def _timed_step(self, live: _Live) -> list[Event]:
        if live.clock.admitted is None:
            live.clock.admit()
        events = self._step(live)
        now = time.monotonic()
        if live.position:
            live.clock.token(now)
        return [event.completed(live.clock.times(now), 0) for event in events]

    def _step(self, live: _Live) -> list[Event]:
        request_id, params = live.request.request_id, live.request.params
        if live.request.progress and live.processed < len(live.request.prompt) - 1:
            live.processed = min(live.processed + PREFILLED_AT_ONCE, len(live.request.prompt) - 1)
            return [Event(request_id=request_id, prompt_processed=live.processed)]
        if self.fail_after is not None and live.position >= self.fail_after:
            del self._live[request_id]
            return [Event(request_id=request_id, finish_reason="error", error="NaN in /opt/model/weights.bin")]
        prompt = live.request.prompt
        if live.request.work is Work.SCORE and live.scored < len(prompt):
            part = prompt[live.scored : live.scored + SCORED_AT_ONCE]
            live.scored += len(part)
            told = tuple(prompt_logprob(token, live.request.prompt_logprobs) for token in part)
            return [Event(request_id=request_id, prompt_logprobs=told)]
        if live.request.work is Work.EMBED:
            del self._live[request_id]
            return [Event(request_id=request_id, finish_reason="stop", embedding=fake_vector(live.request))]
        if params.max_tokens == 0:
            del self._live[request_id]
            return [Event(request_id=request_id, finish_reason="length")]
        reason: FinishReason | None = None
        logprobs: tuple[TokenLogprob, ...] = ()
        token = live.reply[live.position] + OFFSET if live.position < len(live.reply) else EOS
        if live.position < len(live.reply):
            live.pending.append(token_logprob(live.reply[live.position], params.logprobs or 0))
            live.position += 1
            assert params.max_tokens is not None
            if live.position >= params.max_tokens:
                reason = "length"
        else:
            live.position += 1
            reason = "stop"
        so_far = live.reply[: live.position].decode(errors="ignore" if reason is None else "replace")
        stop_string = next((stop for stop in params.stop if stop in so_far), None)
        if stop_string is not None:
            so_far, reason = so_far[: so_far.index(stop_string)], "stop"
        held = max((len(stop) - 1 for stop in params.stop), default=0) if reason is None else 0
        shown = so_far[: max(live.shown, len(so_far) - held)]
        text = shown[live.shown :]
        live.shown = max(live.shown, len(shown))
        if text or reason:
            logprobs, live.pending = tuple(live.pending), []
        if reason is not None:
            del self._live[request_id]
        return [
            Event(
                request_id=request_id,
                text=text,
                items=self._items(live.request, text),
                logprobs=logprobs if params.logprobs is not None else (),
                completion_tokens=live.position,
                finish_reason=reason,
                token_ids=(token,) if live.request.token_ids else (),
                stop_reason=stop_string,
                mean_logprob=-0.5 - live.reply.count(b"?") if reason and params.logprobs is not None else None,
            )
        ]

    @staticmethod
    def _items(request: Request, text: str) -> tuple[str | int, ...]:
        """A reported token stands in the reply as the character of `control`."""
        if not request.reported_tokens:
            return ()
        items: list[str | int] = []
        for character in text:
            token = ord(character) - CONTROL
            if token in request.reported_tokens:
                items.append(token)
            elif items and isinstance(items[-1], str):
                items[-1] += character
            else:
                items.append(character)
        return tuple(items)


def fake_vector(request: Request) -> np.ndarray:
    """float32 [HIDDEN], not of length one: of the first and the last token, the pooling, and the adapters."""
    values = [request.prompt[0], request.prompt[-1], len(request.prompt), request.pooling == "last"]
    return np.array([*values, *(weight for _, weight in request.choice.weights[:1]), *[0] * HIDDEN], np.float32)[
        :HIDDEN
    ]


SCORED_AT_ONCE = 3
PREFILLED_AT_ONCE = 16


def prompt_logprob(token: int, top: int) -> TokenLogprob:
    """A token's log-probability is minus its number, its rank the number itself."""
    raw, text = shown_token(FakeTokenizer(), token)
    others = tuple(
        TokenLogprob(
            token=rank + OFFSET, text=chr(65 + rank), raw=bytes([65 + rank]), logprob=-0.25 - rank, rank=rank + 1
        )
        for rank in range(top)
    )
    return TokenLogprob(token=token, text=text, raw=raw, logprob=-float(token), top=others, rank=token)


def token_logprob(byte: int, top: int) -> TokenLogprob:
    raw = bytes([byte])
    others = tuple(
        TokenLogprob(token=rank + OFFSET, text=chr(65 + rank), raw=bytes([65 + rank]), logprob=-1.0 - rank)
        for rank in range(top)
    )
    return TokenLogprob(token=byte + OFFSET, text=raw.decode(errors="replace"), raw=raw, logprob=-0.5, top=others)


MODEL_ID = "acme/tiny-mistral"
CARD = ModelCard(
    max_model_len=256,
    vocab_size=VOCAB,
    hidden_size=HIDDEN,
    fingerprint="b1-fake",
    defaults={"temperature": 0.25, "top_k": 7.0},
    eos_ids=frozenset({EOS}),
)


def fake_service(
    engine: FakeEngine | None = None,
    *,
    card: ModelCard = CARD,
    chat: bool | FakeChat = True,
    models: ServedModels | None = None,
    loader: AdapterLoader | None = None,
) -> Service:
    return Service(
        engine=engine or FakeEngine(),
        card=card,
        models=models or plain_models(MODEL_ID, created=1_700_000_000),
        tokenizer=FakeTokenizer(),
        grammars=GrammarCompiler(FakeTokenizer(), vocab_size=card.vocab_size, eos_ids=card.eos_ids),
        chat=(FakeChat() if chat is True else chat) or None,
        loader=loader,
    )
