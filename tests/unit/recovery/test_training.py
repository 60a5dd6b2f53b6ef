from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from qpruner_core.catalog import precision_formats
from qpruner_core.data.training import TrainingSet
from qpruner_core.domain.device_memory import TrainingLoad, training_bytes_estimate
from qpruner_core.domain.footprint import plan_bytes
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.progress import never, silent
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.errors import DataTooShortError, NonFiniteLossError
from qpruner_core.recovery.batches import batches
from qpruner_core.recovery.memory import PeakMemory, estimated_bytes
from qpruner_core.recovery.training import Trainer, rate_factor

CPU = torch.device("cpu")


class Scripted(nn.Module):
    """A model whose loss at step n is the n-th of a list, times a weight of one."""

    def __init__(self, losses: list[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self._losses = iter(losses)

    def forward(self, **_: Any) -> Any:
        return SimpleNamespace(loss=self.weight.detach() * next(self._losses) + 0 * self.weight)


def test_the_rate_rises_then_falls_and_never_stands_still() -> None:
    rates = [rate_factor(step, 20) for step in range(20)]
    assert rates[1] == 1.0
    assert rates[0] < rates[1]
    assert all(later < sooner for sooner, later in pairwise(rates[1:]))
    assert min(rates) > 0.0


@pytest.mark.parametrize("n_steps", [1, 2, 3, 60])
def test_the_rate_is_a_share_of_its_peak_for_any_number_of_steps(n_steps: int) -> None:
    rates = [rate_factor(step, n_steps) for step in range(n_steps)]
    assert max(rates) == 1.0
    assert min(rates) > 0.0


def test_one_pass_shows_every_sequence_once() -> None:
    training = TrainingSet.of_text(torch.arange(12).unsqueeze(1).expand(12, 10))
    spec = RecoverySpec(steps=3, batch_size=4, sequence_length=8)
    shown = torch.cat([batch.ids for batch in batches(training, spec)])
    assert shown.shape == (12, 8)
    assert sorted(shown[:, 0].tolist()) == list(range(12))


def test_the_order_depends_on_the_seed_alone() -> None:
    training = TrainingSet.of_text(torch.arange(32).unsqueeze(1).expand(32, 8))

    def order(seed: int) -> list[int]:
        spec = RecoverySpec(steps=4, batch_size=4, sequence_length=8, seed=seed)
        return [int(i) for batch in batches(training, spec) for i in batch.ids[:, 0]]

    assert order(0) == order(0)
    assert order(0) != order(1)


def test_fewer_sequences_than_a_batch_are_shown_again() -> None:
    training = TrainingSet.of_text(torch.arange(3).unsqueeze(1).expand(3, 8))
    spec = RecoverySpec(steps=2, batch_size=8, sequence_length=8)
    assert [batch.ids.shape[0] for batch in batches(training, spec)] == [8, 8]


def test_training_text_without_a_sequence_is_refused_with_a_sentence() -> None:
    spec = RecoverySpec(steps=1)
    with pytest.raises(DataTooShortError, match="Give a longer training text"):
        next(batches(TrainingSet.of_text(torch.empty(0, 128, dtype=torch.int64)), spec))


def test_a_loss_that_is_no_number_names_its_step_and_leaves_eval_mode() -> None:
    model = Scripted([2.0, 1.0, float("nan"), 1.0])
    spec = RecoverySpec(steps=4, batch_size=2, sequence_length=8)
    trainer = Trainer(model, spec, PeakMemory(model))
    training = TrainingSet.of_text(torch.zeros(4, 8, dtype=torch.int64))
    with pytest.raises(NonFiniteLossError, match="step 3 of 4 is nan"):
        trainer.run(training, silent, never)
    assert not model.training


def test_the_estimate_counts_weights_and_grows_with_the_batch(tiny_layout: ModelLayout) -> None:
    plan = PrecisionPlan.uniform(tiny_layout, "nf4")
    small = estimated_bytes(tiny_layout, plan, RecoverySpec(batch_size=1), torch.float32)
    large = estimated_bytes(tiny_layout, plan, RecoverySpec(batch_size=8), torch.float32)
    assert plan_bytes(tiny_layout, plan, precision_formats()) < small < large
    load = TrainingLoad(rank=8, batch_size=8, sequence_length=128, compute_bytes=4)
    assert large == training_bytes_estimate(tiny_layout, plan, precision_formats(), load).total


def test_the_peak_counts_weights_optimiser_state_and_what_the_graph_keeps() -> None:
    model = torch.nn.Linear(8, 4, bias=False)
    optimizer = torch.optim.AdamW(model.parameters())
    memory = PeakMemory(model)
    inputs = torch.ones(16, 8)
    for _ in range(2):
        with memory.forward(optimizer):
            loss = model(inputs).exp().sum()
        loss.backward()
        optimizer.step()
    weights, moments, step_counter = 4 * 8 * 4, 2 * 4 * 8 * 4, 4
    kept = 4 * 16 * 8 + 4 * 16 * 4  # the inputs of the Linear, the outputs of exp
    assert memory.peak_bytes == weights + moments + step_counter + kept
