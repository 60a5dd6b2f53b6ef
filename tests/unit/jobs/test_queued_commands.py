"""The command line over the queue: a search on workers, listed, paused, resumed and stopped."""

import json
from threading import Thread

import pytest
from workplace import SPEC, Workplace, until

from qpruner_core.cli import main
from qpruner_core.cli.queued import check_alone
from qpruner_core.domain.reproduction import ReproductionSpec
from qpruner_core.store.records import RunStore


@pytest.fixture
def place(tmp_path, monkeypatch):
    workplace = Workplace(tmp_path / "home")
    monkeypatch.setenv("QPRUNER_HOME", str(workplace.home))
    yield workplace
    workplace.close()


def test_jobs_are_listed_and_a_search_is_paused_resumed_and_stopped(place, capsys):
    assert main(["jobs"]) == 0
    assert capsys.readouterr().out == "No jobs.\n"
    run_id = place.run()
    job_id = place.jobs.start_line(run_id, ("search",), SPEC, workers=2)
    assert main(["jobs", run_id, "--pause", "--json"]) == 0
    (document,) = json.loads(capsys.readouterr().out)
    assert (document["job_id"], document["status"]) == (job_id, "cancelled")
    assert main(["jobs", run_id, "--resume"]) == 0
    assert capsys.readouterr().out == f"queued     {job_id}\n"
    assert main(["jobs", run_id, "--stop"]) == 0
    assert [job.kind for job in place.jobs.list(run_id)] == ["finish", "line"]
    assert main(["jobs", "--pause"]) == 2
    assert "No run was named to pause" in capsys.readouterr().err


def test_training_is_paused_stopped_and_resumed_by_the_same_words(place, capsys):
    run_id = place.run()
    place.file(run_id, "hold-recover").touch()
    place.start()
    job_id = place.jobs.start_line(run_id, ("recover", "export"), SPEC)
    for word, said in (("pause", "pauses before its next step"), ("stop", "as it is then")):
        n_stopped = len(place.lines(run_id, "stopped.txt"))
        place.until_reached(run_id, "recover")
        assert main(["jobs", run_id, f"--{word}"]) == 0
        assert f"The training of run {run_id}" in (told := capsys.readouterr().err)
        assert said in told
        until(lambda n=n_stopped: len(place.lines(run_id, "stopped.txt")) > n, "the end of a step")
        assert main(["jobs", run_id, f"--{word}"]) == 2
        assert "its job is cancelled" in capsys.readouterr().err
        place.file(run_id, "reached-recover").unlink()
        assert main(["jobs", run_id, "--resume"]) == 0
        assert "goes on where it stood" in capsys.readouterr().err
    place.file(run_id, "hold-recover").unlink()
    place.until_status(job_id, "done")
    assert place.lines(run_id, "ended.txt") == ["recover", "export"]


@pytest.mark.parametrize("steps", [("recover", "export"), ("search", "recover", "export")])
def test_an_export_is_not_cancelled_with_words_about_training(place, capsys, steps):
    run_id = place.run()
    place.file(run_id, "hold-export").touch()
    place.start()
    job_id = place.jobs.start_line(run_id, steps, SPEC)
    place.until_reached(run_id, "export")
    until(lambda: place.jobs.trained_job(run_id) is not None, "the report of the export")
    assert place.jobs.training_job(run_id) is None
    for word in ("pause", "stop"):
        assert main(["jobs", run_id, f"--{word}"]) == 2
        assert f"is complete; its job {job_id} is at export now" in capsys.readouterr().err
    assert place.jobs.get(job_id).status == "running"
    place.file(run_id, "hold-export").unlink()
    place.until_status(job_id, "done")


def test_a_training_that_waits_still_leaves_no_adapter_behind(place, capsys):
    run_id = place.run()
    job_id = place.jobs.start_line(run_id, ("recover", "export"), SPEC)
    for word in ("stop", "pause"):
        assert main(["jobs", run_id, f"--{word}"]) == 0
        told = capsys.readouterr().err
        assert "had not begun to run; its job is off the queue" in told
        assert "the adapter as it is then" not in told
        assert main(["jobs", run_id, "--resume"]) == 0
        assert "goes on where it stood" in capsys.readouterr().err
    assert place.jobs.get(job_id).status == "queued"


