"""The queue against a real worker process: JSON all the way, killed, stopped, refused, resumed."""

import json
import os
import signal
import sqlite3
from dataclasses import replace

import pytest
from workplace import SPEC, Workplace, until

from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.progress import Progress
from qpruner_core.domain.record import STEPS, ImportanceOutcome
from qpruner_core.domain.spec import ImportanceSpec, ModelSpec, PruningSpec, RunSpec, SearchSpec
from qpruner_core.errors import BadInputError, NotReadyError, QPrunerError, UnknownNameError
from qpruner_core.jobs import Jobs
from qpruner_core.store.codec import to_plain

SLOTS = [f"slot-{n}" for n in range(4)]


@pytest.fixture
def place(tmp_path):
    workplace = Workplace(tmp_path / "home")
    yield workplace
    workplace.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A workplace with one worker that all tests share; each uses runs of its own."""
    workplace = Workplace(tmp_path_factory.mktemp("shared") / "home")
    workplace.start()
    yield workplace
    workplace.close()


def test_before_any_worker_there_is_an_empty_list_and_jobs_wait(place):
    assert place.jobs.list() == []
    assert place.jobs.workers() == ()
    run_id = place.run()
    job = place.jobs.get(place.jobs.start_line(run_id, STEPS, SPEC))
    assert (job.status, job.kind, job.run_id, job.steps) == ("queued", "line", run_id, STEPS)
    assert (job.progress, job.error, job.worker, job.device) == (None, "", "", "")
    assert place.jobs.list(run_id) == [job]
    assert place.jobs.list(place.run()) == []


def test_a_line_job_runs_every_step_once_in_order_and_every_trial_is_a_step(served):
    run_id = served.run()
    asked = RunSpec(model=ModelSpec(source="demo"), search=SearchSpec(n_trials=3))
    job = served.until_status(served.jobs.start_line(run_id, STEPS, asked), "done")
    before, after = list(STEPS[:5]), list(STEPS[5:])
    assert served.lines(run_id, "ended.txt") == before + SLOTS + after
    assert served.store.read(run_id).spec == asked
    assert (job.error, job.progress, job.device) == ("", None, "cpu")
    assert job.worker == served.jobs.workers()[0].name
    assert job.created_at <= job.updated_at
    assert [e.progress.step for e in served.store.events(run_id) if e.progress.done == 3] == (
        before + ["search"] * 5 + after[1:]
    )
    log = served.store.log(run_id)
    assert "export done" in log
    assert "taking over the settings started" in log
    assert "the next trial (with no other worker) started" in log
    assert "begins" not in log


def test_everything_the_engine_stores_is_json(served):
    run_id = served.run()
    served.file(run_id, "refuse-prune").touch()
    jobs = [
        served.jobs.start_line(run_id, STEPS[:3], SPEC),
        served.jobs.start_measure(run_id, PrecisionPlan(precisions={"a": "nf4"})),
    ]
    served.until_status(jobs[0], "failed")
    served.until_status(jobs[1], "done")
    checked = 0
    with sqlite3.connect(served.home / "jobs.db") as database:
        tables = [
            row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type='table'")
        ]
        for table in tables:
            found = database.execute(f"SELECT * FROM {table}")  # noqa: S608 - names from the database
            names = [column[0] for column in found.description]
            for row in map(dict, (zip(names, values, strict=True) for values in found)):
                for name in ("inputs", "output", "error", "value", "message"):
                    if isinstance(row.get(name), str) and "serialization" in row:
                        json.loads(row[name])
                        assert row["serialization"] == "portable_json"
                        checked += 1
                assert not any(isinstance(value, bytes) for value in row.values())
                assert not any(isinstance(v, str) and v.startswith("gA") for v in row.values())
    database.close()
    assert checked >= 8


def test_a_step_waits_for_a_command_that_writes_its_run(served):
    run_id = served.run()
    with served.store.writing(run_id):
        job_id = served.jobs.start_line(run_id, ("load",), SPEC)
        until(lambda: f"process {os.getpid()}" in served.store.log(run_id), "the worker to wait")
        assert served.lines(run_id, "begun.txt") == []
    served.until_status(job_id, "done")
    assert served.lines(run_id, "ended.txt") == ["load"]


def test_while_a_step_runs_nobody_else_writes_its_run(served):
    run_id = served.run()
    served.file(run_id, "hold-load").touch()
    job_id = served.jobs.start_line(run_id, ("load",), SPEC)
    served.until_reached(run_id, "load")
    with pytest.raises(NotReadyError, match="one writer at a time"), served.store.writing(run_id):
        pass
    served.file(run_id, "hold-load").unlink()
    served.until_status(job_id, "done")


def test_a_job_cancelled_while_its_step_waits_frees_the_worker_and_can_be_resumed(served):
    run_id, other = served.run(), served.run()
    with served.store.writing(run_id):
        job_id = served.jobs.start_line(run_id, ("load",), SPEC)
        until(lambda: "waits" in served.store.log(run_id), "the worker to wait")
        served.jobs.cancel(job_id)
        served.until_status(served.jobs.start_line(other, ("load",), SPEC), "done")
    assert served.jobs.get(job_id).status == "cancelled"
    served.jobs.resume(job_id)
    served.until_status(job_id, "done")
    assert served.lines(run_id, "ended.txt") == ["load"]


def test_a_running_job_tells_the_newest_progress(served):
    run_id = served.run()
    served.file(run_id, "hold-prune").touch()
    job_id = served.jobs.start_line(run_id, STEPS[:3], SPEC)
    served.until_reached(run_id, "prune")
    expected = Progress(step="prune", done=3, total=7, message="prune")
    assert served.jobs.get(job_id).progress == expected
    served.file(run_id, "hold-prune").unlink()
    served.until_status(job_id, "done")


def test_a_refusal_fails_the_job_with_its_sentence_and_resuming_goes_on_there(served):
    run_id = served.run()
    served.file(run_id, "refuse-slot-2").touch()
    job_id = served.jobs.start_line(run_id, STEPS, SPEC)
    job = served.until_status(job_id, "failed")
    assert job.error == "The budget is 1 MB; 2 MB are needed. Raise the budget."
    assert served.lines(run_id, "begun.txt").count("slot-2") == 1
    with pytest.raises(QPrunerError, match="Raise the budget"):
        served.jobs.result(job_id)
    served.file(run_id, "refuse-slot-2").unlink()
    served.jobs.resume(job_id)
    served.until_status(job_id, "done")
    assert served.lines(run_id, "ended.txt") == [*STEPS[:5], *SLOTS, *STEPS[5:]]


def test_a_bug_fails_the_job_with_one_sentence_and_its_traceback_is_in_the_log(served):
    run_id = served.run()
    served.file(run_id, "break-score").touch()
    job_id = served.jobs.start_line(run_id, STEPS[:2], SPEC)
    job = served.until_status(job_id, "failed")
    assert "a bug of ours (KeyError" in job.error
    assert "Traceback" not in job.error
    assert "Traceback" in served.store.log(run_id)
    assert "counting_worker.py" in served.store.log(run_id)


def test_cancelling_ends_a_long_step_soon_and_resuming_goes_on_after_it(served):
    run_id = served.run()
    served.file(run_id, "hold-evaluate").touch()
    job_id = served.jobs.start_line(run_id, STEPS, SPEC)
    served.until_reached(run_id, "evaluate")
    served.jobs.cancel(job_id)
    until(lambda: "evaluate" in served.lines(run_id, "ended.txt"), "the step to end by itself")
    assert served.jobs.get(job_id).status == "cancelled"
    assert "slot-0" not in served.lines(run_id, "begun.txt")
    served.file(run_id, "hold-evaluate").unlink()
    served.jobs.resume(job_id)
    served.until_status(job_id, "done")
    assert served.lines(run_id, "ended.txt") == [*STEPS[:5], *SLOTS, *STEPS[5:]]


def test_cancelled_training_fills_its_slot_exports_nothing_and_is_resumed_in_the_middle(served):
    run_id = served.run()
    served.file(run_id, "hold-recover").touch()
    job_id = served.jobs.start_line(run_id, STEPS[6:], SPEC)
    served.until_reached(run_id, "recover")
    served.jobs.cancel(job_id)
    until(lambda: served.lines(run_id, "stopped.txt"), "the training to end by itself")
    assert served.jobs.get(job_id).status == "cancelled"
    served.file(run_id, "hold-recover").unlink()
    served.until_status(served.jobs.start_line(served.run(), ("load",), SPEC), "done")
    assert "export" not in served.lines(run_id, "begun.txt")
    served.jobs.resume(job_id)
    served.until_status(job_id, "done")
    assert served.lines(run_id, "begun.txt").count("recover") == 2
    assert served.lines(run_id, "ended.txt") == ["recover", "export"]


def test_a_cancelled_search_stops_after_its_trial_and_resumes_with_the_next(served):
    run_id = served.run()
    served.file(run_id, "hold-slot-1").touch()
    job_id = served.jobs.start_line(run_id, ("search",), SPEC)
    served.until_reached(run_id, "slot-1")
    served.jobs.cancel(job_id)
    served.file(run_id, "hold-slot-1").unlink()
    until(lambda: "slot-1" in served.lines(run_id, "ended.txt"), "the trial to end")
    other = served.run()
    served.until_status(served.jobs.start_line(other, ("load",), SPEC), "done")
    assert "slot-2" not in served.lines(run_id, "begun.txt")
    served.jobs.resume(job_id)
    served.until_status(job_id, "done")
    assert served.lines(run_id, "ended.txt") == [*SLOTS, "search"]


def test_a_stopped_search_can_be_finished_with_what_it_has_measured(served):
    run_id, _ = stopped_search(served)
    job = served.until_status(served.jobs.start_finish(run_id), "done")
    assert (job.kind, job.steps, job.error) == ("finish", ("search",), "")
    assert served.lines(run_id, "ended.txt") == [*SLOTS[:2], "search"]
    assert served.jobs.result(job.job_id) == {}


def test_a_search_that_cannot_be_finished_says_why(served):
    run_id = served.run()
    served.file(run_id, "refuse-search").touch()
    job = served.until_status(served.jobs.start_finish(run_id), "failed")
    assert job.error == "The budget is 1 MB; 2 MB are needed. Raise the budget."


def test_only_an_ended_job_can_be_resumed(served):
    run_id = served.run()
    job_id = served.jobs.start_line(run_id, ("load",), SPEC)
    served.until_status(job_id, "done")
    with pytest.raises(BadInputError, match="is done"):
        served.jobs.resume(job_id)
    served.jobs.cancel(job_id)
    assert served.jobs.get(job_id).status == "done"


def stopped_search(workplace):
    """Return a run, and its job that was stopped in the second slot of the search."""
    run_id = workplace.run()
    workplace.file(run_id, "hold-slot-1").touch()
    job_id = workplace.jobs.start_line(run_id, ("search",), SPEC)
    workplace.until_reached(run_id, "slot-1")
    workplace.jobs.cancel(job_id)
    until(lambda: "slot-1" in workplace.lines(run_id, "ended.txt"), "the trial to end")
    return run_id, job_id


def test_a_job_whose_place_a_newer_one_took_is_not_resumed_under_its_settings(served):
    run_id, old = stopped_search(served)
    other = RunSpec(model=ModelSpec(source="demo"), search=SearchSpec(n_trials=3))
    newer = served.jobs.start_line(run_id, ("load",), other)
    served.until_status(newer, "done")
    with pytest.raises(BadInputError, match=f"older than the job {newer}"):
        served.jobs.resume(old)
    assert served.jobs.get(old).status == "cancelled"


def test_a_newer_job_that_never_ran_stands_in_nobodys_way(place):
    run_id = place.run()
    old, newer = (place.jobs.start_line(run_id, ("load",), SPEC) for _ in range(2))
    place.jobs.cancel(old)
    assert "older than the job" in place.jobs.why_not_resumed(place.jobs.get(old))
    place.jobs.cancel(newer)
    assert place.jobs.why_not_resumed(place.jobs.get(old)) == ""
    place.jobs.resume(old)
    assert place.jobs.get(old).status == "queued"


def test_a_search_that_was_finished_is_not_resumed_but_one_that_could_not_be_is(served):
    run_id, old = stopped_search(served)
    served.file(run_id, "refuse-search").touch()
    served.until_status(served.jobs.start_finish(run_id), "failed")
    assert served.jobs.why_not_resumed(served.jobs.get(old)) == ""
    served.file(run_id, "refuse-search").unlink()
    served.until_status(served.jobs.start_finish(run_id), "done")
    assert ".finish." in served.jobs.why_not_resumed(served.jobs.get(old))


def test_a_job_is_not_resumed_after_a_command_gave_the_run_other_settings(served):
    run_id, old = stopped_search(served)
    assert served.jobs.why_not_resumed(served.jobs.get(old)) == ""
    other = RunSpec(model=ModelSpec(source="demo"), search=SearchSpec(n_trials=3))
    served.store.write(replace(served.store.read(run_id), spec=other))
    with pytest.raises(BadInputError, match="no longer has"):
        served.jobs.resume(old)


def test_a_plan_by_hand_and_a_prompt_give_their_results(served):
    run_id = served.run()
    plan = PrecisionPlan(precisions={"a": "nf4"})
    measured = served.jobs.start_measure(run_id, plan)
    said = served.jobs.start_generate(run_id, "the cat", 3)
    served.until_status(measured, "done")
    served.until_status(said, "done")
    assert served.jobs.result(measured)["plan"] == to_plain(plan)
    assert served.jobs.result(said) == {
        "prompt": "the cat",
        "original": "THE CAT",
        "compressed": "plan 3",
    }


def test_a_deleted_run_fails_its_job_with_a_sentence(served):
    run_id = served.run()
    served.file(run_id, "hold-load").touch()
    first = served.jobs.start_line(run_id, ("load",), SPEC)
    served.until_reached(run_id, "load")
    later = served.jobs.start_line(run_id, ("score",), SPEC)
    served.file(run_id, "hold-load").unlink()
    served.until_status(first, "done")
    served.until_status(later, "done")
    gone = served.run()
    served.store.delete(gone)
    with pytest.raises(BadInputError, match="There is no run"):
        served.jobs.start_line(gone, ("load",), SPEC)


def test_forgetting_a_run_removes_its_jobs_and_no_others(place):
    run_id, other = place.run(), place.run()
    place.jobs.start_line(run_id, ("load",), SPEC)
    kept = place.jobs.start_line(other, ("load",), SPEC)
    place.jobs.forget(run_id)
    assert [job.job_id for job in place.jobs.list()] == [kept]
    place.jobs.forget(run_id)


@pytest.mark.parametrize("steps", [(), ("bake",), ("score", "load"), ("load", "load")])
def test_steps_that_are_no_part_of_the_line_are_refused(place, steps):
    with pytest.raises(BadInputError, match="no part of the line"):
        place.jobs.start_line(place.run(), steps, SPEC)


def test_an_unknown_strategy_is_refused_before_it_is_queued(place):
    spec = RunSpec(model=ModelSpec(source="demo"), search=SearchSpec(strategy="luck"))
    with pytest.raises(UnknownNameError, match="luck"):
        place.jobs.start_line(place.run(), STEPS, spec)
    assert place.jobs.list() == []


def test_unknown_jobs_and_results_too_early_are_answered_with_a_sentence(place):
    for ask in (place.jobs.get, place.jobs.cancel, place.jobs.resume, place.jobs.result):
        with pytest.raises(BadInputError, match="There is no job"):
            ask("20261124-101500-demo-3f2a.line.00000000")
    with pytest.raises(NotReadyError, match="is queued"):
        place.jobs.result(place.jobs.start_line(place.run(), ("load",), SPEC))
    with pytest.raises(BadInputError, match="is no run"):
        place.jobs.list("../..")


def test_a_database_that_does_not_answer_is_a_sentence_without_its_password(tmp_path):
    with pytest.raises(NotReadyError, match="does not answer") as refused:
        Jobs(tmp_path, "postgresql://me:secret@127.0.0.1:1/none")
    assert "secret" not in str(refused.value)


def test_killed_in_the_middle_of_a_step_the_restarted_worker_takes_it_up_there(place):
    run_id = place.run()
    place.file(run_id, "hold-evaluate").touch()
    job_id = place.jobs.start_line(run_id, STEPS, SPEC)
    first = place.start()
    place.until_reached(run_id, "evaluate")
    first.send_signal(signal.SIGKILL)
    first.wait()
    until(lambda: place.jobs.workers() == (), "the dead worker to be gone from the list")
    place.file(run_id, "hold-evaluate").unlink()
    place.start()
    place.until_status(job_id, "done")
    assert place.lines(run_id, "ended.txt") == [*STEPS[:5], *SLOTS, *STEPS[5:]]
    begun = place.lines(run_id, "begun.txt")
    assert begun.count("evaluate") == 2
    assert all(begun.count(step) == 1 for step in (*STEPS[:4], *SLOTS, *STEPS[5:], "begin"))


def test_killed_in_the_middle_of_a_search_finished_trials_stay_finished(place):
    run_id = place.run()
    place.file(run_id, "hold-slot-2").touch()
    job_id = place.jobs.start_line(run_id, ("search",), SPEC)
    first = place.start()
    place.until_reached(run_id, "slot-2")
    first.kill()
    first.wait()
    place.file(run_id, "hold-slot-2").unlink()
    place.start()
    place.until_status(job_id, "done")
    assert place.lines(run_id, "ended.txt") == [*SLOTS, "search"]


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_of_another_name_takes_up_the_jobs_of_one_that_is_gone(place, end):
    run_id = place.run()
    place.file(run_id, "hold-score").touch()
    job_id = place.jobs.start_line(run_id, STEPS[:3], SPEC)
    first = place.start()
    place.until_reached(run_id, "score")
    assert not place.jobs.get(job_id).worker_is_gone
    first.send_signal(end)
    first.wait()
    until(lambda: place.jobs.get(job_id).worker_is_gone, "the job to be an orphan")
    assert place.jobs.get(job_id).status == "running"
    place.file(run_id, "hold-score").unlink()
    place.start(COUNTING_DEVICE="cuda:7")
    job = place.until_status(job_id, "done")
    assert (job.device, job.worker_is_gone) == ("cuda:7", False)
    assert place.lines(run_id, "ended.txt") == list(STEPS[:3])


def test_a_second_worker_leaves_the_jobs_of_a_living_one_alone(place):
    run_id, other = place.run(), place.run()
    place.file(run_id, "hold-score").touch()
    job_id = place.jobs.start_line(run_id, STEPS[:2], SPEC)
    place.start()
    place.until_reached(run_id, "score")
    place.start(COUNTING_DEVICE="cuda:7")
    place.until_status(place.jobs.start_line(other, ("load",), SPEC), "done")
    place.file(run_id, "hold-score").unlink()
    assert place.until_status(job_id, "done").device == "cpu"
    assert place.lines(run_id, "begun.txt").count("score") == 1


def test_told_to_end_a_worker_ends_soon_and_its_job_goes_on_with_the_next(place):
    run_id = place.run()
    place.file(run_id, "hold-score").touch()
    job_id = place.jobs.start_line(run_id, STEPS[:2], SPEC)
    first = place.start()
    place.until_reached(run_id, "score")
    first.terminate()
    assert first.wait(timeout=5) == 0
    assert place.jobs.workers() == ()
    assert place.jobs.get(job_id).status == "running"
    place.file(run_id, "hold-score").unlink()
    place.start()
    place.until_status(job_id, "done")
    assert place.lines(run_id, "ended.txt") == ["load", "score"]


def test_a_worker_keeps_studies_where_it_was_told_its_jobs_are(place):
    run_id = place.run()
    place.start(QPRUNER_DATABASE="postgresql://somewhere/else")
    place.until_status(place.jobs.start_line(run_id, ("load",), SPEC), "done")
    assert place.file(run_id, "study_url.txt").read_text() == f"sqlite:///{place.home}/studies.db"


def test_a_device_has_one_worker(served):
    until(served.jobs.workers, "the worker")
    second = served.start()
    _, said = second.communicate(timeout=30)
    assert second.returncode != 0
    assert "already running on this machine" in said
    assert len(served.jobs.workers()) == 1


def test_a_worker_can_end_with_the_process_that_started_it(place):
    """Its parent is not the process that it was told to stay with."""
    orphan = place.start("1")
    assert orphan.wait(timeout=30) == 0


def scored(place):
    """A run whose record says that it was scored."""
    run_id = place.run()
    outcome = ImportanceOutcome(
        spec=ImportanceSpec(criteria=("taylor",)),
        cells=(),
        unit_scores="",
        n_tokens=1,
        device="cpu",
    )
    place.store.write(replace(place.store.read(run_id), score=outcome))
    return run_id


def test_a_comparison_measures_every_row_as_a_step_of_its_own(served):
    run_id = scored(served)
    asked = PruningSpec(ratio=0.3, compensation="bias", layer_ratios={"1": 0.5})
    job_id = served.jobs.start_compare(run_id, asked)
    job = served.until_status(job_id, "done")
    assert (job.kind, job.steps) == ("compare", ())
    assert served.lines(run_id, "ended.txt") == ["taylor-none", "taylor-bias"]
    assert served.jobs.result(job_id) == {}


def test_a_comparison_goes_on_with_the_row_that_was_under_way_when_its_worker_was_killed(place):
    run_id = scored(place)
    place.file(run_id, "hold-taylor-bias").touch()
    worker = place.start()
    job_id = place.jobs.start_compare(run_id, PruningSpec(compensation="bias"))
    place.until_reached(run_id, "taylor-bias")
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    place.file(run_id, "hold-taylor-bias").unlink()
    place.start()
    place.until_status(job_id, "done")
    assert place.lines(run_id, "ended.txt") == ["taylor-none", "taylor-bias"]
    assert place.lines(run_id, "begun.txt") == ["taylor-none", "taylor-bias", "taylor-bias"]


def test_a_cancelled_comparison_stops_between_its_rows_and_can_be_resumed(place):
    run_id = scored(place)
    place.file(run_id, "hold-taylor-none").touch()
    place.start()
    job_id = place.jobs.start_compare(run_id, PruningSpec(compensation="bias"))
    place.until_reached(run_id, "taylor-none")
    place.jobs.cancel(job_id)
    until(lambda: place.lines(run_id, "ended.txt") == ["taylor-none"], "the end of the row")
    place.until_status(job_id, "cancelled")
    place.file(run_id, "hold-taylor-none").unlink()
    place.jobs.resume(job_id)
    place.until_status(job_id, "done")
    assert place.lines(run_id, "ended.txt")[-1] == "taylor-bias"


def stopped_comparison(place, run_id):
    """Return the job of a comparison at 20 % that was stopped after its first row."""
    place.file(run_id, "hold-taylor-none").touch()
    job_id = place.jobs.start_compare(run_id, PruningSpec(ratio=0.2, compensation="bias"))
    place.until_reached(run_id, "taylor-none")
    place.jobs.cancel(job_id)
    until(lambda: place.lines(run_id, "ended.txt") == ["taylor-none"], "the end of the row")
    place.until_status(job_id, "cancelled")
    place.file(run_id, "hold-taylor-none").unlink()
    return job_id


def test_a_comparison_is_not_resumed_under_that_of_a_newer_job_or_a_command(served):
    run_id = scored(served)
    old = stopped_comparison(served, run_id)
    assert served.jobs.why_not_resumed(served.jobs.get(old)) == ""
    record = served.store.read(run_id)
    other = replace(record.comparison, spec=PruningSpec(ratio=0.5))
    served.store.write(replace(record, comparison=other))
    with pytest.raises(BadInputError, match="no longer has"):
        served.jobs.resume(old)
    served.store.write(record)
    newer = served.jobs.start_compare(run_id, PruningSpec(ratio=0.5))
    served.until_status(newer, "done")
    with pytest.raises(BadInputError, match=f"older than the job {newer}"):
        served.jobs.resume(old)
    assert served.lines(run_id, "ratios.txt") == ["0.2", "0.5"]


def test_only_scoring_anew_stops_a_comparison_from_going_on(served):
    run_id = scored(served)
    old = stopped_comparison(served, run_id)
    served.until_status(served.jobs.start_line(run_id, ("prune",), SPEC), "done")
    assert served.jobs.why_not_resumed(served.jobs.get(old)) == ""
    newer = served.jobs.start_line(run_id, ("score", "prune"), SPEC)
    served.until_status(newer, "done")
    assert newer in served.jobs.why_not_resumed(served.jobs.get(old))


def test_a_run_without_scores_is_not_compared(place):
    with pytest.raises(NotReadyError, match="Score it first"):
        place.jobs.start_compare(place.run(), PruningSpec())


def test_compressing_layer_by_layer_is_a_job_that_says_where_the_folder_is(served):
    run_id = served.run()
    asked = replace(served.store.read(run_id).spec, pruning=PruningSpec(ratio=0.3))
    job_id = served.jobs.start_compress(run_id, asked)
    job = served.until_status(job_id, "done")
    assert (job.kind, job.steps) == ("compress", ())
    assert served.jobs.result(job_id) == {"path": "/0.3", "size_bytes": 5}


def test_cancelled_compressing_begins_anew_when_it_is_resumed(place):
    run_id = place.run()
    place.file(run_id, "hold-compress").touch()
    place.start()
    job_id = place.jobs.start_compress(run_id, place.store.read(run_id).spec)
    place.until_reached(run_id, "compress")
    place.jobs.cancel(job_id)
    until(lambda: place.lines(run_id, "ended.txt") == ["compress"], "the end of the step")
    place.until_status(job_id, "cancelled")
    place.file(run_id, "hold-compress").unlink()
    place.jobs.resume(job_id)
    place.until_status(job_id, "done")
    assert place.lines(run_id, "begun.txt") == ["compress", "compress"]


def test_compressing_stands_beside_the_line_and_is_replaced_by_compressing_alone(place):
    run_id, spec = place.run(), SPEC
    old = place.jobs.start_compress(run_id, spec)
    place.jobs.cancel(old)
    place.jobs.start_line(run_id, ("load",), spec)
    assert place.jobs.why_not_resumed(place.jobs.get(old)) == ""
    newer = place.jobs.start_compress(run_id, spec)
    assert newer in place.jobs.why_not_resumed(place.jobs.get(old))
