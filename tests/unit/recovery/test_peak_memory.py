from __future__ import annotations

import pytest
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
FEW = 16
"""Bytes of single numbers, such as a loss."""


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


def test_the_peak_counts_weights_optimiser_state_and_what_is_alive_at_a_time() -> None:
    model = torch.nn.Linear(8, 8, bias=False)
    optimizer = torch.optim.AdamW(model.parameters())
    memory = PeakMemory(model, optimizer=optimizer)
    for _ in range(2):
        with memory.watching(16, 16):
            loss = model(torch.ones(16, 8)).exp().sum()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    moments, step_counter = 2 * WEIGHTS, 4
    rows = 3 * ROWS  # input and output of the Linear beside exp; then input, exp and its gradient
    assert memory.peak_bytes == pytest.approx(WEIGHTS + moments + step_counter + rows, abs=FEW)


def test_gradients_that_wait_for_others_are_counted() -> None:
    model = torch.nn.Linear(8, 8, bias=False)
    memory = PeakMemory(model)
    peaks = []
    for _ in range(2):
        with memory.watching(16, 16):
            model(torch.ones(16, 8)).exp().sum().backward()
        peaks.append(memory.peak_bytes)
    assert peaks[1] == pytest.approx(peaks[0] + WEIGHTS, abs=FEW)


def test_a_temporary_tensor_counts_at_its_moment_and_no_longer() -> None:
    model = torch.nn.Linear(8, 8, bias=False)
    memory = PeakMemory(model)
    with memory.watching(1, 1):
        kept = [torch.ones(2000).sum(), torch.ones(1000).sum()]
    assert memory.peak_bytes == pytest.approx(WEIGHTS + 4 * 2000, abs=FEW)
    assert len(kept) == 2


def test_a_pass_is_watched_only_where_it_may_take_more_than_those_before() -> None:
    memory = PeakMemory(torch.nn.Linear(8, 8, bias=False))
    sizes = []
    for tokens, learned, numbers in ((4, 4, 100), (4, 4, 300), (4, 2, 300), (2, 5, 200)):
        with memory.watching(tokens, learned):
            torch.ones(numbers)
        sizes.append((memory.peak_bytes - WEIGHTS) // 4)
    assert sizes == [100, 100, 100, 200]


def test_what_is_computed_again_counts_beside_what_is_still_kept_by_then() -> None:
    model = torch.nn.Linear(8, 8, bias=False)
    memory = PeakMemory(model)

    def piece(entering: torch.Tensor) -> torch.Tensor:
        # Keeps its input and three results.
        found: torch.Tensor = model(entering).exp().exp().exp()
        return found

    with memory.watching(16, 16):
        second = recomputed(piece, recomputed(piece, torch.ones(16, 8)))
        second.sum().backward()
    # Two inputs, the final result, three recomputed ones and two gradients, beside the weight's.
    assert memory.peak_bytes == pytest.approx(2 * WEIGHTS + 8 * ROWS, abs=FEW)
