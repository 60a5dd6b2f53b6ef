"""Records of earlier versions open, and what is new in a record survives a fork."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qpruner_core.domain.record import Comparison, RunRecord
from qpruner_core.domain.spec import ModelSpec, PruningSpec, RunSpec
from qpruner_core.store.codec import from_json
from qpruner_core.store.records import RunStore

SPEC = RunSpec(model=ModelSpec(source="demo"))
OLD = Path(__file__).with_name("record_before_layers_could_leave.json").read_bytes()
"""Written when a pruning only removed units: no biases, no comparison, no rounds."""


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "home")


def test_a_record_from_before_layers_could_leave_still_opens(store):
    fresh = store.create(SPEC)
    text = OLD.replace(b"20260101-000000-demo-0000", fresh.run_id.encode())
    (store.folder(fresh.run_id) / "record.json").write_bytes(text)
    record = store.read(fresh.run_id)
    assert record.next_step == "quantize"
    assert record.comparison is None
    assert record.score.agreement == ()
    assert (record.prune.biases, record.prune.plan.dropped_layers) == ("", ())
    assert record.prune.plan.kept == {"model.layers.0.mlp": (0, 2)}
    assert record.spec.pruning.layer_ratios == {}
    assert record.spec.pruning.iterations == 1
    store.write(record)
    assert store.read(fresh.run_id) == record


def test_the_study_of_an_older_record_keeps_its_name():
    """Measured trials are found again: nothing new stands in the fingerprint of old runs."""
    assert from_json(RunRecord, OLD).study_name == "20260101-000000-demo-0000-35f8be176037"


def test_a_fork_keeps_the_values_of_biases_and_what_was_compared_while_the_scores_hold(store):
    record = store.create(SPEC)
    values = {"model.layers.0.mlp.down_proj": np.ones(8, dtype=np.float32)}
    artifact = store.write_arrays(record.run_id, "biases", values)
    old = from_json(RunRecord, OLD)
    record = replace(
        record,
        load=old.load,
        score=replace(old.score, unit_scores=artifact),
        prune=replace(old.prune, biases=artifact),
        comparison=Comparison(spec=PruningSpec(), dense=old.prune.before, rows=()),
    )
    store.write(record)
    fork = store.fork(record.run_id, "quantize")
    assert fork.comparison == record.comparison
    assert store.read_arrays(fork.run_id, fork.prune.biases).keys() == values.keys()
    assert store.fork(record.run_id, "prune").comparison == record.comparison
    assert store.fork(record.run_id, "score").comparison is None
