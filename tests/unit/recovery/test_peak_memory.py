from __future__ import annotations

import torch

from qpruner_core.catalog import precision_formats
from qpruner_core.domain.device_memory import TrainingLoad, training_bytes_estimate
from qpruner_core.domain.footprint import plan_bytes
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.recovery.memory import PeakMemory, estimated_bytes
from qpruner_core.recovery.recomputing import recomputed

WEIGHTS = 4 * 8 * 8
ROWS = 4 * 16 * 8
"""Bytes of 16 rows of 8 numbers."""


def test_the_estimate_counts_weights_and_grows_with_the_micro_batch(
    tiny_layout: ModelLayout,
) -> None:
    plan = PrecisionPlan.uniform(tiny_layout, "nf4")
    spec = RecoverySpec(batch_size=8, micro_batch_size=1)
    small = estimated_bytes(tiny_layout, plan, spec, torch.float32)
    large = estimated_bytes(tiny_layout, plan, RecoverySpec(batch_size=8), torch.float32)
    assert plan_bytes(tiny_layout, plan, precision_formats()) < small < large
    load = TrainingLoad(rank=8, batch_size=8, sequence_length=128, compute_bytes=4)
    assert large == training_bytes_estimate(tiny_layout, plan, precision_formats(), load).total


def test_the_peak_counts_weights_optimiser_state_and_what_the_graph_keeps() -> None:
    model = torch.nn.Linear(8, 8, bias=False)
    optimizer = torch.optim.AdamW(model.parameters())
    memory = PeakMemory(model, optimizer=optimizer)
    inputs = torch.ones(16, 8)
    for _ in range(2):
        with memory.forward():
            loss = model(inputs).exp().sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    moments, step_counter = 2 * WEIGHTS, 4
    kept = ROWS + ROWS  # the inputs of the Linear, the outputs of exp
    assert memory.peak_bytes == WEIGHTS + moments + step_counter + kept


def test_gradients_that_wait_for_others_are_counted() -> None:
    model = torch.nn.Linear(8, 8, bias=False)
    memory = PeakMemory(model)
    for _ in range(2):
        with memory.forward():
            loss = model(torch.ones(16, 8)).sum()
        loss.backward()
    assert memory.peak_bytes == WEIGHTS + WEIGHTS + ROWS


def test_what_is_computed_again_counts_beside_what_is_still_kept_by_then() -> None:
    model = torch.nn.Linear(8, 8, bias=False)
    memory = PeakMemory(model)
    inputs = torch.ones(16, 8)

    def piece(entering: torch.Tensor) -> torch.Tensor:
        return model(entering).exp().exp()  # keeps its input and two results

    with memory.forward():
        first = recomputed(piece, inputs, memory)
        second = recomputed(piece, first, memory)
        del first
    assert memory.peak_bytes == WEIGHTS + 2 * ROWS
    second.backward(torch.ones_like(second))
    # The second piece: both inputs and two results. The first finds one input fewer, and the
    # gradient of the weight.
    assert memory.peak_bytes == WEIGHTS + 4 * ROWS
