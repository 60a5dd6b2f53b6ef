"""Pieces of the Search page: how far the trials are, who measures, and the buttons that steer
them.
"""

from __future__ import annotations

import streamlit as st

from app import services, tables_trials, widgets, wording
from app.glossary import tip
from app.tables_trials import Standing
from qpruner_core.domain.record import RunRecord, Trial
from qpruner_core.jobs import Job, SearchWorker

N_REASONS = 8
"""Reasons that are shown in full."""


def steer(job: Job) -> None:
    """Draw the buttons that pause and end a search; one that stops while other steps run."""
    searches = job.kind == "line" and "search" in job.steps
    with st.container(horizontal=True):
        if not (searches and at_trials(job)):
            if st.button(
                "Stop", key=f"stop/{job.job_id}", icon=":material/stop_circle:", help=tip("stop")
            ):
                widgets.ask(lambda: services.jobs().cancel(job.job_id))
            return
        if st.button(
            "Pause", key=f"pause/{job.job_id}", icon=":material/pause_circle:", help=tip("pause")
        ):
            widgets.ask(lambda: services.jobs().pause_search(job.run_id))
        if st.button(
            "Stop and finish",
            key=f"end/{job.job_id}",
            icon=":material/flag:",
            help=tip("finish"),
        ):
            widgets.ask(lambda: services.jobs().stop_search(job.run_id))


def workers_field(run_id: str) -> int:
    """Ask over how many workers the search is spread."""
    living = len(services.jobs().workers())
    asked = st.number_input(
        "Workers", 1, 64, 1, help=tip("workers"), key=f"search/{run_id}/workers"
    )
    if asked > max(1, living):
        st.caption(
            f"{living or 'No'} worker{'s are' if living > 1 else ' is'} running; the others join "
            "as soon as they are started."
        )
    return int(asked)


def progress(record: RunRecord, trials: tuple[Trial, ...], n_asked: int, job: Job | None) -> None:
    """Draw trials done of those asked for, failed and stopped ones with their reasons, and while
    the search is under way the time left and who measures what.

    Args:
        record: The run.
        trials: Its baselines and trials as they stand now.
        n_asked: Trials asked for.
        job: The job under way, if it searches.
    """
    now = tables_trials.standing(trials, n_asked)
    if job is not None:
        workers = services.jobs().search_workers(record.run_id, trials)
        n_workers = sum(not each.is_gone for each in workers)
        pace = services.seconds_each(job) if at_trials(job) else 0.0
        _bar(now, tables_trials.seconds_left(now, n_workers, pace))
        _workers(workers)
    _reasons("failed", now.failed)
    _reasons("stopped early", now.stopped)


def at_trials(job: Job) -> bool:
    """Whether the newest report of a job is one of the search."""
    return job.progress is not None and job.progress.step == "search"


def _bar(now: Standing, left: float) -> None:
    words = [
        f"**{now.n_ended} of {now.n_asked} trial{'' if now.n_asked == 1 else 's'}**",
        f"{len(now.failed)} failed" if now.failed else "",
        f"{len(now.stopped)} stopped early" if now.stopped else "",
        f"about {wording.seconds(left)} left" if left else "",
    ]
    share = min(1.0, now.n_ended / max(1, now.n_asked))
    st.progress(share, text=" · ".join(word for word in words if word))


def _workers(found: tuple[SearchWorker, ...]) -> None:
    """Say who takes part and what each measures now."""
    for each in found:
        mark = ":red[:material/power_off:]" if each.is_gone else ":green[:material/memory:]"
        doing = "between two trials" if each.trial is None else f"measures trial {each.trial}"
        if each.is_gone:
            doing = "has ended; the others take up what it left"
        st.caption(f"{mark} {each.worker} on {each.device}: {doing}")


def _reasons(word: str, ended: tuple[Trial, ...]) -> None:
    if not ended:
        return
    n_trials = f"{len(ended)} trials" if len(ended) > 1 else "1 trial"
    with st.expander(f"{n_trials} {word}"):
        found = tables_trials.reasons(ended)
        for reason in found[:N_REASONS]:
            st.markdown(f"- {reason}")
        if len(found) > N_REASONS:
            st.caption(f"{len(found) - N_REASONS} more reasons are in the run's log.")


def remarks(record: RunRecord) -> None:
    """Show what the search found worth saying, such as text too short to tell plans apart."""
    for sentence in record.search.remarks if record.search is not None else ():
        st.warning(sentence, icon=":material/info:")
