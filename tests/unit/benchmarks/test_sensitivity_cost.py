"""What the benchmark of sensitivities compares gives the same numbers on both sides."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from qpruner_core.models.architectures import llama
from qpruner_core.models.device import Device
from qpruner_core.quantization.bank import Bank
from qpruner_core.quantization.sensitivity import measure
from qpruner_core.search.space import SearchSpace

FOLDER = Path(__file__).parents[3] / "benchmarks"
CPU = Device(kind="cpu", index=0, name="cpu", compute_dtype=torch.float32)
IDS = torch.arange(48).reshape(3, 16)


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    path = list(sys.path)
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("sensitivity_cost")
    sys.path[:] = path


@pytest.fixture
def subject(benchmark: ModuleType) -> Any:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        initializer_range=0.1,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    suite: Any = None  # sensitivities are measured on calibration text alone
    return benchmark.Subject(model, llama.layout(config.to_dict()), suite, IDS, CPU)


def test_the_naive_pass_finds_what_a_cell_holds(benchmark: ModuleType, subject: Any) -> None:
    bank = Bank(subject.model, subject.layout, benchmark.PRECISIONS, CPU)
    units = SearchSpace(subject.layout, benchmark.PRECISIONS, "block").units
    naive = benchmark.Naive(subject, IDS)
    reference, nothing = naive.one_pass()
    assert nothing == 0.0
    found = measure(bank, units, IDS)
    assert found.loss_16_bit == pytest.approx(reference, abs=1e-6)
    for cell in found.cells:
        for name in units[cell.unit]:
            bank.set(name, cell.precision)
        loss, divergence = naive.one_pass()
        bank.restore()
        assert cell.loss_increase == pytest.approx(loss - reference, abs=2e-6)
        assert cell.kl == pytest.approx(divergence, rel=1e-2, abs=5e-7)


def test_the_layers_from_one_on_give_the_loss_of_the_whole(
    benchmark: ModuleType, subject: Any
) -> None:
    naive = benchmark.Naive(subject, IDS)
    starts = benchmark.starting_inputs(subject, IDS)
    losses = [naive.loss_alone(inputs, layer) / len(IDS) for layer, inputs in enumerate(starts)]
    assert losses == pytest.approx([naive.one_pass()[0]] * 2, abs=1e-6)


def test_every_cell_is_timed_on_every_side(benchmark: ModuleType, subject: Any) -> None:
    bank = Bank(subject.model, subject.layout, benchmark.PRECISIONS, CPU)
    units = SearchSpace(subject.layout, benchmark.PRECISIONS, "layer").units
    turns = benchmark.in_turns(subject, bank, units, IDS)
    assert [len(side) for side in (turns.ours, turns.naive, turns.loss_alone)] == [6, 6, 6]
    assert min(*turns.ours, *turns.naive, *turns.loss_alone) > 0.0


def test_a_row_holds_medians_over_rounds(benchmark: ModuleType) -> None:
    rounds = [
        benchmark.Turns(ours=[1.0, 2.0], naive=[4.0, 4.0], loss_alone=[1.0, 1.0]),
        benchmark.Turns(ours=[2.0, 9.0], naive=[4.0, 90.0], loss_alone=[1.0, 1.0]),
        benchmark.Turns(ours=[7.0, 3.0], naive=[3.0, 5.0], loss_alone=[7.0, 1.0]),
    ]
    row = benchmark.row("layer", rounds)
    assert row["total_seconds"] == 2.0 + 3.0
    assert row["over_naive"] == 5.0 / (2 * 4.0)
    assert row["over_loss_alone"] == 5.0 / 2.0
    assert (row["cells"], row["rounds"]) == (2, 3)
