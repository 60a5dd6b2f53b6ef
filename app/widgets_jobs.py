"""Pieces of the Jobs page: workers, what is under way, logs, disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import streamlit as st

from app import line, services, state, tables, widgets, widgets_standing, wording
from app.glossary import tip
from app.widgets import Figure
from qpruner_core.jobs import Job

N_LOG_LINES = 60


def is_busy(found: Sequence[Job]) -> bool:
    """Whether any job waits or runs."""
    return any(line.is_under_way(job) for job in found)


def workers() -> None:
    """Draw the workers with their devices."""
    st.subheader("Workers", anchor=False)
    found = services.jobs().workers()
    if not found:
        st.warning(
            "No worker is running, so jobs wait. `make run` starts one; on a machine of its own "
            "run "
            "`python -m qpruner_core.worker` with the same home folder."
        )
        return
    st.dataframe(tables.workers(found), hide_index=True)


def under_way(names: Mapping[str, str]) -> None:
    """Draw every job that waits or runs, with its progress and a button to stop it."""
    found = [job for job in services.jobs().list() if line.is_under_way(job)]
    if not found:
        st.caption("Nothing is waiting or running.")
        return
    for job in found:
        with st.container(border=True):
            left, right = st.columns([6, 1], vertical_alignment="center")
            with left:
                st.markdown(f"**{names.get(job.run_id, job.run_id)}**")
                widgets_standing.progress_bar(job)
            if right.button("Stop", key=f"jobs/stop/{job.job_id}", help=tip("stop")):
                services.jobs().cancel(job.job_id)
                st.rerun()


def actions(found: Sequence[Job], names: Mapping[str, str]) -> None:
    """Draw resume for a job that was stopped or failed, with the reason of a failure."""
    ended = {job.job_id: job for job in found if job.status in ("failed", "cancelled")}
    if not ended:
        return
    chosen = st.selectbox(
        "Stopped or failed job",
        list(ended),
        format_func=lambda key: (
            f"{names.get(ended[key].run_id, ended[key].run_id)}: "
            f"{wording.job_status(ended[key].status)}, {key[-8:]}"
        ),
        help=tip("resume"),
    )
    job = ended[str(chosen)]
    if job.error:
        widgets.error_panel(job.error)
    if not job.is_refused and st.button(
        "Resume this job", help=tip("resume"), icon=":material/play_arrow:"
    ):
        widgets.ask(lambda: services.jobs().resume(job.job_id))


def run_field(names: Mapping[str, str]) -> str:
    """Ask whose log to show; the chosen run first."""
    runs = list(names)
    chosen = state.run_id()
    return str(
        st.selectbox(
            "Run with log",
            runs,
            index=runs.index(chosen) if chosen in names and chosen is not None else 0,
            format_func=names.__getitem__,
            help=tip("log"),
        )
    )


def log(run_id: str) -> None:
    """Draw the last lines that the worker logged for a run."""
    text = services.store().log(run_id, N_LOG_LINES)
    if text:
        lines = map(wording.log_line, text.splitlines())
        st.code("\n".join(lines), language=None, height=260, wrap_lines=True)
    else:
        st.caption("The worker has not logged anything for this run.")


def disk(names: Mapping[str, str]) -> None:
    """Draw what every run takes on disk, and remove runs."""
    sizes = {run_id: services.store().disk_usage(run_id) for run_id in names}
    widgets.figures(
        [
            Figure(
                label="All runs on disk",
                value=wording.size(sum(sizes.values())),
                term="disk_usage",
                origin=wording.MEASURED,
            ),
            Figure(label="Runs", value=str(len(sizes)), term="run"),
        ]
    )
    st.dataframe(tables.disk(sizes, names), hide_index=True)
    busy = {job.run_id for job in services.jobs().list() if line.is_under_way(job)}
    free = [run_id for run_id in names if run_id not in busy]
    gone = st.multiselect(
        "Runs to clean up",
        free,
        format_func=names.__getitem__,
        help=tip("delete_run"),
        placeholder="None",
    )
    sure = st.checkbox("Delete them with all files, for good", help=tip("delete_run"))
    if st.button(
        "Clean up", disabled=not (gone and sure), help=tip("delete_run"), icon=":material/delete:"
    ):
        for run_id in gone:
            services.delete_run(run_id)
        st.rerun()
    for name, reason in services.store().broken().items():
        st.warning(f"{name}: {reason}")
