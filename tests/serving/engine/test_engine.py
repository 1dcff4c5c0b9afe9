"""The real engine over a tiny random model: what a request gets, alone and in company."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mistral_jax.model.config import MistralConfig
from mistral_jax.model.kv_cache import own_blocks
from mistral_jax.model.mistral import Mistral
from mistral_jax.quant.array import padded
from mistral_jax.runtime import decode_loop
from mistral_jax.runtime.buckets import cache_sizes
from mistral_jax.runtime.runner import Runner
from mistral_jax.runtime.sampling.params import SamplingParams, TokenRules
from mistral_jax.runtime.step import SEVERAL
from mistral_jax.text.token_rules import with_token_rules
from serving.engine.engine import JaxEngine
from serving.engine.messages import EngineState, EngineUnavailableError, Event, QueueFullError, Request
from tests.serving.fakes import EOS, VOCAB, FakeTokenizer
from tests.serving.harness import wait_until_ready

SLOTS, LENGTH = 8, 256

CONFIG = MistralConfig(
    vocab_size=VOCAB,
    hidden_size=60,
    intermediate_size=72,
    num_layers=2,
    num_heads=6,
    num_kv_heads=2,
    head_dim=20,
    max_position_embeddings=LENGTH,
    layer_windows=(48, None),
)


def make_runner() -> Runner:
    model = Mistral(CONFIG, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    sizes: Any = {"slots": SLOTS, "length": LENGTH, "chunks": (4, 16)}
    return Runner(model, **sizes, repeat_last_n=16, cache_blocks=own_blocks(CONFIG, **cache_sizes(**sizes)))


def make_engine(runner: Runner, *, queue_limit: int = 256, warm_up: bool = True) -> JaxEngine:
    return JaxEngine(
        load=lambda report: runner,
        tokenizer=FakeTokenizer(),
        eos_ids={EOS},
        slots=runner.slots,
        queue_limit=queue_limit,
        warm_up=warm_up,
    )


def wait_for(condition, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.005)


class Inbox:
    """Collects the events of requests; thread-safe."""

    def __init__(self) -> None:
        self._events: queue.Queue[Event] = queue.Queue()

    def deliver(self, events: Sequence[Event]) -> None:
        for event in events:
            self._events.put(event)

    def until_all_end(self, ids: Sequence[str]) -> dict[str, list[Event]]:
        """The events of each request up to its last one."""
        got: dict[str, list[Event]] = {request_id: [] for request_id in ids}
        open_ = set(ids)
        while open_:
            event = self._events.get(timeout=30)
            assert event.request_id in open_, "an event after the last one"
            got[event.request_id].append(event)
            if event.finish_reason is not None:
                open_.remove(event.request_id)
        return got


@pytest.fixture(scope="module")
def runner() -> Runner:
    return make_runner()


@pytest.fixture(scope="module")
def engine(runner: Runner) -> Iterator[JaxEngine]:
    engine = make_engine(runner)
    engine.start()
    wait_until_ready(engine)
    yield engine
    engine.drain(0)
    assert engine.status.state is EngineState.STOPPED


def request(name: str, length: int = 10, **params) -> Request:
    rng = np.random.default_rng(sum(name.encode()) + length)
    prompt = tuple(rng.integers(3, VOCAB, length).tolist())
    chosen = {"seed": length, "max_tokens": 12, "ignore_eos": True, **params}
    return Request(request_id=name, prompt=prompt, params=SamplingParams(**chosen))


def run(engine: JaxEngine, *requests: Request) -> dict[str, list[Event]]:
    inbox = Inbox()
    for each in requests:
        engine.submit([each], inbox.deliver)
    return inbox.until_all_end([each.request_id for each in requests])


def answer(events: list[Event]) -> tuple[str, tuple]:
    """The text, and every token with its log-probabilities, to the last bit."""
    return "".join(e.text for e in events), tuple(entry for e in events for entry in e.logprobs)


def note_compilations() -> list[str]:
    """Gets an entry for each compilation from now on."""
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration, **kwargs: compiled.append(event) if "backend_compile" in event else None
    )
    return compiled


def ruled(asked: Request, **params) -> Request:
    """The same request with other parameters, and with what they mean in tokens."""
    changed = replace(asked.params, **params)
    return replace(asked, params=with_token_rules(changed, FakeTokenizer(), {EOS}))


def mixed_requests(count: int) -> list[Request]:
    """Greedy and sampled, short and long, with and without penalties, all asking for log-probabilities."""
    kinds = [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 0.9, "top_k": 20, "top_p": 0.8, "min_p": 0.01},
        {"temperature": 0.7, "repetition_penalty": 1.3, "presence_penalty": 0.5, "logit_bias": {65: 2.5}},
        {"typical_p": 0.9, "top_n_sigma": 3.0, "xtc_probability": 0.5, "xtc_threshold": 0.004},
        {
            "dry_multiplier": 3.0,
            "dry_allowed_length": 1,
            "min_tokens": 3,
            "bad_words": ("A", "BC"),
            "ignore_eos": False,
        },
    ]
    return [
        ruled(request(f"r{i}", length=1 + (i * 7) % 60, logprobs=i % 4, max_tokens=6 + i % 9, **kinds[i % 6]))
        for i in range(count)
    ]


def test_control_tokens_are_reported_to_the_requests_that_want_them(engine: JaxEngine):
    """They have no text: without the report there is no event for them."""
    bias = {0: 100.0}
    wants = replace(request("wants", logit_bias=bias, max_tokens=3), reported_tokens=frozenset({0}))
    got = run(engine, wants, request("not", logit_bias=bias, max_tokens=3))
    assert [event.items for event in got["wants"]] == [(0,)] * 3
    assert [event.completion_tokens for event in got["wants"]] == [1, 2, 3]
    assert [event.items for event in got["not"]] == [()]
    assert {event.text for events in got.values() for event in events} == {""}


def test_a_request_has_the_same_bits_alone_and_beside_fifteen_others(engine: JaxEngine):
    requests = mixed_requests(16)
    alone = {r.request_id: answer(run(engine, r)[r.request_id]) for r in requests}
    for _ in range(3):
        together = run(engine, *requests)
        assert {name: answer(events) for name, events in together.items()} == alone


class RunnerOfSeveral(Runner):
    """With programs of several decode steps, which a GPU has."""

    @property
    def several_buckets(self) -> tuple[int, ...]:
        return self.buckets.rows


def test_requests_get_the_same_events_by_several_steps_at_once(engine: JaxEngine, monkeypatch: pytest.MonkeyPatch):
    requests = mixed_requests(12)
    requests[7] = replace(requests[7], params=replace(requests[7].params, stop=("e", "A")))
    requests[8] = ruled(replace(requests[8], logprob_of_end=True), ignore_eos=False, logit_bias={EOS: 5.0})
    expected = {r.request_id: answer(run(engine, r)[r.request_id]) for r in requests}
    model = Mistral(CONFIG, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    runner = RunnerOfSeveral(model, slots=SLOTS, length=LENGTH, chunks=(4, 16), repeat_last_n=16)
    counted: list[int] = []
    several = runner.several

    def count(state, active, counts, *args, **options):
        counted.extend(counts)
        return several(state, active, counts, *args, **options)

    monkeypatch.setattr(runner, "several", count)
    monkeypatch.setattr(decode_loop, "LONGEST_OF_SEVERAL", 10.0)
    other = make_engine(runner)
    other.start()
    wait_until_ready(other)
    compiled = note_compilations()
    found = {r.request_id: run(other, r)[r.request_id] for r in requests}
    together = run(other, *requests[:6])
    assert compiled == []
    other.drain(5)
    assert {name: answer(events) for name, events in found.items()} == expected
    assert {name: answer(events) for name, events in together.items()} == dict(list(expected.items())[:6])
    assert {2, 3, SEVERAL} <= set(counted)
    for name, events in found.items():
        limit = next(r.params.max_tokens for r in requests if r.request_id == name)
        assert events[-1].completion_tokens <= limit
        assert all(event.finish_reason is None for event in events[:-1])


def test_a_request_has_the_same_bits_in_every_slot(runner: Runner):
    from mistral_jax.runtime.sampling.sample import Features

    params = SamplingParams(temperature=0.8, top_p=0.9, seed=3, logprobs=5, repetition_penalty=1.1)
    prompt = request("x", 37).prompt
    seen = set()
    state = runner.new_state()
    for slot in range(SLOTS):
        state = runner.admit(state, slot, prompt, params)
        for chunk in runner.chunks(len(prompt)):
            state, *_ = runner.prefill(state, slot, prompt, chunk)
        rows = []
        for step in range(8):
            state, packed, *_ = runner.decode(state, [slot], Features.of(params), longest=len(prompt) + step)
            rows.append(np.asarray(packed)[slot].tobytes())
        seen.add(b"".join(rows))
    assert len(seen) == 1


def test_many_more_requests_than_slots_all_end_and_leave_no_slot_taken(engine: JaxEngine):
    requests = [replace(r, request_id=f"many{i}") for i, r in enumerate(mixed_requests(16) * 4)]
    by_prompt: dict[tuple, set] = {}
    for name, events in run(engine, *requests).items():
        r = next(r for r in requests if r.request_id == name)
        by_prompt.setdefault((r.prompt, r.params.seed), set()).add(answer(events))
    assert all(len(answers) == 1 for answers in by_prompt.values())
    wait_for(lambda: engine.status.running == engine.status.waiting == 0)


def test_nothing_compiles_after_warm_up_and_the_old_cache_is_deleted(runner: Runner):
    from mistral_jax.runtime.sampling.sample import Features

    state = runner.warm_up(runner.new_state())
    compiled = note_compilations()
    for length in (2, 5, 17, 60, 200):
        prompt = request("c", length).prompt
        params = SamplingParams(seed=1, logit_bias={5: 1.0}, logprobs=3, dry_multiplier=1.0, rules=TokenRules())
        state = runner.admit(state, 3, prompt, params)
        for chunk in runner.chunks(length):
            old = state
            state, *_ = runner.prefill(state, 3, prompt, chunk)
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old.caches))
        for active in ([3], [0, 7]):
            old = state
            state, packed, *_ = runner.decode(state, active, Features.of(params), longest=length)
            packed.block_until_ready()
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves((old.caches, old.rows)))
    assert compiled == []


def test_device_memory_stays_flat(engine: JaxEngine):
    run(engine, request("warm"))
    before = sum(array.nbytes for array in jax.live_arrays())
    for i in range(20):
        run(engine, request(f"flat{i}", length=3 + i))
    assert sum(array.nbytes for array in jax.live_arrays()) <= before + 64 * 1024


def test_an_end_of_sequence_token_ends_the_answer_and_is_not_part_of_it(engine: JaxEngine):
    free = request("free", temperature=0.0)
    forced = replace(
        free, request_id="eos", params=replace(free.params, ignore_eos=False, logit_bias={EOS: 100.0}, logprobs=0)
    )
    events = run(engine, forced)["eos"]
    assert answer(events) == ("", ())
    assert (events[-1].finish_reason, events[-1].completion_tokens) == ("stop", 1)


def test_max_tokens_and_the_end_of_the_context_end_an_answer_with_length(engine: JaxEngine):
    events = run(engine, request("five", max_tokens=5))["five"]
    assert (events[-1].finish_reason, events[-1].completion_tokens) == ("length", 5)
    events = run(engine, request("full", length=LENGTH - 3, max_tokens=None))["full"]
    assert (events[-1].finish_reason, events[-1].completion_tokens) == ("length", 3)


def test_a_stop_string_ends_the_answer_before_it(engine: JaxEngine):
    free = request("free", temperature=0.0, max_tokens=30, logit_bias={65 + 3: 100.0})
    text, _ = answer(run(engine, free)["free"])
    assert text == "A" * 30
    stopping = replace(free, request_id="stop", params=replace(free.params, stop=("AAAA",)))
    events = run(engine, stopping)["stop"]
    assert answer(events)[0] == ""
    assert (events[-1].finish_reason, events[-1].stop_reason, events[-1].completion_tokens) == ("stop", "AAAA", 4)


def tokens_of(engine: JaxEngine, asked: Request) -> list[int]:
    events = run(engine, replace(asked, token_ids=True))[asked.request_id]
    return [token for event in events for token in event.token_ids]


def test_no_end_before_the_least_length(engine: JaxEngine):
    ending = request("least", temperature=0.0, max_tokens=30, ignore_eos=False, logit_bias={EOS: 100.0, 70: 100.0})
    assert len(tokens_of(engine, ending)) <= 2
    for least in (1, 5):
        tokens = tokens_of(engine, ruled(ending, min_tokens=least, stop_token_ids=(70,)))
        assert len(tokens) == least + 1
        assert tokens[-1] in (EOS, 70)
        assert not {EOS, 70} & set(tokens[:-1])


def test_words_are_kept_out_and_others_are_not(engine: JaxEngine):
    asked = request("words", max_tokens=40, temperature=0.0, allowed_token_ids=tuple(65 + i for i in range(3, 6)))
    free = tokens_of(engine, asked)
    text = FakeTokenizer().decode(free)
    words = (text[4:7], text[9:11])
    kept = FakeTokenizer().decode(tokens_of(engine, ruled(asked, bad_words=words)))
    assert all(word in text and word not in kept for word in words)
    # Up to the first letter that would have completed one, it is the same.
    first = min(text.index(word) + len(word) - 1 for word in words)
    assert kept[:first] == text[:first]
    assert kept[first] != text[first]
    assert text[-1] not in FakeTokenizer().decode(tokens_of(engine, ruled(asked, bad_words=(text[-1],))))
    assert set(text) <= set("ABC")


def test_a_request_that_leaves_no_token_is_refused_where_that_happens(engine: JaxEngine):
    words = tuple(f"{a}{b}" for a in "ABC" for b in "ABC")
    asked = ruled(request("none", allowed_token_ids=(68, 69, 70)), bad_words=words)
    beside = request("beside", max_tokens=6)
    ended = run(engine, asked, beside)
    last = ended["none"][-1]
    assert (last.finish_reason, last.refused, last.completion_tokens) == ("error", True, 2)
    assert "no token is left" in (last.error or "")
    assert answer(ended["beside"]) == answer(run(engine, beside)["beside"])


def test_dry_ends_a_repetition(engine: JaxEngine):
    asked = request("dry", length=3, max_tokens=24, temperature=0.0, logit_bias={68: 9.0, 69: 8.9, 70: 8.8})
    free = tokens_of(engine, asked)
    dry = {"dry_multiplier": 20.0, "dry_allowed_length": 2, "dry_sequence_breakers": ()}
    kept = tokens_of(engine, ruled(asked, **dry))

    def repeated(tokens: list[int]) -> int:
        """The longest run of tokens that stands in the text twice."""
        text = [*asked.prompt, *tokens]
        lengths = range(1, len(text))
        parts = ((n, [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]) for n in lengths)
        return max((n for n, found in parts if len(set(found)) < len(found)), default=0)

    assert repeated(free) > 4
    assert repeated(kept) <= 3
    # A breaker of all tokens leaves nothing to be repeated.
    everything = tuple(chr(c) for c in range(65, 68))
    assert tokens_of(engine, ruled(asked, **{**dry, "dry_sequence_breakers": everything})) == free


def test_cancelling_running_and_waiting_requests_frees_everything(engine: JaxEngine):
    inbox = Inbox()
    names = [f"cancel{i}" for i in range(200)]
    for name in names:
        engine.submit([request(name, length=30, max_tokens=200)], inbox.deliver)
    for name in names:
        engine.cancel(name)
    ended = inbox.until_all_end(names)
    assert all(events[-1].finish_reason == "cancelled" for events in ended.values())
    assert (engine.status.running, engine.status.waiting) == (0, 0)
    engine.cancel("never heard of")
    assert answer(run(engine, request("after", temperature=0.0))["after"])[0]


def test_a_full_queue_takes_all_of_a_call_or_nothing(runner: Runner):
    engine = make_engine(runner, queue_limit=4, warm_up=False)
    engine.start()
    wait_until_ready(engine)
    inbox = Inbox()
    with pytest.raises(QueueFullError, match="limit 4"):
        engine.submit([request(f"q{i}") for i in range(SLOTS + 5)], inbox.deliver)
    assert (engine.status.running, engine.status.waiting) == (0, 0)
    names = [f"q{i}" for i in range(SLOTS + 4)]
    engine.submit([request(name, max_tokens=50) for name in names], inbox.deliver)
    inbox.until_all_end(names)
    engine.drain(0)


def test_draining_finishes_what_runs_refuses_what_comes_and_ends(runner: Runner):
    engine = make_engine(runner, warm_up=False)
    engine.start()
    wait_until_ready(engine)
    inbox = Inbox()
    engine.submit([request("running", max_tokens=40)], inbox.deliver)
    drained = threading.Thread(target=engine.drain, args=(30,))
    drained.start()
    wait_for(lambda: engine.status.state is not EngineState.READY)
    with pytest.raises(EngineUnavailableError):
        engine.submit([request("late")], inbox.deliver)
    assert inbox.until_all_end(["running"])["running"][-1].finish_reason == "length"
    drained.join(30)
    assert engine.status.state is EngineState.STOPPED


def test_draining_without_time_cancels(runner: Runner):
    engine = make_engine(runner, warm_up=False)
    engine.start()
    wait_until_ready(engine)
    inbox = Inbox()
    engine.submit([request("long", max_tokens=240)], inbox.deliver)
    engine.drain(0)
    assert inbox.until_all_end(["long"])["long"][-1].finish_reason == "cancelled"


def test_a_device_thread_that_raises_fails_its_requests_and_says_so(runner: Runner, monkeypatch: pytest.MonkeyPatch):
    engine = make_engine(runner, warm_up=False)
    engine.start()
    wait_until_ready(engine)
    inbox = Inbox()

    def broken(*args, **kwargs):
        raise RuntimeError("out of memory on the device")

    monkeypatch.setattr(runner, "forward", broken)
    engine.submit([request("victim")], inbox.deliver)
    events = inbox.until_all_end(["victim"])["victim"]
    assert (events[-1].finish_reason, events[-1].error) == ("error", "the engine failed; see the server's log")
    wait_for(lambda: engine.status.state is EngineState.FAILED)
    assert "out of memory" in engine.status.detail
    with pytest.raises(EngineUnavailableError, match="failed"):
        engine.submit([request("next")], inbox.deliver)
    engine.drain(0)


def test_a_load_that_fails_is_told_without_a_traceback(caplog: pytest.LogCaptureFixture):
    def load(report):
        raise ValueError("no such weights")

    engine = JaxEngine(load=load, tokenizer=FakeTokenizer(), eos_ids={EOS}, slots=2, queue_limit=1)
    engine.start()
    wait_for(lambda: engine.status.state is EngineState.FAILED)
    assert engine.status.detail == "the model could not be loaded: no such weights"
    assert not caplog.records


def test_damaged_weights_fail_a_request_and_not_the_server():
    model = Mistral(CONFIG, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    # A single token's embedding is damaged: only requests that contain it are.
    model.embed_tokens.weight.set_value(padded(model.embed_tokens.weight[...].at[200].set(jnp.nan)))
    engine = make_engine(Runner(model, slots=2, length=64, chunks=(4,)), warm_up=False)
    engine.start()
    wait_until_ready(engine)
    bad = Request(request_id="bad", prompt=(5, 200, 6), params=SamplingParams(seed=0, max_tokens=4, ignore_eos=True))
    good = Request(request_id="good", prompt=(5, 7, 6), params=SamplingParams(seed=0, max_tokens=4, ignore_eos=True))
    ended = run(engine, bad, good)
    assert ended["bad"][-1].finish_reason == "error"
    assert "not numbers" in (ended["bad"][-1].error or "")
    assert ended["good"][-1].finish_reason == "length"
    again = replace(good, request_id="again")
    assert answer(run(engine, again)["again"]) == answer(ended["good"])
    engine.drain(0)


@pytest.mark.parametrize("prompt", [(), tuple(range(3, 3 + LENGTH))])
def test_prompts_that_do_not_fit_are_refused_when_submitted(engine: JaxEngine, prompt):
    bad = Request(request_id="bad", prompt=prompt or (), params=SamplingParams(seed=0))
    with pytest.raises(ValueError, match=f"expected 1 to {LENGTH - 1}"):
        engine.submit([bad], lambda events: None)


def test_events_tell_when_things_happened_and_how_far_a_prompt_is(engine: JaxEngine) -> None:
    before = time.monotonic()
    events = run(engine, replace(request("timed", 40, max_tokens=5), progress=True))["timed"]
    after = time.monotonic()
    progress = [event.prompt_processed for event in events if event.prompt_processed]
    assert progress == [16, 32, 39]
    assert [bool(event.prompt_processed) for event in events] == [True] * 3 + [False] * (len(events) - 3)
    times = [event.times for event in events if event.times is not None]
    assert len(times) == len(events)
    last = times[-1]
    assert last.first_token is not None
    assert before <= last.queued <= last.admitted <= times[0].now <= last.first_token < last.now <= after
    assert [each.now for each in times] == sorted(each.now for each in times)
    assert all(each.first_token is None for each in times[:2])  # the last chunk and the first step are one round
    plain = run(engine, request("timed", 40, max_tokens=5))["timed"]
    assert not any(event.prompt_processed for event in plain)
    assert "".join(event.text for event in plain) == "".join(event.text for event in events)
