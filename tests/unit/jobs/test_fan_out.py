"""One search over several real worker processes: the same plans as one worker measures, none
doubled, whoever dies; paused, resumed and stopped as a whole.
"""

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest
from workplace import SPEC, STUDYING, Workplace, until

from qpruner_core.domain.record import STEPS
from qpruner_core.domain.spec import ModelSpec, RunSpec, SearchSpec
from qpruner_core.errors import BadInputError
from qpruner_core.search.reading import TrialReader

N_TRIALS = 12
RANDOM = RunSpec(
    model=ModelSpec(source="demo"), search=SearchSpec(strategy="random", n_trials=N_TRIALS)
)
TRIALS = [f"trial-{number}" for number in range(N_TRIALS)]


@pytest.fixture
def place(tmp_path):
    """Workers that count instead of computing; a search has a baseline and three trials."""
    workplace = Workplace(tmp_path / "home")
    yield workplace
    workplace.close()


@pytest.fixture
def studying(tmp_path):
    """Workers that ask a real study in the home folder."""
    workplace = Workplace(tmp_path / "home", STUDYING)
    yield workplace
    workplace.close()


@pytest.fixture
def served(tmp_path):
    """The same with jobs and studies in PostgreSQL."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    if not found:
        pytest.skip("PostgreSQL's server is not installed on this machine (no pg_ctl)")
    folder = Path(tempfile.mkdtemp(prefix="qpruner-postgres-"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    who = {"user": "postgres", "cwd": folder} if os.geteuid() == 0 else {"cwd": folder}
    if os.geteuid() == 0:  # the server refuses to be root
        shutil.chown(folder, "postgres", "postgres")
    options = f"-p {port} -k {folder} -h 127.0.0.1 -F"
    data, log = str(folder / "data"), str(folder / "log")
    make = [found[-1].with_name("initdb"), "-U", "postgres", "-A", "trust", "-D", data]
    subprocess.run(make, check=True, capture_output=True, **who)
    begin = [found[-1], "-D", data, "-w", "-l", log, "-o", options, "start"]
    subprocess.run(begin, check=True, stdout=subprocess.DEVNULL, **who)
    workplace = Workplace(
        tmp_path / "home", STUDYING, f"postgresql://postgres@127.0.0.1:{port}/postgres"
    )
    yield workplace
    workplace.close()
    end = [found[-1], "-D", data, "-m", "immediate", "-w", "stop"]
    subprocess.run(end, check=True, stdout=subprocess.DEVNULL, **who)
    shutil.rmtree(folder)


def start_two(place):
    """Start two workers and wait until both are there; return the processes by seat."""
    found = {seat: place.start(COUNTING_DEVICE=seat) for seat in ("cpu", "cpu:1")}
    until(lambda: len(place.jobs.workers()) == 2, "two workers")
    return found


def search(place, spec=SPEC, workers=2):
    """Put a search alone on the queue; return run and job."""
    run_id = place.run(spec)
    return run_id, place.jobs.start_line(run_id, ("search",), spec, workers=workers)


def measured_by(place, run_id):
    """Return trial -> who measured it, from the lines that the workers wrote."""
    words = place.lines(run_id, "by.txt")
    return dict(zip(words[::2], words[1::2], strict=True))


def trials_of(place, run_id):
    return TrialReader(place.store.study_url(), place.store.read(run_id).study_name).read()


def trials_job(place, run_id):
    return next(job for job in place.jobs.list(run_id) if job.kind == "trials")


def pair(place, run_id, first="slot-1", second="slot-2"):
    """Hold two trials and wait until each has a worker; return the workers' names by trial."""
    for name in (first, second):
        place.file(run_id, f"hold-{name}").touch()
    return lambda: [place.until_reached(run_id, name) for name in (first, second)]


def let_go(place, run_id, *names):
    for name in names:
        place.file(run_id, f"hold-{name}").unlink()


