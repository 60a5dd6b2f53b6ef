"""One plan measured: read where it was measured before, else rung by rung, and never a crash.

What cannot be measured, as the loss is no number or memory ran out, is an answer too, so that a
search goes on with the next plan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from math import isfinite
from time import perf_counter
from typing import Protocol

import torch
from torch import nn

from qpruner_core.catalog import precision_formats
from qpruner_core.domain.device_memory import TrainingLoad, training_bytes_estimate
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.spec import SearchSpec
from qpruner_core.errors import NonFiniteLossError
from qpruner_core.evaluation import Asked, Suite
from qpruner_core.pipeline.halving import Rival, Verdict, dominated, rung_ends
from qpruner_core.pipeline.out_of_memory import (
    OUT_OF_MEMORY,
    OUT_OF_MEMORY_IN_TRAINING,
    free_memory,
    is_out_of_memory,
)
from qpruner_core.pipeline.remembering import Remembered
from qpruner_core.store.measured import Kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What is known of a plan after it was asked for."""

    metrics: Metrics | None = None
    """None where it failed or was stopped."""
    sequence_losses: tuple[float, ...] = ()
    """Loss of every sequence that was read; nats per token."""
    state: str = "complete"
    """``"complete"``, ``"failed"`` or ``"stopped"``."""
    reason: str = ""
    """Why it failed or was stopped."""


class ShowsPlans(Protocol):
    """What is needed of a bank."""

    model: nn.Module

    def apply(self, plan: PrecisionPlan) -> None:
        """Point the model at a plan."""

    def packed_bytes(self, plan: PrecisionPlan) -> int:
        """Return the bytes of the model under a plan."""

    def found_weight(self, name: str, level: int = 0) -> torch.Tensor:
        """Return the weight that a Linear came with at a level, (out_features, in_features)."""


