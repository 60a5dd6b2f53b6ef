"""Refusals that the same settings would meet again: not resumed, and told in a sentence."""

import logging

import pytest
from workplace import SPEC, Workplace

from qpruner_core.errors import BadInputError, MergeRefusedError
from qpruner_core.worker.process import is_news


@pytest.fixture
def place(tmp_path):
    workplace = Workplace(tmp_path / "home")
    yield workplace
    workplace.close()


def test_a_job_that_was_refused_for_its_settings_is_not_resumed(place):
    place.start()
    run_id = place.run()
    place.file(run_id, "deny-export").touch()
    job = place.until_status(place.jobs.start_line(run_id, ("export",), SPEC), "failed")
    assert job.is_refused
    with pytest.raises(BadInputError, match="Keep the adapter apart"):
        place.jobs.resume(job.job_id)
    place.file(run_id, "refuse-prune").touch()
    other = place.until_status(place.jobs.start_line(run_id, ("prune",), SPEC), "failed")
    assert not other.is_refused


@pytest.mark.parametrize(
    ("error", "told"), [(MergeRefusedError("No."), False), (KeyError(), True)]
)
def test_a_refusal_leaves_no_traceback_in_the_terminal(error, told):
    about = (type(error), error, None)
    record = logging.LogRecord("dbos", logging.ERROR, "", 0, "Exception", None, about)
    assert is_news(record) is told
