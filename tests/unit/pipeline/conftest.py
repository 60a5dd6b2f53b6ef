"""A run on a random model that is small enough to go down the line again and again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import LlamaConfig

from qpruner_core.domain.record import RunRecord
from qpruner_core.domain.spec import (
    DataSpec,
    ImportanceSpec,
    ModelSpec,
    PruningSpec,
    RecoverySpec,
    RunSpec,
    SearchSpec,
)
from qpruner_core.models.device import pick_device
from qpruner_core.pipeline import Line
from qpruner_core.store.records import RunStore


@pytest.fixture
def deep_spec(tiny_config: LlamaConfig, request: pytest.FixtureRequest) -> RunSpec:
    """Four layers, so that one can be dropped, at precisions that carry any width."""
    tiny_config.num_hidden_layers = 4
    folder: Path = request.getfixturevalue("tiny_folder")
    data: DataSpec = request.getfixturevalue("tiny_data")
    return RunSpec(
        model=ModelSpec(source=str(folder)),
        data=data,
        importance=ImportanceSpec(criteria=("magnitude", "wanda")),
        pruning=PruningSpec(
            ratio=0.4, criterion="wanda", scope="per-layer", protect_first=0, protect_last=0
        ),
        search=SearchSpec(
            memory_budget="0.9", n_trials=2, strategy="random", precisions=("int8", "bf16")
        ),
        recovery=RecoverySpec(steps=2, rank=2, batch_size=2, sequence_length=16),
    )


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "home")


@pytest.fixture
def start(store: RunStore) -> Callable[[RunSpec], Line]:
    """Begin a run."""

    def make(spec: RunSpec) -> Line:
        return Line(store, store.create(spec).run_id, pick_device("cpu"))

    return make


@pytest.fixture
def go() -> Callable[..., RunRecord]:
    """Run steps and return the record."""

    def run(line: Line, spec: RunSpec, *steps: str) -> RunRecord:
        line.begin(spec, steps)
        for step in steps:
            line.run(step)
        return line.record()

    return run


@pytest.fixture
def parent_spec(tiny_config: LlamaConfig, request: pytest.FixtureRequest) -> RunSpec:
    """Four layers, of which the first is protected, and an MLP of widths that 4 bit carries."""
    tiny_config.num_hidden_layers = 4
    tiny_config.intermediate_size = 256
    folder: Path = request.getfixturevalue("tiny_folder")
    data: DataSpec = request.getfixturevalue("tiny_data")
    return RunSpec(model=ModelSpec(source=str(folder)), data=data, name="table")
