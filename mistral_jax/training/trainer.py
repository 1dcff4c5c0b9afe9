"""The loop that all trainings share: batches in, updated parameters out; a log, validation, checkpoints.

What an update does is a function of (parameters, optimizer state, number of the update) alone: the number decides which batches it
takes and what dropout drops. So a checkpoint needs no more than these, and a resumed run gives the bits of one that was never
interrupted.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm.auto import tqdm

from mistral_jax.training.batches import Batch, Batches
from mistral_jax.training.checkpoints import CHECKPOINT_NAME, Checkpoint, load_checkpoint, save_checkpoint
from mistral_jax.training.settings import TrainingSettings
from mistral_jax.training.training_log import TrainingLog

Loss = Callable[[Any, Any, jax.Array, jax.Array, "jax.Array | None"], jax.Array]
"""(parameters, what is frozen, tokens int32 [B, T + 1], weights float32 [B, T], dropout key or None) -> the sum of the losses of
the tokens that count, float32."""


class TrainingError(RuntimeError):
    """A run cannot go on; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Fitted:
    """What a run gave."""

    params: Any
    steps: int
    """Updates made, those before a resumption included."""
    finished: bool
    """False: it was interrupted."""
    losses: np.ndarray
    """float32 [steps]: mean loss of the tokens of each update, before it."""
    validation_steps: np.ndarray
    """int32 [n]"""
    validation_losses: np.ndarray
    """float32 [n]: mean loss of all tokens held out, after so many updates."""