def plans_of_one_and_two(place):
    """Search with one worker, then with two, which hold each other's trial; return both runs."""
    first = place.start(COUNTING_DEVICE="cpu")
    alone, job_id = search(place, RANDOM, workers=1)
    place.until_status(job_id, "done")
    second = place.start(COUNTING_DEVICE="cpu:1")
    until(lambda: len(place.jobs.workers()) == 2, "two workers")
    together = place.run(RANDOM)
    reached = pair(place, together, "trial-0", "trial-1")
    job_id = place.jobs.start_line(together, ("search",), RANDOM, workers=2)
    reached()
    let_go(place, together, "trial-0", "trial-1")
    place.until_status(job_id, "done")
    assert first.poll() is second.poll() is None
    return alone, together


def check_same_plans(place, alone, together):
    one, two = trials_of(place, alone), trials_of(place, together)
    assert [trial.state for trial in two] == ["complete"] * N_TRIALS
    assert len({trial.plan.key for trial in two}) == N_TRIALS
    assert {trial.plan.key for trial in two} == {trial.plan.key for trial in one}
    assert len({trial.worker for trial in one}) == 1
    assert len({trial.worker for trial in two}) == 2
    assert sorted(place.lines(together, "ended.txt")) == sorted(["slot-0", "search", *TRIALS])


def test_two_workers_on_one_home_measure_what_one_does_and_nothing_twice(studying):
    check_same_plans(studying, *plans_of_one_and_two(studying))


def test_two_workers_on_postgresql_measure_what_one_does_and_nothing_twice(served):
    check_same_plans(served, *plans_of_one_and_two(served))
    assert served.store.study_url().startswith("postgresql+psycopg://")
    assert not (served.home / "studies.db").exists()


@pytest.mark.parametrize("dies", ["the one with the line", "the one beside it"])
def test_the_other_worker_completes_the_search_of_one_that_was_killed(studying, dies):
    run_id = studying.run(RANDOM)
    reached = pair(studying, run_id, "trial-2", "trial-3")
    workers = start_two(studying)
    job_id = studying.jobs.start_line(run_id, ("search",), RANDOM, workers=2)
    reached()
    beside = trials_job(studying, run_id)
    job = studying.jobs.get(job_id) if dies == "the one with the line" else beside
    killed = workers[job.worker.partition("/")[2]]
    killed.kill()
    killed.wait()
    let_go(studying, run_id, "trial-2", "trial-3")
    studying.until_status(job_id, "done")
    studying.until_status(beside.job_id, "done")
    found = trials_of(studying, run_id)
    assert [trial.state for trial in found] == ["complete"] * N_TRIALS
    assert len({trial.plan.key for trial in found}) == N_TRIALS
    assert sorted(studying.lines(run_id, "ended.txt")) == sorted(["slot-0", "search", *TRIALS])
    begun = studying.lines(run_id, "begun.txt")
    assert {name: begun.count(name) for name in TRIALS if begun.count(name) > 1} == (
        {"trial-2": 2} if begun.count("trial-2") == 2 else {"trial-3": 2}
    )


def test_the_line_goes_on_after_its_search_once_the_last_trial_of_the_other_is_done(place):
    run_id = place.run()
    reached = pair(place, run_id)
    start_two(place)
    job_id = place.jobs.start_line(run_id, STEPS[5:7], SPEC, workers=2)
    reached()
    by_line = place.jobs.get(job_id).worker
    owners = {n: place.file(run_id, f"claim-{n}").read_text() for n in (1, 2)}
    mine, other = sorted((1, 2), key=lambda number: owners[number] != by_line)
    let_go(place, run_id, f"slot-{mine}")
    until(lambda: "slot-3" in place.lines(run_id, "ended.txt"), "the line to do the last one")
    until(lambda: "waits" in place.store.log(run_id), "the line to wait for the other")
    assert "search" not in place.lines(run_id, "begun.txt")
    let_go(place, run_id, f"slot-{other}")
    place.until_status(job_id, "done")
    assert place.lines(run_id, "ended.txt")[-3:] == [f"slot-{other}", "search", "recover"]


def test_who_measures_what_is_known_while_a_search_runs(studying):
    run_id = studying.run(RANDOM)
    reached = pair(studying, run_id, "trial-0", "trial-1")
    start_two(studying)
    job_id = studying.jobs.start_line(run_id, ("search",), RANDOM, workers=2)
    reached()
    found = studying.jobs.search_workers(run_id, trials_of(studying, run_id))
    assert [each.device for each in found] == ["cpu", "cpu:1"]
    assert {each.trial for each in found} == {0, 1}
    assert {each.job_id for each in found} == {job_id, trials_job(studying, run_id).job_id}
    assert not any(each.is_gone for each in found)
    told = [studying.jobs.get(each.job_id).progress for each in found]
    assert [progress.step for progress in told] == ["search", "search"]
    let_go(studying, run_id, "trial-0", "trial-1")
    studying.until_status(job_id, "done")
    until(lambda: not studying.jobs.search_workers(run_id, trials_of(studying, run_id)), "rest")


