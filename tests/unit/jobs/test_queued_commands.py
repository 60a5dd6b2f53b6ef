"""The command line over the queue: a search on workers, listed, paused, resumed and stopped."""

import json
from threading import Thread

import pytest
from workplace import SPEC, Workplace, until

from qpruner_core.cli import main


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
