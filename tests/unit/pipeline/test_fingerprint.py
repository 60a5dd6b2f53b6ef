"""Hashes of a person's files, however their paths are written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qpruner_core.domain.record import RunRecord
from qpruner_core.domain.spec import DataSpec, ModelSpec, RecoverySpec, RunSpec
from qpruner_core.pipeline.fingerprint import Fingerprints
from qpruner_core.store.records import RunStore


@pytest.fixture
def record(store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunRecord:
    """A run whose texts lie in the person's home, and are named from there."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "t.txt").write_text("one")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "a.jsonl").write_text("{}")
    data = DataSpec(heldout="~/t.txt", tasks="~/tasks")
    recovery = RecoverySpec(training="~/t.txt")
    return store.create(RunSpec(model=ModelSpec(source="demo"), data=data, recovery=recovery))


def test_a_text_named_from_home_is_hashed_as_by_its_whole_path(store, record, tmp_path):
    whole = replace(
        record.spec,
        data=DataSpec(heldout=str(tmp_path / "t.txt"), tasks=str(tmp_path / "tasks")),
        recovery=RecoverySpec(training=str(tmp_path / "t.txt")),
    )
    other = replace(record, spec=whole)
    hashes = Fingerprints(store, record.run_id)
    assert hashes.training_text(record) == hashes.training_text(other) != ""
    assert hashes.evaluation_text(record) == hashes.evaluation_text(other) != ""


@pytest.mark.parametrize("name", ["t.txt", "tasks/a.jsonl"])
def test_an_edit_of_what_is_named_from_home_is_noticed(store, record, tmp_path, name):
    hashes = Fingerprints(store, record.run_id)
    before = hashes.training_text(record), hashes.evaluation_text(record)
    (tmp_path / name).write_text("another text")
    after = hashes.training_text(record), hashes.evaluation_text(record)
    assert after[1] != before[1]
    assert (after[0] != before[0]) == (name == "t.txt")