def paused(place):
    """Return run and job of a search that two workers were at when it was paused."""
    run_id = place.run()
    reached = pair(place, run_id)
    start_two(place)
    job_id = place.jobs.start_line(run_id, ("search",), SPEC, workers=2)
    reached()
    place.jobs.pause_search(run_id)
    let_go(place, run_id, "slot-1", "slot-2")
    until(lambda: len(place.lines(run_id, "ended.txt")) == 3, "both trials to end")
    return run_id, job_id


def test_a_pause_keeps_the_trials_under_way_and_resuming_goes_on_with_all_workers(place):
    run_id, job_id = paused(place)
    assert {job.status for job in place.jobs.list(run_id)} == {"cancelled"}
    with pytest.raises(BadInputError, match="No search of run"):
        place.jobs.pause_search(run_id)
    assert "slot-3" not in place.lines(run_id, "begun.txt")
    place.jobs.resume_search(run_id)
    place.until_status(job_id, "done")
    place.until_status(trials_job(place, run_id).job_id, "done")
    assert sorted(place.lines(run_id, "ended.txt")) == [
        "search",
        "slot-0",
        "slot-1",
        "slot-2",
        "slot-3",
    ]
    with pytest.raises(BadInputError, match="is done"):
        place.jobs.resume_search(run_id)


def test_a_stopped_search_ends_with_what_its_workers_have_measured(place):
    run_id = place.run()
    reached = pair(place, run_id)
    start_two(place)
    place.jobs.start_line(run_id, ("search",), SPEC, workers=2)
    reached()
    job_id = place.jobs.stop_search(run_id)
    let_go(place, run_id, "slot-1", "slot-2")
    place.until_status(job_id, "done")
    ended = place.lines(run_id, "ended.txt")
    assert sorted(ended[:3]) == ["slot-0", "slot-1", "slot-2"]
    assert ended[3:] == ["search"]
    beside = trials_job(place, run_id)
    assert "has taken its place" in place.jobs.why_not_resumed(beside)


def test_a_trial_that_its_living_worker_gave_up_is_taken_up_by_the_line_at_the_end(place):
    run_id = place.run()
    reached = pair(place, run_id)
    start_two(place)
    job_id = place.jobs.start_line(run_id, ("search",), SPEC, workers=2)
    reached()
    by_line = place.jobs.get(job_id).worker
    owners = {n: place.file(run_id, f"claim-{n}").read_text() for n in (1, 2)}
    mine, other = sorted((1, 2), key=lambda number: owners[number] != by_line)
    place.jobs.cancel(trials_job(place, run_id).job_id)
    place.file(run_id, f"claim-{other}").write_text("a worker that lives and has given up")
    let_go(place, run_id, f"slot-{other}", f"slot-{mine}")
    place.until_status(job_id, "done")
    assert set(place.lines(run_id, "ended.txt")) == {"search", *(f"slot-{n}" for n in range(4))}


def test_a_job_beside_a_search_that_is_over_loads_nothing(place):
    run_id, job_id = search(place)
    place.start()
    place.until_status(job_id, "done")
    place.until_status(trials_job(place, run_id).job_id, "done")
    assert len(measured_by(place, run_id)) == 3
    assert len(place.lines(run_id, "ended.txt")) == 5


def test_a_search_over_no_worker_is_refused(place):
    with pytest.raises(BadInputError, match="Give 1 or more"):
        place.jobs.start_line(place.run(), ("search",), SPEC, workers=0)


def test_a_run_without_a_search_has_none_to_resume_or_pause(place):
    run_id = place.run()
    with pytest.raises(BadInputError, match="no search that could be resumed"):
        place.jobs.resume_search(run_id)
    with pytest.raises(BadInputError, match="No search of run"):
        place.jobs.pause_search(run_id)
