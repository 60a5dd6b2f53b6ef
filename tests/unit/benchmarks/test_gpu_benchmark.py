"""The benchmark of a card, run at its tiny shape on the CPU."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    path = list(sys.path)
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("gpu")
    sys.path[:] = path


@pytest.fixture(scope="module")
def report(benchmark: ModuleType) -> Any:
    return benchmark.measure(argparse.Namespace(quick=True, device="cpu", shape=None))


def test_every_plan_is_packed_trained_and_timed(report: Any) -> None:
    assert len(report.rows) == 5
    assert {row["shape"] for row in report.rows} == {"tiny"}
    for row in report.rows:
        assert row["training_peak_bytes"] > row["packed_bytes"] > 0
        assert row["seconds_per_micro_batch"] > 0
        assert row["decode_tokens_per_second"] > 0


def test_fewer_bits_take_less_memory_to_train(report: Any) -> None:
    sixteen, four = report.rows[0], report.rows[1]
    assert sixteen["plan"].startswith("16 bit")
    assert sixteen["training_over_16_bit"] == 1
    assert four["training_peak_bytes"] < sixteen["training_peak_bytes"]
    assert four["packed_bytes"] < sixteen["packed_bytes"] / 2


def test_a_checkpoint_made_on_the_cpu_holds_the_same_weights_when_opened(report: Any) -> None:
    assert [target.value for target in report.targets] == [0.0]
    assert all(target.is_met for target in report.targets)


def test_the_real_shape_is_that_of_a_7b_llama(benchmark: ModuleType) -> None:
    config = benchmark.LlamaConfig(**benchmark._SHAPES["7b"])
    layout = benchmark.llama.layout(config.to_dict())
    linears = sum(linear.in_features * linear.out_features for linear in layout.linears)
    beside = 2 * config.vocab_size * config.hidden_size
    assert linears + beside == pytest.approx(6.74e9, rel=0.01)


def test_of_four_layers_one_has_eight_bits(benchmark: ModuleType) -> None:
    layout = benchmark.llama.layout(benchmark.LlamaConfig(**benchmark._SHAPES["7b"]).to_dict())
    plan = benchmark.plans(layout)["int8 in every fourth layer"]
    eight = {name for name, precision in plan.precisions.items() if precision == "int8"}
    assert len(eight) == len(plan.precisions) / 4