@dataclass(kw_only=True)
class Trainer:
    """One run. `fit` does it."""

    loss: Loss
    frozen: Any
    """A pytree of arrays that the loss needs, and that stays as it is."""
    settings: TrainingSettings
    train: Batches
    validation: Batches | None = None
    folder: Path | None = None
    """Where log and checkpoints go; None: nowhere."""
    describes: dict[str, Any] = field(default_factory=dict[str, Any])
    """What else must be the same when a run is resumed."""
    progress: bool = True
    title: str = "training"

    @property
    def steps(self) -> int:
        if self.settings.steps is not None:
            return self.settings.steps
        return max(1, math.ceil(self.settings.epochs * self.train.per_epoch / self.settings.accumulate))

    def fit(self, params: Any, *, resume: bool = False) -> Fitted:
        """Train. `params` is donated.

        Args:
          resume: go on from the checkpoint in the folder.
        Raises:
          TrainingError: the loss is no number, or the checkpoint is of another run.
        """
        transform, schedule = make_optimizer(self.settings, self.steps)
        self._compile(transform)
        state = transform.init(params)
        done, log = 0, TrainingLog(None if self.folder is None else self.folder / "training_log.jsonl")
        if resume:
            checkpoint = self._load(params, state)
            params, state, done = checkpoint.params, checkpoint.optimizer, checkpoint.step
            log.resume(done)
        else:
            log.begin()
        with _interruptible() as interrupted, self._bar(done) as bar, log:
            if not resume:
                self._validate(params, 0, log, bar)
            began = time.perf_counter()
            tokens = 0
            # The device computes the next update while the numbers of the last one are read.
            waiting: tuple[int, int, jax.Array, jax.Array, int] | None = None

            def settle() -> None:
                if waiting is not None:
                    step, counted, total, norm, seen = waiting
                    loss, length = float(total) / counted, float(norm)
                    self._check_finite(step, loss, length)
                    elapsed = time.perf_counter() - began
                    speed = seen / elapsed
                    log.update(step, loss, learning_rate=float(schedule(step - 1)), gradient_norm=length, speed=speed)
                    bar.set_postfix(loss=f"{log.smooth:.4f}", tokens_per_s=f"{speed:.0f}", refresh=False)
                    bar.update()

            while done < self.steps and not interrupted.is_set():
                batches = [self.train[done * self.settings.accumulate + i] for i in range(self.settings.accumulate)]
                counted = sum(batch.counted for batch in batches)
                tokens += sum(int((batch.tokens != 0).sum()) for batch in batches)
                params, state, total, norm = self._update(params, state, batches, done)
                settle()
                done += 1
                waiting = (done, counted, total, norm, tokens)
                if _due(done, self.settings.validate_every) or done == self.steps:
                    settle()
                    waiting = None
                    self._validate(params, done, log, bar)
                if _due(done, self.settings.checkpoint_every) and done < self.steps:
                    settle()
                    waiting = None
                    self._save(params, state, done)
            settle()
            if done < self.steps:
                self._save(params, state, done)
        return Fitted(
            params=params,
            steps=done,
            finished=done == self.steps,
            losses=np.array(log.losses, np.float32),
            validation_steps=np.array([step for step, _ in log.validations], np.int32),
            validation_losses=np.array([loss for _, loss in log.validations], np.float32),
        )

    def _compile(self, transform: optax.GradientTransformation) -> None:
        """The jitted programs; nothing is compiled before it runs."""
        loss = self.loss

        def gradients(
            params: Any, frozen: Any, tokens: jax.Array, weights: jax.Array, key: jax.Array | None
        ) -> tuple[jax.Array, Any]:
            return jax.value_and_grad(loss)(params, frozen, tokens, weights, key)

        def update(params: Any, state: Any, gradient: Any, counted: jax.Array) -> tuple[Any, Any, jax.Array]:
            mean = jax.tree.map(lambda g: g / counted, gradient)
            changes, state = transform.update(mean, state, params)
            return optax.apply_updates(params, changes), state, optax.global_norm(mean)

        self._gradients = jax.jit(gradients)
        self._add = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b), donate_argnums=0)
        self._apply = jax.jit(update, donate_argnums=(0, 1))
        self._loss = jax.jit(lambda params, frozen, tokens, weights: loss(params, frozen, tokens, weights, None))

    def _update(
        self, params: Any, state: Any, batches: Sequence[Batch], step: int
    ) -> tuple[Any, Any, jax.Array, jax.Array]:
        """One update from several batches, as from one large one. Returns parameters, state, sum of the losses, gradient norm."""
        key = jax.random.fold_in(jax.random.key(self.settings.seed), step)
        summed: Any = None
        for i, batch in enumerate(batches):
            found = self._gradients(params, self.frozen, batch.tokens, batch.weights, jax.random.fold_in(key, i))
            summed = found if summed is None else self._add(summed, found)
        total, gradient = summed
        counted = np.float32(sum(batch.counted for batch in batches))
        params, state, norm = self._apply(params, state, gradient, counted)
        return params, state, total, norm

    def _check_finite(self, step: int, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        what = "loss" if not math.isfinite(loss) else "length of the gradient"
        saved = (
            ""
            if self.folder is None or not (self.folder / CHECKPOINT_NAME).is_file()
            else "; the last checkpoint is kept"
        )
        raise TrainingError(
            f"the {what} of update {step} is {loss if what == 'loss' else norm}: the run diverged. Take a smaller learning rate "
            f"(it is {self.settings.learning_rate}), a longer warm-up or a smaller clip_norm{saved}"
        )

    def _validate(self, params: Any, step: int, log: TrainingLog, bar: Any) -> None:
        if self.validation is None:
            return
        total, counted = 0.0, 0
        for i in range(self.validation.per_epoch):
            batch = self.validation[i]
            total += float(self._loss(params, self.frozen, batch.tokens, batch.weights))
            counted += batch.counted
        log.validate(step, total / counted)
        bar.write(f"step {step}: validation loss {total / counted:.4f}") if self.progress else None

    @contextmanager
    def _bar(self, done: int) -> Generator[Any]:
        with tqdm(
            desc=self.title, total=self.steps, initial=done, unit="step", disable=not self.progress, mininterval=0.5
        ) as bar:
            yield bar

    def _identity(self) -> dict[str, Any]:
        """What decides the parameters that a run gives."""
        free = {"validate_every", "checkpoint_every", "validation_split"}
        settings = {k: v for k, v in vars(self.settings).items() if k not in free}
        return {**settings, "steps": self.steps, "data": self.train.fingerprint, **self.describes}

    def _save(self, params: Any, state: Any, step: int) -> None:
        if self.folder is not None:
            checkpoint = Checkpoint(params=params, optimizer=state, step=step)
            save_checkpoint(self.folder / CHECKPOINT_NAME, checkpoint, identity=self._identity())

    def _load(self, params: Any, state: Any) -> Checkpoint:
        if self.folder is None:
            raise TrainingError("a run without a folder has no checkpoint to resume from; name the folder")
        path = self.folder / CHECKPOINT_NAME
        return load_checkpoint(path, Checkpoint(params=params, optimizer=state, step=0), identity=self._identity())


def make_optimizer(settings: TrainingSettings, steps: int) -> tuple[optax.GradientTransformation, Callable[[int], Any]]:
    """AdamW with warm-up and cosine, and its learning rate by number of updates done."""
    warmup = min(100, steps // 10) if settings.warmup_steps is None else settings.warmup_steps
    # The first update should learn something, too.
    schedule = optax.warmup_cosine_decay_schedule(
        settings.learning_rate / (warmup + 1),
        settings.learning_rate,
        warmup,
        max(steps, warmup + 1),
        end_value=settings.learning_rate * settings.final_learning_rate,
    )
    adamw = optax.adamw(schedule, b1=0.9, b2=settings.beta2, weight_decay=settings.weight_decay)
    clip = optax.clip_by_global_norm(settings.clip_norm) if settings.clip_norm else optax.identity()
    return optax.chain(clip, adamw), schedule


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


@contextmanager
def _interruptible() -> Generator[threading.Event]:
    """Ctrl-C and SIGTERM set the event, so that a run ends between two updates; a second one interrupts at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked  # signals go to the main thread
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            signal.default_int_handler(number, frame)
        asked.set()

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