Trained = Callable[[ShowsPlans, PrecisionPlan], AbstractContextManager[nn.Module]]
"""Gives the model of a bank that shows a plan, trained for a while; then it is as it was."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bench:
    """With what plans are measured."""

    bank_of: Callable[[PrecisionPlan], ShowsPlans]
    """Returns the bank that holds the precisions of a plan."""
    suite: Callable[[], Suite]
    """Returns text and tasks; called after the bank is there."""
    layout_of: Callable[[PrecisionPlan], ModelLayout]
    """Returns the layout of the model under a plan."""
    remembered: Callable[[], Remembered]
    """Returns what was measured before."""
    device_name: str
    """As told to the person."""
    study_name: str
    """For which study it is measured."""
    load: TrainingLoad
    """Of the recovery that the run asks for."""
    trained: Trained
    """What a plan goes through before it is measured."""


class Measuring:
    """Measures the plans of one search."""

    def __init__(self, bench: Bench, spec: SearchSpec) -> None:
        self._bench, self._spec = bench, spec

    def answer(self, plan: PrecisionPlan, rivals: Sequence[Rival] = ()) -> Answer:
        """Measure a plan, or say why it cannot be or need not be.

        Args:
            plan: A plan that the bank can show.
            rivals: Measured plans; it is stopped where one of them dominates it. None: it is
                measured in full.
        """
        try:
            return self._answer(plan, rivals)
        except NonFiniteLossError as error:
            return Answer(state="failed", reason=str(error))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside the handler: the error holds on to the tensors of the frames it passed.
        free_memory()
        trains = self._spec.recover_steps > 0
        return Answer(
            state="failed", reason=OUT_OF_MEMORY_IN_TRAINING if trains else OUT_OF_MEMORY
        )

    def full(self, plan: PrecisionPlan) -> Answer:
        """Measure a plan to the end.

        Raises:
            NonFiniteLossError: The loss is not a number.
        """
        return self._answer(plan, ())

    def _answer(self, plan: PrecisionPlan, rivals: Sequence[Rival]) -> Answer:
        remembered = self._bench.remembered()
        known = remembered.read(plan)
        if known is not None and known.metrics is not None:
            return self._taken_over(plan, known, known.metrics)
        bank = self._bench.bank_of(plan)
        bank.apply(plan)
        answer = self._measure(plan, bank, rivals, known.sequence_losses if known else ())
        kept = Kept(
            key=plan.key,
            study=self._bench.study_name,
            metrics=answer.metrics,
            sequence_losses=answer.sequence_losses,
        )
        remembered.write(plan, kept)
        return answer

    def _measure(
        self,
        plan: PrecisionPlan,
        bank: ShowsPlans,
        rivals: Sequence[Rival],
        known: tuple[float, ...],
    ) -> Answer:
        """Train as is asked for, read the text rung by rung, then score the tasks of a plan that
        is not dominated.
        """
        suite, started = self._bench.suite(), perf_counter()
        size = bank.packed_bytes(plan)
        timed = suite.speed(bank.model) if self._spec.cost == "latency" else None
        costs = {
            "weight_bytes": float(size),
            "training_memory": float(self._training_bytes(plan) or 0),
            "latency": 1.0 / timed.decode_tokens_per_second if timed else 0.0,
        }
        race = _Race(suite=suite, rivals=rivals, cost=costs[self._spec.cost])
        with self._bench.trained(bank, plan) as model:
            losses, verdict = race.run(model, known, self._spec.rungs)
            if verdict is not None:
                return Answer(sequence_losses=losses, state="stopped", reason=verdict.words)
            asked = Asked(
                weight_bytes=size,
                device_name=self._bench.device_name,
                losses=losses,
                seconds=perf_counter() - started,
            )
            measured = suite.measure(model, asked)
        metrics = replace(measured.metrics, training_bytes=self._training_bytes(plan))
        if timed is not None:
            metrics = replace(
                metrics,
                prefill_tokens_per_second=timed.prefill_tokens_per_second,
                decode_tokens_per_second=timed.decode_tokens_per_second,
            )
        return Answer(metrics=metrics, sequence_losses=measured.sequence_losses)

    def _taken_over(self, plan: PrecisionPlan, known: Kept, metrics: Metrics) -> Answer:
        """Return what was measured before; training is estimated for the recovery asked for
        now.
        """
        origin = "" if known.study == self._bench.study_name else known.study
        return Answer(
            metrics=replace(
                metrics, measured_in=origin, training_bytes=self._training_bytes(plan)
            ),
            sequence_losses=known.sequence_losses,
        )

    def _training_bytes(self, plan: PrecisionPlan) -> int | None:
        if self._spec.cost != "training_memory":
            return None
        layout = self._bench.layout_of(plan)
        return training_bytes_estimate(layout, plan, precision_formats(), self._bench.load).total


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Race:
    """A plan on its way through the rungs."""

    suite: Suite
    rivals: Sequence[Rival]
    cost: float

    def run(
        self, model: nn.Module, known: tuple[float, ...], rungs: int
    ) -> tuple[tuple[float, ...], Verdict | None]:
        """Return the losses of all rungs but the last, and why the plan is dominated there.

        The last rung is left to the suite: what has come so far is measured in full, as a known
        loss teaches a strategy more than it costs.
        """
        n_sequences, losses = self.suite.n_sequences, known
        for end in rung_ends(n_sequences, rungs)[:-1]:
            if len(losses) < end:
                losses += self.suite.sequence_losses(model, len(losses), end)
            total = sum(losses)
            if not isfinite(total):
                raise NonFiniteLossError(
                    f"The evaluation gave a loss of {total} on {len(losses)} of {n_sequences} "
                    f"sequences; a finite number is needed. Give the most sensitive layers a "
                    f"higher precision or lower the pruning ratio."
                )
            verdict = dominated(losses[:end], self.cost, self.rivals, n_sequences)
            if verdict is not None:
                return losses, verdict
        return losses, None
