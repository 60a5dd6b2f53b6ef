"""Shared pieces of pages: title, where a run stands, running and failed faces, rows of figures,
the layer map.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import streamlit as st

from app import charts_base, charts_plan, line, navigation, services, state, wording
from app.glossary import tip
from qpruner_core.catalog import check_spec
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.record import STEPS, RunRecord
from qpruner_core.domain.spec import RunSpec
from qpruner_core.errors import QPrunerError
from qpruner_core.jobs import Job

EVERY = 1.5
"""Seconds between two looks at what is under way."""

NO_REASON = "The job failed without a reason; the log on the Jobs page says more."
_MARKS = {
    "done": ":green[:material/check_circle:]",
    "running": ":blue[:material/progress_activity:]",
    "waiting": ":gray[:material/schedule:]",
    "failed": ":red[:material/error:]",
    "open": ":gray[:material/radio_button_unchecked:]",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number on screen; says whether it is measured or estimated, unless it is asked for or
    counted.
    """

    label: str
    value: str
    term: str
    """Glossary term of the tooltip."""
    origin: str = ""
    """``"measured"``, ``"estimated"`` or empty."""
    change: str | None = None
    """Difference to a reference, with its unit."""
    lower_is_better: bool = True
    before: str = ""
    """What it was, where the change alone does not say it."""


def title(key: str) -> None:
    """Draw a page's title and the question it answers."""
    entry = navigation.entry(key)
    st.title(entry.title, anchor=False)
    st.caption(entry.question)


def error_panel(sentence: str) -> None:
    """Show a sentence about what went wrong and what to do."""
    st.error(sentence, icon=":material/error:")


def figures(row: Sequence[Figure]) -> None:
    """Draw figures side by side."""
    for column, figure in zip(st.columns(len(row)), row, strict=True):
        with column.container(border=True, height="stretch", gap="xsmall"):
            _metric(figure)
            with st.container(horizontal=True, vertical_alignment="center", gap="small"):
                if figure.origin:
                    origin_badge(figure.origin)
                if figure.before:
                    st.caption(f"before {figure.before}", width="content")


def _metric(figure: Figure) -> None:
    """Draw number and change; a change of nothing has neither sign, arrow nor colour."""
    change = figure.change
    is_none = change is not None and wording.is_nothing(change)
    if change is not None and is_none:
        change = change.lstrip("+-")
    st.metric(
        figure.label,
        figure.value,
        delta=change,
        delta_color="off" if is_none else "inverse" if figure.lower_is_better else "normal",
        delta_arrow="off" if is_none else "auto",
        help=tip(figure.term),
    )


def origin_badge(origin: str) -> None:
    """Say whether numbers are measured or estimated, in one look everywhere."""
    st.badge(origin, color="green" if origin == wording.MEASURED else "orange", help=tip(origin))


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
    """Draw the eight steps of the line and where the run stands."""
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

    @st.fragment(run_every=EVERY)
    def progress() -> None:
        now = services.jobs().get(job.job_id)
        known = services.store().read(record.run_id)
        news = line.filled(known) != filled or known.comparison != record.comparison
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
        ask(lambda: services.jobs().cancel(job.job_id))


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
    left = wording.time_left(told.done, told.total, services.seconds_each(job))
    step = wording.STEP_TITLES.get(told.step, told.step)
    # Layer by layer one job makes several passes; a comparison counts its rows.
    named = {"compare": doing, "trials": doing, "compress": f"{doing}: {step}"}.get(job.kind, step)
    words = [
        f"**{named}** {told.done} of {told.total}",
        told.message,
        left,
        f"on {job.device}" if job.device else "",
    ]
    share = min(1.0, max(0.0, told.done / max(told.total, 1)))
    st.progress(share, text=" · ".join(word for word in words if word))


