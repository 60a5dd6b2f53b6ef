"""The training loop: seeded batches, AdamW on what takes gradients, linear warm-up and decay."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from time import perf_counter
from typing import Any

import torch

from qpruner_core.data.training import TrainingSet
from qpruner_core.domain.progress import OnProgress, Progress
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.errors import NonFiniteLossError
from qpruner_core.recovery.batches import Batch, batches
from qpruner_core.recovery.memory import PeakMemory

WARM_UP_SHARE = 0.1
"""Share of the steps in which the learning rate rises from 0."""
MAX_GRADIENT_NORM = 1.0


def rate_factor(step: int, n_steps: int) -> float:
    """Return the learning rate of a step as a share of its peak, in (0, 1].

    It rises linearly over the first tenth of the steps and then falls linearly towards 0.

    Args:
        step: From 0.
        n_steps: All steps; >= 1.
    """
    warm_up = max(1, round(WARM_UP_SHARE * n_steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return (n_steps - step) / (n_steps - warm_up + 1)


class Trainer:
    """AdamW with clipped gradients on every parameter of a model that takes one."""

    def __init__(self, model: Any, spec: RecoverySpec, memory: PeakMemory) -> None:
        """Take a causal language model that computes its own loss from labels."""
        self._model = model
        self._spec = spec
        self._memory = memory
        self._device = next(model.parameters()).device
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=spec.learning_rate, weight_decay=0.0
        )

    def run(
        self, training: TrainingSet, on_progress: OnProgress, should_stop: Callable[[], bool]
    ) -> tuple[float, ...]:
        """Train in place and return the loss of every step; the model is left in eval mode.

        Args:
            training: Rows and what of them is learned.
            on_progress: Told after every step, with ``loss`` (nats per token) and
                ``tokens_per_second``.
            should_stop: Asked before every step; what was learned until then stays.

        Raises:
            NonFiniteLossError: A loss is not a number; the message names the step.
            DataTooShortError: There is nothing to train on.
        """
        losses: list[float] = []
        self._model.train()
        try:
            for number, batch in enumerate(batches(training, self._spec)):
                if should_stop():
                    break
                started = perf_counter()
                losses.append(self._step_(batch.to(self._device), number))
                on_progress(self._report(losses, batch.ids.numel() / (perf_counter() - started)))
        finally:
            self._model.eval()
        return tuple(losses)

    def _step_(self, batch: Batch, number: int) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = self._spec.learning_rate * rate_factor(number, self._spec.steps)
        with self._memory.forward(self._optimizer):
            loss = self._model(
                input_ids=batch.ids,
                labels=batch.labels,
                position_ids=batch.positions,
                use_cache=False,
            ).loss
        value = float(loss.detach())
        if not isfinite(value):
            raise NonFiniteLossError(
                f"The loss of recovery step {number + 1} of {self._spec.steps} is {value}; a "
                f"finite number is needed. Lower the learning rate (now "
                f"{self._spec.learning_rate:g}), or recover a plan with higher precision."
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, MAX_GRADIENT_NORM)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return value

    def _report(self, losses: list[float], tokens_per_second: float) -> Progress:
        return Progress(
            step="recover",
            done=len(losses),
            total=self._spec.steps,
            message="training the adapter",
            values={"loss": losses[-1], "tokens_per_second": tokens_per_second},
        )
