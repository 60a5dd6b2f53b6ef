"""The paper's table on a page: how to start it, how far it is, and how to go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import streamlit as st

from app import (
    forms_reproduction,
    line,
    navigation,
    services,
    state,
    tables_reproduction,
    widgets,
    widgets_reproduction_table,
    widgets_standing,
)
from app.forms_reproduction import Asked
from app.glossary import tip
from qpruner_core.domain.record import RunRecord
from qpruner_core.domain.reproduction import Reproduction
from qpruner_core.jobs import Job

TITLE = "The paper's table"
KIND = "reproduce"
ABOUT = (
    "QPruner's claim is that recovery of a quantised model needs far less memory than at 16 bit, "
    "at equal or better accuracy. This measures it on the model of this run: at every pruning "
    "ratio LLM-Pruner at 16 bit and the three variants of QPruner, each recovered alike, with "
    "accuracy, training memory and the bytes to run. Every ratio becomes a run of its own, whose "
    "plans can be looked at here."
)


def panel(
    record: RunRecord, records: Sequence[RunRecord], *, busy: bool, alone: bool = False
) -> None:
    """Draw the table of a run on all its faces, and how to start one.

    Args:
        record: The run of the page.
        records: All runs, among which are those of the table's ratios.
        busy: Whether a job of this run is under way.
        alone: Whether nothing stands between the run's status, with the progress of its job, and
            the table.
    """
    st.subheader(TITLE, anchor="paper-table", help=tip("reproduce"))
    is_part = belongs_to(record, records)
    job = newest(record.run_id)
    found = record.reproduction
    if found is None and not is_part:
        st.caption(ABOUT)
    if job is not None and line.is_under_way(job):
        if not alone:
            _running(record, job)
        n_rows = len(found.rows) if found is not None else 0
        st.caption(f"Rows appear here as they are measured; {n_rows} are by now.")
    elif found is None or not found.is_complete:
        _ended(record, job)
    if found is not None:
        widgets_reproduction_table.table(record, found, {each.run_id for each in records})
    with st.expander(
        "Make the table" if found is None else "Make it again, with other settings",
        # A run with plans of its own is looked at for these.
        expanded=found is None and record.search is None and not busy,
    ):
        _start(record, forms_reproduction.reproduction_form(record), busy=busy)


def newest(run_id: str) -> Job | None:
    """Return the newest job that makes the table of a run."""
    found = [job for job in services.jobs().list(run_id) if job.kind == KIND]
    return max(found, key=lambda job: job.created_at, default=None)


def belongs_to(record: RunRecord, records: Sequence[RunRecord]) -> bool:
    """Say of which tables a run is a part, with links to them; return whether it is one."""
    is_part = False
    for owner in records:
        made = owner.reproduction
        runs = made.runs if made is not None else {}
        for ratio in (each for each, run in runs.items() if run == record.run_id):
            is_part = True
            where = tables_reproduction.ratio_words(float(ratio))
            st.page_link(
                navigation.page("results"),
                label=f"This run is the part at {where} of the table of {state.run_name(owner)}; "
                "open that table",
                icon=":material/table_chart:",
                query_params={"run": owner.run_id},
                help=tip("reproduce"),
            )
    return is_part


def _running(record: RunRecord, job: Job) -> None:
    """Draw how far the table is, over rows and over the pieces of the present one."""

    @st.fragment(run_every=widgets.EVERY)
    def progress() -> None:
        now = services.jobs().get(job.job_id)
        known = services.store().read(record.run_id).reproduction
        if known != record.reproduction or not line.is_under_way(now):
            st.rerun()
        with st.container(border=True):
            st.progress(*_progress(known, now))
            if st.button(
                "Stop the table",
                key=f"reproduce/stop/{job.job_id}",
                icon=":material/stop_circle:",
                help=tip("stop"),
            ):
                widgets.ask(lambda: services.jobs().cancel(job.job_id))

    progress()


def _progress(found: Reproduction | None, job: Job) -> tuple[float, str]:
    """Return the share of the pieces that are done, and in words the rows, the present piece and
    the time left.
    """
    told = job.progress
    if told is None:
        return 0.0, "Waits for a worker" if job.status == "queued" else "Starts"
    words = [
        f"**{len(found.rows)} of {found.n_rows} rows** measured" if found is not None else "",
        told.message,
        widgets_standing.time_left(job, told),
    ]
    share = min(1.0, max(0.0, told.done / max(told.total, 1)))
    return share, " · ".join(word for word in words if word)


def _ended(record: RunRecord, job: Job | None) -> None:
    """Draw the failed or the stopped face, with the way to go on."""
    found = record.reproduction
    ended = job is not None and job.status in ("failed", "cancelled")
    if not ended and found is None:
        return
    so_far = f"{len(found.rows)} of {found.n_rows} rows are measured." if found else ""
    if job is not None and job.status == "failed":
        widgets.error_panel(f"{TITLE}: {job.error or widgets_standing.NO_REASON}")
    else:
        st.warning(f"The table was stopped before it was finished. {so_far}".strip())
    if not st.button(
        "Go on with the table",
        key="reproduce/resume",
        icon=":material/play_arrow:",
        help=tip("resume"),
    ):
        return
    if job is not None and ended:
        widgets.ask(lambda: services.jobs().resume(job.job_id))
    elif found is not None:  # a command began it, so no job of the queue can be resumed
        widgets.ask(lambda: services.jobs().start_reproduce(record.run_id, found.spec))


def _start(record: RunRecord, asked: Asked | None, *, busy: bool) -> None:
    """Draw what the table takes and the button that starts it, in a run of its own where this
    one has a table or reads other tasks.
    """
    has_table = record.reproduction is not None and bool(record.reproduction.rows)
    apart = has_table and st.toggle(
        "In a run of its own", value=True, help=tip("table_apart"), key="reproduce/apart"
    )
    if has_table and not apart and asked is not None:
        st.caption(_replaced_words(record, asked))
    if asked is not None:
        st.caption(forms_reproduction.workload(record, asked.spec))
        if asked.task_names != record.spec.data.task_names:
            apart = True
            st.caption("Other tasks than this run's are answered in a run of their own.")
    clicked = st.button(
        "Make the table",
        type="primary",
        icon=":material/table_chart:",
        disabled=busy or asked is None,
        help=tip("reproduce"),
        key="reproduce/start",
    )
    if clicked and asked is not None:
        widgets.ask(lambda: _launch(record, asked, apart=bool(apart)))


def _replaced_words(record: RunRecord, asked: Asked) -> str:
    """Return what of a run's table stays when another one is made in the same run."""
    known = record.reproduction
    if known is None or not known.differs_in_ratios_only(asked.spec):
        return "The whole table is replaced, as its rows are of other settings."
    if known.spec == asked.spec:
        return "These are the settings of the table: its rows are kept, and missing ones made."
    return (
        "Only the ratios differ: rows of ratios that stay are kept, those of other ratios are "
        "dropped."
    )


def _launch(record: RunRecord, asked: Asked, *, apart: bool) -> None:
    """Put the table on the queue."""
    if not apart:
        services.jobs().start_reproduce(record.run_id, asked.spec)
        return
    copy = services.store().fork(record.run_id, "load")
    spec = replace(copy.spec, data=replace(copy.spec.data, task_names=asked.task_names))
    services.store().write(replace(copy, spec=spec))
    training = copy.spec.recovery.training
    recovery = replace(asked.spec.recovery, training=training)
    services.jobs().start_reproduce(copy.run_id, replace(asked.spec, recovery=recovery))
    state.choose_run(copy.run_id)
