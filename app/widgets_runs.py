"""Pieces of the Runs page: the first start, a model's card, and what can be done with runs."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from app import (
    line,
    navigation,
    services,
    state,
    tables,
    units,
    widgets,
    wording,
    wording_pruning,
)
from app.glossary import tip
from app.widgets import Figure
from qpruner_core.domain.footprint import dense_bytes
from qpruner_core.domain.layout import KINDS, ModelLayout
from qpruner_core.domain.record import STEPS, RunRecord
from qpruner_core.domain.spec import DataSpec, ModelSpec, RunSpec
from qpruner_core.errors import QPrunerError


def first_start() -> None:
    """Offer the demo model with one button for the whole line."""
    with st.container(border=True):
        st.subheader("See it work", anchor=False)
        st.write(
            "A small language model comes with the studio. One click scores its layers, prunes a "
            "fifth of their parameters, searches the precision of every layer under a memory "
            "budget, repairs the loss and exports a checkpoint. It takes a few minutes without a "
            "GPU, and you can watch every step."
        )
        if st.button(
            "Compress the demo model",
            type="primary",
            icon=":material/play_arrow:",
            help=tip("whole_line"),
        ):
            start_whole_line(RunSpec(model=ModelSpec(source="demo"), name="Demo"))


def start_whole_line(spec: RunSpec) -> None:
    """Create a run and put all its steps on the queue."""
    record = services.store().create(spec)
    services.jobs().start_line(record.run_id, STEPS, spec)
    state.choose_run(record.run_id)
    st.rerun()


def new_run(spec: ModelSpec, data: DataSpec, name: str) -> None:
    """Draw the ways to start: step by step, the whole line with the defaults, or the paper's
    table.
    """
    asked = RunSpec(model=spec, data=data, name=name.strip())
    if st.button("Create run", type="primary", help=tip("create_run"), width="stretch"):
        services.model_card(spec)
        record = services.store().create(asked)
        state.choose_run(record.run_id)
        st.switch_page(navigation.page("importance"), query_params={"run": record.run_id})
    if st.button("Run the whole line", help=tip("whole_line"), width="stretch"):
        services.model_card(spec)
        start_whole_line(asked)
    if st.button("Make the paper's table", help=tip("reproduce"), width="stretch"):
        services.model_card(spec)
        record = services.store().create(asked)
        state.choose_run(record.run_id)
        st.switch_page(navigation.page("results"), query_params={"run": record.run_id})


def model_card(spec: ModelSpec) -> None:
    """Draw what the headers say: architecture, parameters, bytes at each precision, and fitting
    GPUs.
    """
    try:
        card = services.model_card(spec)
    except QPrunerError as error:
        widgets.error_panel(str(error))
        return
    layout = card.layout
    st.markdown(f"**{card.title}** · read from config and headers, no weight was loaded")
    widgets.figures(
        [
            Figure(label="Parameters", value=wording.count(card.parameters), term="parameters"),
            Figure(
                label="On disk",
                value=wording.size(card.file_bytes),
                term="file_bytes",
                origin="measured",
            ),
            Figure(
                label="At 16 bit",
                value=wording.size(dense_bytes(layout)),
                term="dense_bytes",
                origin="estimated",
            ),
        ]
    )
    st.caption(
        f"{wording_pruning.family(layout.model_type)}: {layout.n_layers} layers, hidden size "
        f"{layout.hidden_size}, {wording_pruning.heads(layout)}, vocabulary "
        f"{layout.vocab_size:,}, up to {card.max_positions:,} tokens, files in {card.dtype}."
    )
    _removable(layout)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown("**What it takes at each precision**", width="content")
        widgets.origin_badge(wording.ESTIMATED)
    st.dataframe(tables.precisions(card), hide_index=True)
    with st.expander("Which GPUs it fits (estimated)", expanded=False):
        st.dataframe(tables.cards(card), hide_index=True)


def _removable(layout: ModelLayout) -> None:
    """Say which units the family can lose, and how many experts a layer has."""
    n_experts = units.n_experts(layout)
    if n_experts:
        st.caption(f"Mixture of {n_experts} experts per sparse layer.", help=tip("experts"))
    kinds = [KINDS[kind] for kind in units.kinds_of(layout)]
    st.caption(f"Pruning can remove {', '.join(kinds)} and whole layers.", help=tip("removable"))


def failed_face(record: RunRecord) -> None:
    """Say why the newest job of a run ended before its steps were done."""
    job = services.newest_job(record.run_id)
    if job is not None and job.status == "failed":
        broken = next(
            (s for s in job.steps if line.standing(record, job).get(s) == "failed"), None
        )
        if broken is not None:
            widgets.error_panel(
                job.error or "The job failed without a reason; its log is on the Jobs page."
            )
            st.page_link(
                navigation.page("jobs"), label="Open Jobs to resume it", help=tip("resume")
            )


def actions(records: Sequence[RunRecord]) -> None:
    """Draw open, compare and delete for the runs picked below the table."""
    names = {record.run_id: state.run_name(record) for record in records}
    current = state.run_id()
    picked = st.multiselect(
        "Picked runs",
        list(names),
        default=[current] if current in names else [],
        format_func=names.__getitem__,
        help=tip("picked_runs"),
        placeholder="Pick one to open or delete, two or more to compare",
    )
    with st.container(horizontal=True):
        if st.button(
            "Open", disabled=len(picked) != 1, help=tip("open_run"), icon=":material/folder_open:"
        ):
            state.choose_run(picked[0])
            st.rerun()
        if st.button(
            "Compare",
            disabled=len(picked) < 2,
            help=tip("compare"),
            icon=":material/compare_arrows:",
        ):
            state.choose_run(picked[0])
            st.switch_page(
                navigation.page("results"),
                query_params={"run": picked[0], "with": ",".join(picked[1:])},
            )
        with st.popover(
            "Delete", disabled=not picked, help=tip("delete_run"), icon=":material/delete:"
        ):
            _delete(picked, names)


def _delete(picked: Sequence[str], names: dict[str, str]) -> None:
    st.write(
        f"Deletes {', '.join(names[run_id] for run_id in picked) or 'nothing'} with all files, "
        "for good."
    )
    if st.button("Delete for good", type="primary", disabled=not picked, help=tip("delete_run")):
        for run_id in picked:
            services.delete_run(run_id)
        if state.run_id() in picked:
            state.choose_run(None)
        st.rerun()