def failed_beside(record: RunRecord, kind: str) -> None:
    """Draw the failed face of a job beside the line, such as a measurement, while it is the run's
    newest.
    """
    job = services.newest_job(record.run_id)
    if job is not None and job.kind == kind and job.status == "failed":
        error_panel(f"{wording.JOB_TITLES[kind]}: {job.error or NO_REASON}")
        if st.button("Try again", key=f"resume/{job.job_id}", help=tip("resume")):
            ask(lambda: services.jobs().resume(job.job_id))


def _ended_badly(record: RunRecord, step: str, job: Job) -> None:
    """Draw the failed or the stopped face of a step, with ways to go on."""
    if job.status == "failed":
        error_panel(job.error or NO_REASON)
    elif job.status == "cancelled":
        st.warning(
            "This step was stopped before it finished. Resume it, or change its settings and "
            "start anew."
        )
    else:
        return
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
        ask(lambda: services.jobs().resume_search(record.run_id))
    elif go_on:
        ask(lambda: services.jobs().resume(job.job_id))
    if settle:
        ask(lambda: services.jobs().start_finish(record.run_id))


def ask(request: Callable[[], object]) -> None:
    """Ask the job engine for something and draw the page anew, or show why it refuses."""
    try:
        request()
    except QPrunerError as error:
        error_panel(str(error))
    else:
        st.rerun()


def start(
    record: RunRecord,
    spec: RunSpec,
    goal: str,
    label: str,
    *,
    redo: str | None = None,
    busy: bool = False,
    workers: int = 1,
) -> None:
    """Draw the button that puts a step on the queue; old results are kept in a copy unless the
    person says not.

    Args:
        record: The run as it stands.
        spec: What is asked for now.
        goal: The step to reach.
        label: Text of the button.
        redo: An earlier step whose result no longer fits the spec.
        busy: Whether a job of this run is under way, which disables the button.
        workers: Over how many workers a search is spread.
    """
    steps = line.steps_until(record, goal, redo)
    lost = line.emptied_by(record, steps)
    # A copy would start an empty study, whereas this run's goes on with its measured trials.
    goes_on = steps == ("search",) and line.asks_more_trials(record, spec.search)
    keep = bool(lost) and st.toggle(
        "Work in a copy",
        value=not goes_on,
        help=tip("copy"),
        key=f"copy/{goal}/more" if goes_on else f"copy/{goal}",
    )
    if goes_on:
        st.caption("The search goes on with the trials that are measured already.")
    elif lost and not keep:
        names = ", ".join(wording.STEP_TITLES[step] for step in lost)
        st.caption(f"Starting replaces the results of: {names}.")
    if st.button(
        label, type="primary", disabled=busy, help=tip(f"start_{goal}"), key=f"start/{goal}"
    ):
        launch(record, spec, steps, keep=keep, workers=workers)


def launch(
    record: RunRecord,
    spec: RunSpec,
    steps: tuple[str, ...],
    *,
    keep: bool = False,
    workers: int = 1,
) -> None:
    """Put steps of a run on the queue, in a copy if asked, and draw the page anew."""
    try:
        check_spec(spec)
        target = services.store().fork(record.run_id, steps[0]) if keep else record
        services.jobs().start_line(target.run_id, steps, spec, workers=workers)
    except QPrunerError as error:
        error_panel(str(error))
        return
    state.choose_run(target.run_id)
    st.rerun()


def while_busy(busy: bool, draw: Callable[[], None]) -> None:
    """Draw something, again and again as long as a job is under way."""
    st.fragment(draw, run_every=EVERY if busy else None)()


def layer_map(
    layout: ModelLayout, plan: PrecisionPlan, key: str, marked: Collection[str] = ()
) -> None:
    """Draw which precision every Linear has; marked ones are ringed."""
    made = charts_plan.layer_map(layout, plan, marked)
    st.plotly_chart(made, key=key, config=charts_base.PLAIN)


def with_part(spec: RunSpec, **parts: object) -> RunSpec:
    """Return a run's spec with some steps asked anew."""
    return replace(spec, **parts)  # type: ignore[arg-type]
