"""The paper's table on a model that is small enough to make it again and again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import LlamaConfig

from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.domain.reproduction import VARIANTS, Reproduction, ReproductionSpec
from qpruner_core.domain.spec import DataSpec, ModelSpec, RunSpec
from qpruner_core.pipeline import Line
from qpruner_core.store.records import RunStore

RECOVERY = RecoverySpec(
    steps=3,
    rank=2,
    alpha=4.0,
    batch_size=2,
    micro_batch_size=1,
    sequence_length=16,
    checkpoint_steps=1,
    initialization="loftq",
)
SPEC = ReproductionSpec(
    ratios=(0.2, 0.4), recovery=RECOVERY, n_trials=3, n_startup=2, recover_steps=1
)


@pytest.fixture
def parent_spec(tiny_config: LlamaConfig, request: pytest.FixtureRequest) -> RunSpec:
    """Four layers, of which the first is protected, and an MLP of widths that 4 bit carries."""
    tiny_config.num_hidden_layers = 4
    tiny_config.intermediate_size = 256
    folder: Path = request.getfixturevalue("tiny_folder")
    data: DataSpec = request.getfixturevalue("tiny_data")
    return RunSpec(model=ModelSpec(source=str(folder)), data=data, name="table")


def make(line: Line, spec: ReproductionSpec) -> Reproduction:
    line.reproduce_begin(spec)
    while line.reproduce_next("somebody"):
        pass
    found = line.record().reproduction
    assert found is not None
    return found


def test_the_papers_table_has_every_row_once_and_in_order(
    parent_spec: RunSpec, start: Callable[[RunSpec], Line], store: RunStore
) -> None:
    line = start(parent_spec)
    table = make(line, SPEC)
    wanted = [(ratio, name) for ratio in SPEC.ratios for name in VARIANTS]
    assert [(row.ratio, row.variant) for row in table.rows] == wanted
    assert table.is_complete
    assert table.dense is not None
    for row in table.rows:
        child = store.read(row.run_id)
        assert child.prune is not None
        assert child.prune.spec.ratio == row.ratio
        assert child.prune.spec.criterion == "taylor"
        assert replace(row.recovery.spec, initialization="loftq") == RECOVERY
        if row.variant in ("QPruner-2", "QPruner-3"):
            assert child.search is not None
            assert row.weight_bytes <= child.search.budget_bytes
            assert set(row.plan.precisions.values()) <= {"nf4", "int8"}
