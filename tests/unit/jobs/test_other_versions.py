"""Jobs that another version of the workflows began are stopped, and are not resumed; seats."""

import sqlite3
import subprocess
import sys

import pytest
from workplace import SPEC, Workplace, until

from qpruner_core.errors import BadInputError


@pytest.fixture
def place(tmp_path):
    workplace = Workplace(tmp_path / "home")
    yield workplace
    workplace.close()


def test_a_job_begun_by_another_version_is_stopped_and_says_what_to_do(place):
    run_id = place.run()
    place.file(run_id, "hold-load").touch()
    job_id = place.jobs.start_line(run_id, ("load",), SPEC)
    first = place.start()
    place.until_reached(run_id, "load")
    first.kill()
    first.wait()
    with sqlite3.connect(place.home / "jobs.db") as database:
        database.execute("UPDATE workflow_status SET application_version = '1'")
    database.close()
    place.start()
    place.until_status(job_id, "cancelled")
    with pytest.raises(BadInputError, match="begun by another version"):
        place.jobs.resume(job_id)
    place.file(run_id, "hold-load").unlink()
    place.until_status(place.jobs.start_line(run_id, ("load",), SPEC), "done")


def test_while_another_worker_lives_jobs_of_another_version_are_left_to_it(place):
    run_id = place.run()
    place.file(run_id, "hold-load").touch()
    job_id = place.jobs.start_line(run_id, ("load",), SPEC)
    place.start()
    place.until_reached(run_id, "load")
    with sqlite3.connect(place.home / "jobs.db") as database:
        database.execute("UPDATE workflow_status SET application_version = '1'")
    database.close()
    place.start(COUNTING_DEVICE="cpu:1")
    until(lambda: len(place.jobs.workers()) == 2, "two workers")
    other = place.run()
    place.until_status(place.jobs.start_line(other, ("load",), SPEC), "done")
    assert place.jobs.get(job_id).status == "running"


def test_a_seat_is_a_number(tmp_path):
    command = [sys.executable, "-m", "qpruner_core.worker", "--home", str(tmp_path)]
    found = subprocess.run(
        [*command, "--device", "cpu:left"], capture_output=True, text=True, check=False
    )
    assert found.returncode == 2
    assert "as in cpu:1" in found.stderr
