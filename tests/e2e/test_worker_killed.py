"""SIGKILL of the worker amid a study: it goes on by itself, nothing is lost or doubled."""

import pytest
from kept_worker import Site

from qpruner_core.domain.record import STEPS
from qpruner_core.domain.spec import ImportanceSpec, ModelSpec, PruningSpec, RunSpec, SearchSpec
from qpruner_core.search.reading import TrialReader

N_TRIALS = 14
KILL_AFTER = (2, 7)
"""Finished trials after which the worker is killed; the next kill waits for its own number."""

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


def finished(site, run_id):
    """Return number -> metrics of the trials that the storage holds as complete."""
    told = [event.progress.message for event in site.store.events(run_id)]
    if not any(words.startswith("trial") for words in told):
        return {}
    name = site.store.read(run_id).study_name
    trials = TrialReader(site.store.study_url(), name).read()
    return {trial.number: trial.metrics for trial in trials if trial.state == "complete"}


def search_is_past(site, run_id, n_trials):
    return lambda: (found := finished(site, run_id)) and len(found) > n_trials and found


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
        found = site.until(search_is_past(site, run_id, n_trials), f"more than {n_trials} trials")
        killed.add(site.kill_worker())
        assert {number: found[number] for number in known} == known
        known = finished(site, run_id)
    job = site.ended(job_id)
    assert (job.status, job.error) == ("done", "")
    assert len(killed) == len(KILL_AFTER)
    assert site.jobs.workers()[0].pid not in killed

    search = site.store.read(run_id).search
    assert [trial.number for trial in search.trials] == list(range(N_TRIALS))
    assert {trial.state for trial in search.trials} == {"complete"}
    assert len({trial.plan.key for trial in search.trials}) == N_TRIALS
    assert len({trial.name for trial in search.baselines}) == len(search.baselines)
    assert finished(site, run_id).keys() == set(range(N_TRIALS))
    after = finished(site, run_id)
    assert {number: after[number] for number in known} == known

    peaceful = site.store.create(spec).run_id
    job_id = site.jobs.start_line(peaceful, STEPS[:6], spec)
    site.until(lambda: site.jobs.get(job_id).status == "done", "the job left in peace")
    expected = site.store.read(peaceful).search
    assert [t.plan for t in search.trials] == [t.plan for t in expected.trials]
    assert [t.metrics.loss for t in search.trials] == [t.metrics.loss for t in expected.trials]
    assert [t.plan for t in search.baselines] == [t.plan for t in expected.baselines]
    assert search.front == expected.front
