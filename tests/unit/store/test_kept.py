from __future__ import annotations

from pathlib import Path

import pytest

from qpruner_core.domain.spec import ModelSpec, RunSpec
from qpruner_core.errors import BadInputError
from qpruner_core.store.kept import kept_folder
from qpruner_core.store.records import RunStore


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "home")


def test_a_kept_folder_outlives_the_next_attempt_of_a_step_and_leaves_with_the_run(store):
    run_id = store.create(RunSpec(model=ModelSpec(source="demo"))).run_id
    folder = kept_folder(store, run_id, "adapter-checkpoint")
    assert not folder.exists()
    folder.mkdir()
    store.artifact_folder(run_id, "adapter")
    assert kept_folder(store, run_id, "adapter-checkpoint") == folder
    assert folder.is_dir()
    store.delete(run_id)
    assert not folder.exists()


@pytest.mark.parametrize("name", ["../out", "a/b", ""])
def test_names_that_lead_elsewhere_and_strange_runs_are_refused(store, name):
    run_id = store.create(RunSpec(model=ModelSpec(source="demo"))).run_id
    with pytest.raises(BadInputError, match="no plain file name"):
        kept_folder(store, run_id, name)
    with pytest.raises(BadInputError, match="There is no run"):
        kept_folder(store, "20260101-000000-demo-0000", "adapter")
