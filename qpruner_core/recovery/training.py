"""The training loop: seeded batches, in parts whose gradients add up, and a checkpoint now and
then.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import isfinite
from time import perf_counter

import torch
from torch import nn

from qpruner_core.catalog import OPTIMIZERS
from qpruner_core.data.training import TrainingSet
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.progress import OnProgress, Progress, never, silent
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.errors import NonFiniteLossError
from qpruner_core.recovery.batches import Batch, batches
from qpruner_core.recovery.checkpoints import Checkpoints, Learning, Standing
from qpruner_core.recovery.memory import PeakMemory
from qpruner_core.recovery.objective import batch_loss
from qpruner_core.recovery.recomputing import recomputed_layers
from qpruner_core.recovery.schedule import rate_factor

MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Steering:
    """Who listens to a training, may stop it, and keeps where it stands."""

    on_progress: OnProgress = silent
    """Told after every step, with ``loss`` (nats per token), ``tokens_per_second`` and
    ``learning_rate``."""
    should_stop: Callable[[], bool] = never
    """Asked before every step; what was learned until then stays."""
    checkpoints: Checkpoints | None = None
    """Where the training goes on from, and what it leaves behind when it is stopped or killed;
    None: nowhere and nothing."""


class Trainer:
    """Clipped gradients and the optimiser of the catalogue on whatever takes a gradient."""

    def __init__(self, model: nn.Module, layout: ModelLayout, spec: RecoverySpec) -> None:
        """Take a causal language model with its adapters in place, and what it is pruned to."""
        self._model, self._layout, self._spec = model, layout, spec
        self._device = next(model.parameters()).device
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        make = OPTIMIZERS.target(spec.optimizer)
        optimizer = make(trained.values(), spec.learning_rate, spec.weight_decay)
        self._learning = Learning(parameters=trained, optimizer=optimizer, device=self._device)
        self._memory = PeakMemory(model, optimizer=optimizer)
        self._standing = Standing()

    def run(self, training: TrainingSet, steering: Steering) -> Standing:
        """Train in place and return where it stands then; the model is left in eval mode.

        Args:
            training: Rows and what of them is learned.
            steering: Who listens, stops and keeps.

        Raises:
            NonFiniteLossError: A loss is not a number; the message names the step. A checkpoint
                that was there stays.
            DataTooShortError: There is nothing to train on.
        """
        kept = steering.checkpoints if self._spec.checkpoint_steps else None
        if kept is not None:
            self._standing = kept.restore_(self._learning)
            self._memory.highest = self._standing.peak_bytes
        with ExitStack() as stack:
            stack.callback(self._model.eval)
            self._model.train()
            if self._spec.gradient_checkpointing:
                stack.enter_context(recomputed_layers(self._model, self._layout))
            self._steps_(training, steering, kept)
        return self._standing

    def _steps_(self, training: TrainingSet, steering: Steering, kept: Checkpoints | None) -> None:
        first, n_steps = len(self._standing.losses), self._spec.steps
        for number, batch in enumerate(batches(training, self._spec, first), first):
            if steering.should_stop():
                if kept is not None:
                    kept.save(self._learning, self._standing)
                return
            started = perf_counter()
            loss = self._step_(batch, number)
            self._note(loss, batch.ids.numel() / (perf_counter() - started))
            due = (number + 1) % max(1, self._spec.checkpoint_steps) == 0
            if kept is not None and (due or number + 1 == n_steps):
                kept.save(self._learning, self._standing)
            steering.on_progress(self._report())

    def _step_(self, batch: Batch, number: int) -> float:
        """Take one optimiser step and return the mean loss of what its batch learns."""
        optimizer = self._learning.optimizer
        for group in optimizer.param_groups:
            group["lr"] = self._rate(number)
        loss, n_learned = 0.0, batch.n_learned
        for part in batch.parts(self._spec.forward_sequences):
            if part.n_learned:
                loss += self._gradients_(part.to(self._device), n_learned)
        parameters = list(self._learning.parameters.values())
        norm = torch.nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
        for what, value in (("loss", loss), ("gradient", float(norm))):
            if not isfinite(value):
                raise self._refusal(what, value, number)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    def _gradients_(self, part: Batch, n_learned: int) -> float:
        """Add the gradients of a part of the batch and return its share of the loss."""
        in_pieces = self._spec.gradient_checkpointing
        with self._memory.watching(part.ids.numel(), part.n_learned):
            loss = batch_loss(self._model, part, n_learned, in_pieces=in_pieces)
            loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def _rate(self, number: int) -> float:
        spec = self._spec
        factor = rate_factor(number, spec.steps, spec.schedule, spec.warm_up)
        return spec.learning_rate * factor

    def _note(self, loss: float, tokens_per_second: float) -> None:
        self._standing = replace(
            self._standing,
            losses=(*self._standing.losses, loss),
            speeds=(*self._standing.speeds, tokens_per_second),
            peak_bytes=self._memory.peak_bytes,
        )

    def _refusal(self, what: str, value: float, number: int) -> NonFiniteLossError:
        return NonFiniteLossError(
            f"The {what} of recovery step {number + 1} of {self._spec.steps} is {value}; a "
            f"finite number is needed. Lower the learning rate (now "
            f"{self._spec.learning_rate:g}), or recover a plan with higher precision."
        )

    def _report(self) -> Progress:
        done = len(self._standing.losses)
        return Progress(
            step="recover",
            done=done,
            total=self._spec.steps,
            message="training the adapter",
            values={
                "loss": self._standing.losses[-1],
                "tokens_per_second": self._standing.speeds[-1],
                "learning_rate": self._rate(done - 1),
            },
        )
