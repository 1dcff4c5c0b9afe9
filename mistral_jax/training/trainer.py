"""The training loop: batches in, updated parameters out; log, validation, checkpoints.

An update is a function of (parameters, optimizer state, number of the update) alone: the number determines the batches
and the dropout. So a checkpoint needs no more than these, and a resumed run gives the same bits as one that was never
interrupted.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import jax
import numpy as np

from mistral_jax.checkpoint.progress import progress_bar
from mistral_jax.training.batches import Batch
from mistral_jax.training.checkpoints import CHECKPOINT_NAME, Checkpoint, load_checkpoint, save_checkpoint
from mistral_jax.training.data_sets import DataSets
from mistral_jax.training.output_folder import LOG_NAME
from mistral_jax.training.programs import Loss, OptimizerSettings, add, make_optimizer, programs, update_program
from mistral_jax.training.settings import TrainingSettings
from mistral_jax.training.training_log import TrainingLog

logger = logging.getLogger("mistral_jax.training")


class _Update(NamedTuple):
    """An update that the device is still computing."""

    step: int
    sums: jax.Array
    """float32 [1 + n]: see `Loss`."""
    norm: jax.Array
    """Norm of the gradient before clipping."""
    counted: int
    """Tokens that count."""
    tokens: int
    """Of this run up to here, without padding."""


class TrainingError(RuntimeError):
    """A run cannot continue; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Fitted:
    """The result of a run."""

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
    """A pytree of arrays that the loss needs and that are not trained."""
    settings: TrainingSettings
    data: DataSets
    folder: Path | None = None
    """Where log and checkpoints go; None: nowhere."""
    describes: dict[str, Any] = field(default_factory=dict[str, Any])
    """Further values that must be the same when a run is resumed."""
    rates: Mapping[str, float] = field(default_factory=dict[str, float])
    """See `OptimizerSettings.rates`."""
    shown: tuple[str, ...] = ()
    """Names of the other numbers of the loss."""
    progress: bool = True

    @property
    def _optimizer(self) -> OptimizerSettings:
        return OptimizerSettings.of(self.settings, self.steps, self.rates)

    @property
    def steps(self) -> int:
        if self.settings.steps is not None:
            return self.settings.steps
        return max(1, math.ceil(self.settings.epochs * self.data.train.per_epoch / self.settings.accumulate))

    def fit(self, params: Any, *, resume: bool = False) -> Fitted:
        """Train. `params` is donated.

        Args:
          resume: continue from the checkpoint in the folder.
        Raises:
          TrainingError: the loss is not finite, or the checkpoint is of another run.
        """
        transform, schedule = make_optimizer(self._optimizer)
        self._programs, self._apply = programs(self.loss), update_program(self._optimizer)
        # On the model's device, explicitly: arrays that JAX places by itself take other programs than those that
        # updates return.
        place = jax.tree.leaves(self.frozen)[0].sharding
        params = jax.device_put(params, place)
        state = jax.device_put(transform.init(params), place)
        done, log = 0, TrainingLog(None if self.folder is None else self.folder / LOG_NAME)
        if resume:
            checkpoint = self._load(params, state)
            params, state, done = checkpoint.params, checkpoint.optimizer, checkpoint.step
            log.resume(done)
        else:
            log.begin()
        logger.info(
            "training: %d steps; the programs are compiled first, one for each length of batches", self.steps - done
        )
        with _interruptible() as interrupted, self._bar(done) as bar, log:
            if not resume:
                self._validate(params, 0, log, bar)
            began = time.perf_counter()
            tokens = 0
            # The device computes the next update while the numbers of the last one are read.
            waiting: _Update | None = None

            def settle() -> None:
                nonlocal waiting
                if waiting is None:
                    return
                mean, norm = np.asarray(waiting.sums) / waiting.counted, float(waiting.norm)
                self._check_finite(waiting.step, float(mean[0]), norm)
                speed = waiting.tokens / (time.perf_counter() - began)
                log.update(
                    waiting.step,
                    float(mean[0]),
                    learning_rate=float(schedule(waiting.step - 1)),
                    gradient_norm=norm,
                    tokens_per_s=round(speed),
                    **self._named(mean),
                )
                bar.set_description("training", refresh=False)
                bar.set_postfix(log.postfix | {"tokens_per_s": f"{speed:.0f}"}, refresh=False)
                bar.update()
                waiting = None

            while done < self.steps and not interrupted.is_set():
                first = done * self.settings.accumulate
                batches = [self.data.train[first + i] for i in range(self.settings.accumulate)]
                counted = sum(batch.counted for batch in batches)
                tokens += sum(batch.real for batch in batches)
                params, state, sums, norm = self._update(params, state, batches, done)
                settle()
                done += 1
                waiting = _Update(done, sums, norm, counted, tokens)
                if _due(done, self.settings.validate_every) or done == self.steps:
                    settle()
                    self._validate(params, done, log, bar)
                if _due(done, self.settings.checkpoint_every) and done < self.steps:
                    settle()
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

    def _update(
        self, params: Any, state: Any, batches: Sequence[Batch], step: int
    ) -> tuple[Any, Any, jax.Array, jax.Array]:
        """One update from several batches, as from one large one. Returns parameters, state, sums of the loss, gradient
        norm."""
        key = jax.random.fold_in(jax.random.key(self.settings.seed), step)
        summed: Any = None
        for i, batch in enumerate(batches):
            found = self._programs.gradients(
                params, self.frozen, batch.tokens, batch.weights, jax.random.fold_in(key, i)
            )
            summed = found if summed is None else add(summed, found)
        sums, gradient = summed
        counted = np.float32(sum(batch.counted for batch in batches))
        params, state, norm = self._apply(params, state, gradient, counted)
        return params, state, sums, norm

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
            f"the {what} of update {step} is {loss if what == 'loss' else norm}: the run diverged. "
            f"Take a smaller learning rate (it is {self.settings.learning_rate}), "
            f"a longer warm-up or a smaller clip_norm{saved}"
        )

    def _validate(self, params: Any, step: int, log: TrainingLog, bar: Any) -> None:
        held_out = self.data.validation
        if held_out is None:
            return
        sums, counted = np.zeros((1 + len(self.shown),), np.float64), 0
        for i in range(held_out.per_epoch):
            batch = held_out[i]
            sums += np.asarray(self._programs.sums(params, self.frozen, batch.tokens, batch.weights))
            counted += batch.counted
        mean = sums / counted
        log.validate(step, float(mean[0]), **self._named(mean))
        bar.set_postfix(log.postfix)

    def _named(self, mean: Any) -> dict[str, float]:
        return {name: round(float(value), 5) for name, value in zip(self.shown, mean[1:], strict=True)}

    def _bar(self, done: int) -> Any:
        return progress_bar("compiling", total=self.steps, initial=done, unit="steps", shown=self.progress)

    def _identity(self) -> dict[str, Any]:
        """The values that determine a run's parameters."""
        free = {"validate_every", "checkpoint_every", "validation_split"}
        settings = {k: v for k, v in vars(self.settings).items() if k not in free}
        return {**settings, "steps": self.steps, "data": self.data.train.fingerprint, **self.describes}

    def _save(self, params: Any, state: Any, step: int) -> None:
        if self.folder is not None:
            checkpoint = Checkpoint(params=params, optimizer=state, step=step)
            save_checkpoint(self.folder / CHECKPOINT_NAME, checkpoint, identity=self._identity())

    def _load(self, params: Any, state: Any) -> Checkpoint:
        if self.folder is None:
            raise TrainingError("a run without a folder has no checkpoint to resume from; name the folder")
        path = self.folder / CHECKPOINT_NAME
        return load_checkpoint(path, Checkpoint(params=params, optimizer=state, step=0), identity=self._identity())


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
