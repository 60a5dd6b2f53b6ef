"""What the paper's table shows: findings, a table per ratio, the picture, and files to take."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import streamlit as st

from app import (
    charts_base,
    charts_reproduction,
    forms_reproduction,
    navigation,
    services,
    tables_reproduction,
    widgets,
    wording,
)
from app.glossary import tip
from app.tables_reproduction import RatioTable
from qpruner_core.domain import reproduction_table
from qpruner_core.domain.record import RunRecord
from qpruner_core.domain.reproduction import Reproduction, ratio_key
from qpruner_core.domain.reproduction_lines import REFERENCE, weights_words


def table(record: RunRecord, found: Reproduction, runs: Collection[str]) -> None:
    """Draw what was asked for and all that was measured.

    Args:
        record: The run that holds the table.
        found: The table as far as it has come.
        runs: All runs there are; those of the table's ratios may have been deleted.
    """
    _settings(found)
    tables, findings = services.once(
        f"table/{record.run_id}",
        found,
        lambda: (tables_reproduction.tables_of(found), tables_reproduction.findings(found)),
    )
    if findings:
        st.markdown("\n".join(f"- {each}" for each in findings))
    for each in tables:
        _ratio(each, found.runs, runs)
    if found.rows:
        _legend(found, by_tasks=any(len(each.tasks.columns) for each in tables))
        _picture(record, found)
    for sentence in tables_reproduction.remarks(found):
        st.warning(sentence, icon=":material/info:")
    if found.rows:
        with st.expander("How every row was trained"):
            st.dataframe(tables_reproduction.training(found), hide_index=True)
        _origin(record, found)
        _downloads(record, found)


def _settings(found: Reproduction) -> None:
    """Say how the rows are made."""
    title = forms_reproduction.SETTING_WORDS[found.spec.setting][0]
    with st.container(horizontal=True, vertical_alignment="center"):
        if found.rows:
            widgets.origin_badge(wording.MEASURED)
        st.caption(
            f"Made {title[:1].lower()}{title[1:]}. Every row is recovered by "
            f"{forms_reproduction.recovery_words(found.spec.recovery)} "
            f"{found.spec.n_trials} plans are tried at every ratio, within a budget "
            f"{wording.percent(found.spec.int8_share, 0)} of the way from 4 bit to int8."
        )


def _legend(found: Reproduction, *, by_tasks: bool) -> None:
    """Say what the columns mean."""
    st.caption(
        (f"{tables_reproduction.BOLD_WORDS} " if by_tasks else "")
        + f"Saved is measured training memory against {REFERENCE} at the same ratio, that of the "
        f"estimates in brackets. To run: the {weights_words(found)} weights and the adapter as it "
        "is stored, in float32. All of it is measured but what is called an estimate."
    )


def _ratio(table: RatioTable, children: Mapping[str, str], runs: Collection[str]) -> None:
    """Draw one ratio: what the rows cost, then what they answer, and a link to its run."""
    child = children.get(ratio_key(table.ratio))
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(
            f"**Pruned by {tables_reproduction.ratio_words(table.ratio)}**", width="content"
        )
        if child in runs and child is not None:
            st.page_link(
                navigation.page("results"),
                label="Open its run",
                icon=":material/open_in_new:",
                query_params={"run": child},
                help=tip("table_run"),
            )
    if not table.n_rows:
        st.caption("No row is measured yet.")
        return
    st.table(table.summary, hide_index=True)
    if len(table.tasks.columns):
        st.table(table.tasks, hide_index=True)


def _picture(record: RunRecord, found: Reproduction) -> None:
    """Draw accuracy against memory, where any row has both."""
    if not found.rows:
        return
    memory = str(
        st.segmented_control(
            "Memory of the picture",
            list(charts_reproduction.MEMORIES),
            default=charts_reproduction.TRAINING,
            required=True,
            format_func=charts_reproduction.MEMORIES.__getitem__,
            help=tip("table_memory"),
            key="reproduce/memory",
        )
    )
    if all(charts_reproduction.memory_of(row, memory) is None for row in found.rows):
        st.info("The memory of training was not counted on this device. Look at the weights.")
        return
    figure = services.once(
        f"table/{record.run_id}/{memory}",
        found,
        lambda: charts_reproduction.memory_accuracy(found, memory),
    )
    st.plotly_chart(figure, key="reproduce/picture", config=charts_base.PLAIN)


def _origin(record: RunRecord, found: Reproduction) -> None:
    """Say on what the numbers rest: data, device, time."""
    devices = ", ".join(sorted({row.recovery.after.device for row in found.rows}))
    items = found.spec.items_per_task
    rows = f"rows on {items} items per task" if items else "rows on all items of every task"
    spent = sum(row.seconds for row in found.rows) + sum(found.search_seconds.values())
    st.caption(
        f"Plans were tried on {wording.data(record.spec.data)}; {rows}. Measured on {devices} in "
        f"{wording.seconds(spent)}; begun {wording.day(found.begun_at or record.created_at)} UTC"
        f"{f' by version {found.version}' if found.version else ''}, seed {found.spec.seed}."
    )


def _downloads(record: RunRecord, found: Reproduction) -> None:
    """Offer the table as text; it is small enough to pass through the page."""
    written = {
        "CSV": ("csv", "text/csv", reproduction_table.csv),
        "Markdown": ("md", "text/markdown", reproduction_table.markdown),
        "LaTeX": ("tex", "application/x-tex", reproduction_table.latex),
    }
    with st.container(horizontal=True):
        for name, (suffix, mime, write) in written.items():
            st.download_button(
                name,
                data=write(found),
                file_name=f"{record.run_id}-table.{suffix}",
                mime=mime,
                icon=":material/download:",
                help=tip("table_download"),
                on_click="ignore",
                key=f"reproduce/download/{suffix}",
            )