def test_the_papers_table_is_steered_too_while_it_is_the_newest_work(place, capsys):
    run_id = place.run()
    place.jobs.start_line(run_id, ("recover",), SPEC)
    job_id = place.jobs.start_reproduce(run_id, ReproductionSpec())
    assert main(["jobs", run_id, "--pause"]) == 0
    assert f"The paper's table of run {run_id} pauses" in capsys.readouterr().err
    assert place.jobs.get(job_id).status == "cancelled"
    assert main(["jobs", run_id, "--stop"]) == 2
    assert "start it with 'qpruner reproduce MODEL'" in capsys.readouterr().err
    assert main(["jobs", run_id, "--resume"]) == 0
    assert place.jobs.get(job_id).status == "queued"
    assert main(["jobs", run_id, "--stop"]) == 0
    assert "with the rows that are there" in capsys.readouterr().err
    place.jobs.start_line(run_id, ("recover",), SPEC)
    assert main(["jobs", run_id, "--pause"]) == 0
    assert f"The training of run {run_id}" in capsys.readouterr().err


def test_a_run_that_has_yet_to_search_is_steered_at_its_search(place, capsys):
    run_id = place.run()
    job_id = place.jobs.start_line(run_id, ("search", "recover"), SPEC)
    assert main(["jobs", run_id, "--pause"]) == 0
    assert f"The search of run {run_id} pauses" in capsys.readouterr().err
    assert place.jobs.training_job(run_id) is None
    assert place.jobs.get(job_id).status == "cancelled"


@pytest.mark.parametrize(
    "command", [("search", "--recover-steps", "0"), ("recover",), ("compare",), ("export",)]
)
def test_a_command_does_not_work_on_a_run_of_which_a_job_waits(place, capsys, command):
    run_id = place.run()
    word, *options = command
    job_id = place.jobs.start_line(run_id, ("search",), SPEC)
    before = place.store.read(run_id)
    assert main([word, run_id, *options]) == 2
    said = capsys.readouterr().err
    assert f"The job {job_id} (search) of run {run_id} waits" in said
    assert f"'qpruner jobs {run_id} --pause'" in said
    assert place.store.read(run_id) == before
    place.jobs.cancel(job_id)
    check_alone(place.store, run_id)
    check_alone(place.store, place.run())


def test_a_home_without_a_queue_is_not_given_one(tmp_path, monkeypatch):
    monkeypatch.delenv("QPRUNER_DATABASE", raising=False)
    store = RunStore(tmp_path / "home")
    check_alone(store, store.create(SPEC).run_id)
    assert not list(store.home.glob("jobs.db*"))


def test_a_search_over_workers_follows_its_job(place, capsys):
    run_id = place.run()
    answer = []
    command = ["search", run_id, "--workers", "2"]
    asking = Thread(target=lambda: answer.append(main(command)))
    asking.start()
    until(lambda: place.jobs.list(run_id), "the job")
    place.start()
    asking.join(60)
    said = capsys.readouterr()
    assert answer == [0]
    assert "2 workers were asked for and 0 run" in said.err
    assert "slot-3" in said.err
    # Nothing was measured in this process: the counting worker did all steps up to the search.
    assert place.lines(run_id, "ended.txt")[-1] == "search"
    assert run_id in said.out


def test_a_search_that_is_paused_meanwhile_says_how_to_go_on(place, capsys):
    run_id = place.run()
    answer = []
    asking = Thread(target=lambda: answer.append(main(["search", run_id, "--workers", "1"])))
    asking.start()
    until(lambda: place.jobs.list(run_id), "the job")
    place.jobs.pause_search(run_id)
    asking.join(60)
    assert answer == [2]
    assert "was paused" in capsys.readouterr().err
