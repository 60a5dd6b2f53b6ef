from __future__ import annotations

from app import tables
from qpruner_core.domain.progress import Progress
from qpruner_core.jobs import TRIALS, WorkerInfo


def test_empty_it_says_that_no_worker_runs_and_nothing_was_started(open_page, said):
    at = open_page("jobs")
    assert "No worker is running" in said(at)
    assert "No job was started yet" in said(at)


def test_workers_are_listed_with_their_devices(open_page, jobs):
    jobs.crew.append(
        WorkerInfo(
            name="atlas/cpu", pid=7, host="atlas", device="cpu", since="2026-01-01T00:00:00+00:00"
        )
    )
    at = open_page("jobs")
    assert at.dataframe[0].value.loc[0, "Device"] == "cpu"
    assert at.dataframe[0].value.loc[0, "Memory"] == "-"


def test_a_worker_that_says_its_memory_is_shown_with_it(open_page, jobs):
    jobs.crew.append(
        WorkerInfo(
            name="atlas/cpu",
            pid=7,
            host="atlas",
            device="cpu",
            since="2026-01-01T00:00:00+00:00",
            memory_bytes=2**34,
        )
    )
    assert open_page("jobs").dataframe[0].value.loc[0, "Memory"] == "16.0 GiB"


def test_a_running_job_is_stopped_from_here(open_page, run_at, jobs):
    record = run_at("prune")
    job = jobs.running(record.run_id, "search", 2, 24)
    at = open_page("jobs", record)
    at.button(key=f"jobs/stop/{job.job_id}").click().run()
    assert jobs.get(job.job_id).status == "cancelled"


def test_a_worker_that_joined_a_search_says_how_far_it_is(open_page, run_at, jobs):
    record = run_at("prune")
    told = Progress(step="search", done=7, total=30, message="trial 2")
    job = jobs.add(record.run_id, "running", ("search",), kind=TRIALS, progress=told)
    bar = open_page("jobs", record).get("progress")[0]
    assert "**Measure trials** 7 of 30" in bar.proto.text
    assert tables.progress(job) == "7 of 30"


def test_a_failed_job_says_why_and_is_resumed_from_here(open_page, run_at, jobs):
    record = run_at("prune")
    job = jobs.add(record.run_id, "failed", ("search",), error="The budget is too small.")
    at = open_page("jobs", record)
    assert at.error[0].value == "The budget is too small."
    next(each for each in at.button if each.label == "Resume this job").click().run()
    assert jobs.get(job.job_id).status == "queued"


def test_the_log_of_the_chosen_run_is_shown(open_page, run_at, store, said):
    record = run_at("prune")
    store.log_path(record.run_id).write_text("first line\nlast line\n")
    at = open_page("jobs", record)
    assert "last line" in said(at)


def test_the_log_leaves_the_line_to_the_message(open_page, run_at, store):
    record = run_at("prune")
    line = "2026-01-31 09:05:00,123 INFO qpruner_core.worker.bench: step prune begins\n"
    store.log_path(record.run_id).write_text(line)
    assert open_page("jobs", record).code[0].value == "09:05:00 step prune begins"


def test_runs_are_cleaned_up_only_when_ticked(open_page, run_at, store):
    keep, drop = run_at("score", name="keep"), run_at("score", name="drop")
    at = open_page("jobs", keep)
    clean = next(each for each in at.button if each.label == "Clean up")
    assert clean.disabled
    next(m for m in at.multiselect if m.label == "Runs to clean up").set_value([drop.run_id]).run()
    next(box for box in at.checkbox if box.label.startswith("Delete them")).check().run()
    next(each for each in at.button if each.label == "Clean up").click().run()
    assert [record.run_id for record in store.list()] == [keep.run_id]


def test_a_run_that_is_busy_is_not_offered_for_clean_up(open_page, run_at, jobs):
    record = run_at("prune")
    jobs.running(record.run_id, "search", 2, 24)
    at = open_page("jobs", record)
    assert next(m for m in at.multiselect if m.label == "Runs to clean up").options == []
