"""Records of earlier versions open, and what is new in a record survives a fork."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qpruner_core.domain.device_memory import TrainingLoad
from qpruner_core.domain.record import Comparison, RunRecord
from qpruner_core.domain.spec import ModelSpec, PruningSpec, RecoverySpec, RunSpec
from qpruner_core.search.costs import training_load
from qpruner_core.store import uploads
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


def weighing_training(**recovery: object) -> str:
    """Name of the old record's study, were it a search that weighs training memory."""
    record = from_json(RunRecord, OLD)
    search = replace(record.spec.search, cost="training_memory")
    spec = replace(record.spec, search=search, recovery=RecoverySpec(**recovery))
    return replace(record, spec=spec).study_name


def test_the_study_of_an_older_search_by_training_memory_keeps_its_name():
    assert weighing_training() == "20260101-000000-demo-0000-1c1edc63b4e1"


@pytest.mark.parametrize(
    "changed",
    [
        {"rank": 4},
        {"batch_size": 4},
        {"sequence_length": 64},
        {"micro_batch_size": 1},
        {"gradient_checkpointing": True},
        {"optimizer": "adamw_8bit"},
        {"dropout": 0.1},
        {"targets": ("q_proj",)},
        {"layer_ranks": {"0": 2}},
    ],
    ids=str,
)
def test_every_setting_that_training_memory_depends_on_begins_a_study_of_its_own(changed):
    def load(spec: RecoverySpec) -> TrainingLoad:
        return training_load(spec, 2)

    assert load(RecoverySpec(**changed)) != load(RecoverySpec())
    assert weighing_training(**changed) != weighing_training()


def test_what_training_memory_does_not_depend_on_goes_on_with_the_same_study():
    changed = {"learning_rate": 1e-4, "seed": 3, "steps": 5, "weight_decay": 0.1, "alpha": 1.0}
    assert weighing_training(**changed) == weighing_training()
    assert weighing_training(dropout=0.1) == weighing_training(dropout=0.2)


def test_an_uploaded_training_file_has_one_name_in_a_run_and_in_its_copy(store):
    record = store.create(SPEC)
    path = uploads.keep(store.folder(record.run_id), "one.txt", b"one\n", lambda path: None)
    asked = replace(SPEC, recovery=RecoverySpec(training=str(path)))
    store.write(replace(record, spec=asked))
    copy = store.fork(record.run_id, "recover")
    assert copy.spec.recovery.training != str(path)
    assert copy.spec.recovery_in_trials() == asked.recovery_in_trials()
    (hashed,) = (part for part in path.parts if len(part) == 16 and part.isalnum())
    assert asked.recovery_in_trials()["training"] == f"uploads/{hashed}/one.txt"


def test_another_file_of_a_person_keeps_its_whole_path(tmp_path):
    for name in ("one.txt", "uploads/one.txt", "uploads/mine/one.txt"):
        asked = replace(SPEC, recovery=RecoverySpec(training=str(tmp_path / name)))
        assert asked.recovery_in_trials()["training"] == str(tmp_path / name)


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
