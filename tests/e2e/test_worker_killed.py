"""SIGKILL of the worker amid a study: it goes on by itself, nothing is lost or doubled."""

import os
import signal
import sys
from pathlib import Path
from threading import Event as Flag
from time import monotonic

import pytest

from app.launch import Patience, WorkerKeeper
from qpruner_core.domain.record import STEPS
from qpruner_core.domain.spec import ImportanceSpec, ModelSpec, PruningSpec, RunSpec, SearchSpec
from qpruner_core.jobs import Jobs
from qpruner_core.search.reading import TrialReader
from qpruner_core.store.records import RunStore

N_TRIALS = 14
KILL_AFTER = (2, 7)
"""Finished trials after which the worker is killed; the next kill waits for its own number."""
ENDED = ("done", "failed", "cancelled")
PATIENCE_SECONDS = 240.0

pytestmark = pytest.mark.slow


@pytest.fixture
def spec(tiny_config, request):
    """A study of single Linears, large enough that no plan has to come up twice."""
    tiny_config.head_dim = 32
    folder, data = request.getfixturevalue("tiny_folder"), request.getfixturevalue("tiny_data")
    return RunSpec(
        model=ModelSpec(source=str(folder)),
        data=data,
        importance=ImportanceSpec(criteria=("magnitude", "mutual_information")),
        pruning=PruningSpec(
            ratio=0.25,
            criterion="magnitude",
            scope="per-layer",
            protect_first=0,
            protect_last=1,
        ),
        search=SearchSpec(memory_budget="0.9", n_trials=N_TRIALS, tie="linear", strategy="random"),
    )


class Site:
    """A home folder with a real worker that is started again whenever it dies."""

    def __init__(self, home: Path) -> None:
        self.store, self.jobs = RunStore(home), Jobs(home)
        command = (sys.executable, "-m", "qpruner_core.worker", "--device", "cpu")
        environment = {"QPRUNER_HOME": str(home), "OMP_NUM_THREADS": "1"}
        patience = Patience(first_pause=0.1, quick_deaths=99)
        self._keeper = WorkerKeeper(command, environment, patience)

    def until(self, holds, what):
        """Look after the worker until something holds; return what it said."""
        limit = monotonic() + PATIENCE_SECONDS
        while not (found := holds()):
            assert monotonic() < limit, f"waited too long for {what}"
            self._keeper.look()
            Flag().wait(0.02)
        return found

    def finished(self, run_id):
        """Return number -> metrics of the trials that the storage holds as complete."""
        told = [event.progress.message for event in self.store.events(run_id)]
        if not any(words.startswith("trial") for words in told):
            return {}
        name = self.store.read(run_id).study_name
        trials = TrialReader(self.store.study_url(), name).read()
        return {trial.number: trial.metrics for trial in trials if trial.state == "complete"}

    def search_is_past(self, run_id, n_trials):
        return lambda: (found := self.finished(run_id)) and len(found) > n_trials and found

    def kill_worker(self):
        worker = self.jobs.workers()[0]
        os.kill(worker.pid, signal.SIGKILL)
        return worker.pid

    def close(self):
        self._keeper.stop()
        self.jobs.close()


@pytest.fixture
def site(tmp_path):
    found = Site(tmp_path / "home")
    yield found
    found.close()


def test_a_study_whose_worker_is_killed_again_and_again_equals_one_left_in_peace(site, spec):
    run_id = site.store.create(spec).run_id
    job_id = site.jobs.start_line(run_id, STEPS[:6], spec)
    known, killed = {}, set()
    for n_trials in KILL_AFTER:
        found = site.until(site.search_is_past(run_id, n_trials), f"more than {n_trials} trials")
        killed.add(site.kill_worker())
        assert {number: found[number] for number in known} == known
        known = site.finished(run_id)
    job = site.until(lambda: (j := site.jobs.get(job_id)).status in ENDED and j, "the job")
    assert (job.status, job.error) == ("done", "")
    assert len(killed) == len(KILL_AFTER)
    assert site.jobs.workers()[0].pid not in killed

    search = site.store.read(run_id).search
    assert [trial.number for trial in search.trials] == list(range(N_TRIALS))
    assert {trial.state for trial in search.trials} == {"complete"}
    assert len({trial.plan.key for trial in search.trials}) == N_TRIALS
    assert len({trial.name for trial in search.baselines}) == len(search.baselines)
    assert site.finished(run_id).keys() == set(range(N_TRIALS))
    after = site.finished(run_id)
    assert {number: after[number] for number in known} == known

    peaceful = site.store.create(spec).run_id
    job_id = site.jobs.start_line(peaceful, STEPS[:6], spec)
    site.until(lambda: site.jobs.get(job_id).status == "done", "the job left in peace")
    expected = site.store.read(peaceful).search
    assert [t.plan for t in search.trials] == [t.plan for t in expected.trials]
    assert [t.metrics.loss for t in search.trials] == [t.metrics.loss for t in expected.trials]
    assert [t.plan for t in search.baselines] == [t.plan for t in expected.baselines]
    assert search.front == expected.front
