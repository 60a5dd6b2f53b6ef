"""Pieces of the Export page: what lies on disk, the proof, the snippet, the download and the
prompt box.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import streamlit as st

from app import (
    downloads,
    forms_search,
    line,
    services,
    state,
    widgets,
    widgets_metrics,
    wording,
)
from app.glossary import tip
from app.widgets import Figure
from qpruner_core.catalog import EXPORTERS
from qpruner_core.domain.compression import CompressionOutcome
from qpruner_core.domain.record import ExportOutcome, RunRecord
from qpruner_core.domain.spec import RunSpec
from qpruner_core.errors import QPrunerError
from qpruner_core.export.snippets import ADAPTER_FOLDER, snippet

SMALL_BYTES = 64 << 20
"""Up to this size a download may pass through the page's memory where the route is missing."""
_JOB = "prompt_job"


def start(record: RunRecord, spec: RunSpec, *, busy: bool) -> None:
    """Draw the export button; it runs the export alone, recovered or not."""
    keep = record.export is not None and st.toggle(
        "Work in a copy",
        value=False,
        help=tip("copy"),
        key="copy/export",
    )
    if st.button(
        "Export", type="primary", disabled=busy, help=tip("start_export"), key="start/export"
    ):
        widgets.launch(record, spec, ("export",), keep=keep)


def refused(record: RunRecord) -> None:
    """Say why the newest export was refused where an earlier one still stands."""
    job, standing = services.last_job(record.run_id, "export"), record.export
    if job is None or not job.is_refused or standing is None:
        return
    asked = record.spec.export
    if replace(asked, trial=standing.spec.trial if asked.trial is None else asked.trial) == (
        standing.spec
    ):
        return  # written since, by a command
    widgets.error_panel(job.error)
    st.caption("The export before it is untouched and stands below.")


def result(record: RunRecord, outcome: ExportOutcome) -> None:
    """Draw bytes on disk against the planned ones, the proof of the reload, and the download."""
    over = outcome.size_bytes / max(outcome.planned_bytes, 1) - 1
    adapter = downloads.adapter_bytes(Path(outcome.path))
    together = outcome.size_bytes + adapter
    widgets.figures(
        [
            Figure(
                label="On disk",
                value=wording.size(outcome.size_bytes),
                term="disk_bytes",
                origin=wording.MEASURED,
                change=f"{100 * over:+.2f} %",
            ),
            Figure(
                label="Planned",
                value=wording.size(outcome.planned_bytes),
                term="planned_bytes",
                origin=wording.ESTIMATED,
            ),
            Figure(
                label="Logit gap",
                value=f"{outcome.max_logit_difference:.3g}",
                term="reload_proof",
                origin=wording.MEASURED,
            ),
        ]
    )
    if outcome.merge_error is not None:
        st.caption(
            f"The adapter is merged into the weights: the logits moved by "
            f"{100 * outcome.merge_error:.2f} % of their norm ({wording.MEASURED}); at most "
            f"{100 * outcome.spec.merge_tolerance:g} % was allowed.",
            help=tip("merge_adapter"),
        )
    if adapter:
        st.caption(
            f"With its adapter {wording.size(together)} on disk ({wording.MEASURED}).",
            help=tip("adapter"),
        )
    if record.search is not None:
        budget = record.search.budget_bytes
        widgets_metrics.warn_over_budget(outcome.size_bytes, together, budget)
    if outcome.reload_logits_equal:
        st.success(
            "Proof of reload: a fresh process opened the folder with stock transformers, without "
            "this package, and "
            "gave the same logits bit for bit.",
            icon=":material/verified:",
        )
    else:
        widgets.error_panel(
            f"The reloaded folder does not give the same logits: they differ by up to "
            f"{outcome.max_logit_difference:.3g}. Do not use this export; export again, and "
            "report it if it stays."
        )
    download(record, outcome.spec.format, outcome)


def download(record: RunRecord, kind: str, outcome: ExportOutcome | CompressionOutcome) -> None:
    """Draw the link to a folder as one zip, and where it lies.

    Args:
        record: The run.
        kind: The part of the zip's name that says what it is: a format, or
            `downloads.LAYER_BY_LAYER`.
        outcome: What was written.
    """
    name = downloads.zip_name(record.run_id, kind)
    try:
        folder = downloads.export_folder(services.store().home, record.run_id, name)
    except QPrunerError as error:
        st.warning(str(error))
        return
    if downloads.is_served():
        st.link_button(
            "Download as zip",
            f"{downloads.ROUTE}/{record.run_id}/{name}",
            type="primary",
            icon=":material/download:",
            help=tip("download"),
        )
    elif sum(path.stat().st_size for path in downloads.files_of(folder)) <= SMALL_BYTES:
        st.download_button(
            "Download as zip",
            data=lambda: b"".join(downloads.zip_blocks(folder)),
            file_name=name,
            mime="application/zip",
            type="primary",
            icon=":material/download:",
            help=tip("download"),
        )
    else:
        st.info(
            "This server was started by `streamlit run`, which keeps downloads in memory, and the "
            "export is too "
            "large for that. Start it with `make run`, or copy the folder below."
        )
    st.caption(
        f"Folder: `{outcome.path}`, {len(outcome.files)} files, each with its SHA-256 in the "
        "manifest."
    )


def how_to_use(outcome: ExportOutcome) -> None:
    """Draw the snippet for each tool, and every file with its hash."""
    st.subheader("Use it", anchor=False)
    # By what was written, as the run may have gone on since.
    uniform = not any(name.endswith(".py") for name in outcome.files)
    adapter = any(name.startswith(f"{ADAPTER_FOLDER}/") for name in outcome.files)
    python, files = st.tabs(["transformers", "Files"])
    with python:
        st.code(
            snippet(
                outcome.spec.format, Path(outcome.path).name, uniform=uniform, adapter=adapter
            ),
            "python",
        )
        st.caption(
            f"{EXPORTERS.entry(outcome.spec.format).summary} Unpack the zip beside the script."
        )
    with files:
        st.dataframe(
            [{"File": name, "SHA-256": digest} for name, digest in sorted(outcome.files.items())],
            hide_index=True,
        )


def prompt_box(record: RunRecord, names: Mapping[int, str]) -> None:
    """Ask original and compressed model the same thing."""
    st.subheader("Ask both models", anchor=False)
    if record.search is None:
        return
    left, right = st.columns([3, 1], vertical_alignment="bottom")
    prompt = left.text_input("Prompt", help=tip("prompt"), key="export/prompt")
    with right:
        trial = forms_search.trial_field(
            "Compressed by", names, record.search.chosen, "plan", "export/ask"
        )
    if st.button("Ask", disabled=not prompt.strip(), help=tip("prompt"), icon=":material/forum:"):
        state.remember(_JOB, services.jobs().start_generate(record.run_id, prompt, trial))
    job_id = state.remembered(_JOB)
    if isinstance(job_id, str):
        job = services.jobs().get(job_id)
        if job.run_id == record.run_id:
            widgets.while_busy(line.is_under_way(job), lambda: _answers(job_id))


def _answers(job_id: str) -> None:
    job = services.jobs().get(job_id)
    if line.is_under_way(job):
        st.info("The worker is answering; a model that is not in its memory is loaded first.")
        return
    if job.status != "done":
        widgets.error_panel(job.error or "The answer was stopped.")
        return
    answer = services.jobs().result(job_id)
    words = {"original": "The original model says", "compressed": "The compressed model says"}
    for column, (key, word) in zip(st.columns(2), words.items(), strict=True):
        column.caption(word)
        column.text(str(answer.get(key, "")) or "(nothing)")
