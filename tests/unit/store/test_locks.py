"""A run has one writer at a time, be it another process or another thread; a death frees it."""

import subprocess
import sys

import pytest

from qpruner_core.domain.spec import ModelSpec, RunSpec
from qpruner_core.errors import BadInputError, NotReadyError
from qpruner_core.store.records import RunStore

SPEC = RunSpec(model=ModelSpec(source="demo"))
HOLD = """
import signal, sys
from pathlib import Path
from qpruner_core.store.records import RunStore
with RunStore(Path(sys.argv[1])).writing(sys.argv[2]):
    sys.stdout.write("here\\n")
    sys.stdout.flush()
    signal.pause()
"""


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path / "home")


def test_a_second_writer_is_refused_until_the_first_is_done(store):
    run_id = store.create(SPEC).run_id
    with store.writing(run_id):
        with pytest.raises(NotReadyError, match=f"The run {run_id} is being written by process"):
            store.writing(run_id).__enter__()
        store.write(store.read(run_id))
    with store.writing(run_id):
        assert (store.folder(run_id) / ".lock").exists()


def test_runs_do_not_stand_in_each_others_way(store):
    first, second = (store.create(SPEC).run_id for _ in range(2))
    with store.writing(first), store.writing(second):
        assert {record.run_id for record in store.list()} == {first, second}


def test_a_killed_writer_leaves_the_run_free(store):
    run_id = store.create(SPEC).run_id
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(store.home), run_id], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "here\n"
        with pytest.raises(NotReadyError, match=f"process {other.pid} on "):
            store.writing(run_id).__enter__()
    finally:
        other.kill()
        other.communicate()
    with store.writing(run_id):
        assert store.read(run_id).run_id == run_id


def test_a_run_that_is_not_there_cannot_be_written(store):
    run_id = store.create(SPEC).run_id
    store.delete(run_id)
    with pytest.raises(BadInputError, match="There is no run"), store.writing(run_id):
        pass


def test_a_fork_of_a_run_that_is_being_written_is_free(store):
    run_id = store.create(SPEC).run_id
    with store.writing(run_id), store.writing(store.fork(run_id, "load").run_id):
        assert len(store.list()) == 2
