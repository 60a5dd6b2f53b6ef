"""Where a run stands: the strip of its steps, and the running, failed and stopped faces."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from app import line, services, widgets, wording
from app.glossary import tip
from qpruner_core.domain.progress import Progress
from qpruner_core.domain.record import STEPS, RunRecord
from qpruner_core.jobs import Job

NO_REASON = "The job failed without a reason; the log on the Jobs page says more."
_MARKS = {
    "done": ":green[:material/check_circle:]",
    "running": ":blue[:material/progress_activity:]",
    "waiting": ":gray[:material/schedule:]",
    "failed": ":red[:material/error:]",
    "open": ":gray[:material/radio_button_unchecked:]",
}


def workers_line() -> None:
    """Say in the sidebar who computes."""
    workers = services.jobs().workers()
    if not workers:
        st.caption(
            ":orange[:material/power_off:] No worker is running; jobs wait until one starts."
        )
    for worker in workers:
        st.caption(f":green[:material/memory:] Worker on {worker.device}")


def strip(record: RunRecord, job: Job | None) -> None:
    """Draw the eight steps of the line and where the run stands; nothing for a table alone."""
    if line.is_table(record) and (job is None or job.kind != "line"):
        return
    states = line.standing(record, job)
    st.markdown(
        "&ensp;".join(f"{_MARKS[states[step]]}&nbsp;{wording.STEP_TITLES[step]}" for step in STEPS)
    )


def status(record: RunRecord, step: str, steer: Callable[[Job], None] | None = None) -> Job | None:
    """Draw where a run stands, with the running, failed or stopped face; return the job under
    way.

    Args:
        record: The run.
        step: The step that the page is about.
        steer: Draws the buttons beside the progress; None for the one that stops the job.
    """
    job = services.job_under_way(record.run_id)
    last = services.last_job(record.run_id, step)
    if job is not None:
        running(record, job, steer)
        return job
    strip(record, last)
    if last is not None and getattr(record, step) is None:
        _ended_badly(record, step, last)
    if step == "search":
        failed_beside(record, "finish")
    return None


def running(record: RunRecord, job: Job, steer: Callable[[Job], None] | None = None) -> None:
    """Draw strip and progress, which renew themselves, with buttons to steer the job.

    The whole page starts over when a step has filled its slot, and when the job ends.
    """
    filled = line.filled(record)

    @st.fragment(run_every=widgets.EVERY)
    def progress() -> None:
        now = services.jobs().get(job.job_id)
        known = services.store().read(record.run_id)
        news = (
            line.filled(known) != filled
            or known.comparison != record.comparison
            or known.reproduction != record.reproduction
        )
        if news or not line.is_under_way(now):
            st.rerun()
        strip(known, now)
        with st.container(border=True):
            progress_bar(now)
            (steer or _stop_button)(now)

    progress()


def _stop_button(job: Job) -> None:
    if st.button(
        "Stop", key=f"stop/{job.job_id}", icon=":material/stop_circle:", help=tip("stop")
    ):
        widgets.ask(lambda: services.jobs().cancel(job.job_id))


def progress_bar(job: Job) -> None:
    """Draw how far a job is, with its live numbers and the time left."""
    told = job.progress
    doing = wording.JOB_TITLES.get(job.kind, "")
    if job.status == "queued":
        st.progress(0.0, text=" · ".join(word for word in (doing, "waits for a worker") if word))
        return
    if doing and not (told is not None and job.kind in wording.COUNTED_JOBS):
        # What it reports is the progress of steps it calls on, which would mislead here.
        where = f" on {job.device}" if job.device else ""
        st.markdown(f"{_MARKS['running']} **{doing}**{where}")
        return
    if told is None:
        st.progress(0.0, text="Starts")
        return
    left = time_left(job, told)
    step = wording.STEP_TITLES.get(told.step, told.step)
    # Layer by layer one job makes several passes; a comparison counts its rows.
    counted = {"compare": doing, "trials": doing, "reproduce": doing}
    named = (counted | {"compress": f"{doing}: {step}"}).get(job.kind, step)
    words = [
        f"**{named}** {told.done} of {told.total}",
        told.message,
        left,
        f"on {job.device}" if job.device else "",
    ]
    share = min(1.0, max(0.0, told.done / max(told.total, 1)))
    st.progress(share, text=" · ".join(word for word in words if word))


def time_left(job: Job, told: Progress) -> str:
    """Return how long a job takes yet, as it says itself where its pieces take unequally long,
    else by the pace of its newest ones; empty while that is not known.
    """
    if job.kind == "reproduce":
        left = told.values.get("seconds_left")
        return f"about {wording.seconds(left)} left" if left is not None else ""
    return wording.time_left(told.done, told.total, services.seconds_each(job))


def failed_beside(record: RunRecord, kind: str) -> None:
    """Draw the failed face of a job beside the line, such as a measurement, while it is the run's
    newest.
    """
    job = services.newest_job(record.run_id)
    if job is not None and job.kind == kind and job.status == "failed":
        widgets.error_panel(f"{wording.JOB_TITLES[kind]}: {job.error or NO_REASON}")
        if not job.is_refused and st.button(
            "Try again", key=f"resume/{job.job_id}", help=tip("resume")
        ):
            widgets.ask(lambda: services.jobs().resume(job.job_id))


def _ended_badly(record: RunRecord, step: str, job: Job) -> None:
    """Draw the failed or the stopped face of a step, with ways to go on."""
    if job.status == "failed":
        widgets.error_panel(job.error or NO_REASON)
    elif job.status == "cancelled":
        paused = step == "search" and record.quantize is not None
        st.warning(
            "The search is paused; what it has measured is kept. Resume it, finish it with what "
            "is measured, or change its settings and start anew."
            if paused
            else "This step was stopped before it finished. Resume it, or change its settings and "
            "start anew."
        )
    else:
        return
    if job.is_refused:
        return  # the same settings meet the same refusal
    with st.container(horizontal=True):
        go_on = st.button(
            "Resume", key=f"resume/{job.job_id}", icon=":material/play_arrow:", help=tip("resume")
        )
        settle = (
            step == "search"
            and any(trial.metrics is not None for trial in services.live_trials(record))
            and st.button(
                "Finish with what is measured",
                key=f"finish/{job.job_id}",
                icon=":material/flag:",
                help=tip("finish"),
            )
        )
    if go_on and step == "search" and job.kind == "line":
        widgets.ask(lambda: services.jobs().resume_search(record.run_id))
    elif go_on:
        widgets.ask(lambda: services.jobs().resume(job.job_id))
    if settle:
        widgets.ask(lambda: services.jobs().start_finish(record.run_id))
