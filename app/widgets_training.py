"""What training takes before it starts: the estimate for the settings in the form, beside other
settings, and whether a worker holds it.
"""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from app import charts_base, charts_recovery, forms_recovery, memory, services, widgets, wording
from app.widgets import Figure
from qpruner_core.catalog import OPTIMIZERS, precision_formats
from qpruner_core.domain.device_memory import (
    TrainingBytes,
    bytes_beyond_16_bit,
    training_bytes_estimate,
)
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.record import RunRecord
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.search.costs import training_load

CPU_BYTES, CARD_BYTES = 4, 2
"""Bytes of one activation: float32 on the CPU, bfloat16 on a card."""
SMALL_TENSOR = 4096
"""Entries from which on an optimiser of 8 bit keeps its moments so."""
PLAIN, SMALL = "adamw", "adamw_8bit"


def estimate(record: RunRecord, spec: RecoverySpec) -> None:
    """Draw the memory that training will take, before it starts."""
    rows = settings(record, spec)
    if not rows:
        return
    need = next(iter(rows.values()))
    widgets.figures(
        [
            Figure(
                label="Training memory",
                value=wording.size(need.total),
                term="training_memory",
                origin=wording.ESTIMATED,
            )
        ]
    )
    st.caption(
        f"Packed weights {wording.size(need.weights)}, adapters with gradients and optimiser "
        f"{wording.size(need.adapter)}, activations {wording.size(need.activations)}, logits "
        f"{wording.size(need.logits)}, workspace {wording.size(need.workspace)} (estimated)."
    )
    st.caption(" ".join(peak_words(record, spec)))
    _room(need.total)
    made = charts_recovery.memory(rows)
    st.plotly_chart(made, key="recovery/memory", config=charts_base.PLAIN)


def peak_words(record: RunRecord, spec: RecoverySpec) -> list[str]:
    """Return what the peak is made of, as sentences: why settings may come to equal totals."""
    words = [
        "With checkpointing the peak is that of one layer computed again or that of the logits, "
        "whichever is larger.",
        f"8-bit moments apply to tensors of {SMALL_TENSOR:,} entries or more.",
    ]
    layout = forms_recovery.layout_of(record, spec.trial)
    if layout is None or forms_recovery.device_of(record, spec.trial) != "cpu":
        return words
    beyond = bytes_beyond_16_bit(layout, training_load(spec, CPU_BYTES))
    return [
        *words,
        f"Weights take {wording.size(beyond)} more than packed: on a CPU embeddings and norms "
        f"are held in float32.",
    ]


def settings(record: RunRecord, spec: RecoverySpec) -> dict[str, TrainingBytes]:
    """Return words -> estimated parts: these settings first, then others that differ in one thing
    each; empty where the plan is not known.
    """
    trial = forms_recovery.trial_of(record, spec.trial)
    layout = forms_recovery.layout_of(record, spec.trial)
    if trial is None or layout is None:
        return {}
    on_cpu = forms_recovery.device_of(record, spec.trial) == "cpu"

    def parts(asked: RecoverySpec, plan: PrecisionPlan) -> TrainingBytes:
        load = training_load(asked, CPU_BYTES if on_cpu else CARD_BYTES)
        return training_bytes_estimate(layout, plan, precision_formats(), load)

    checkpointing = spec.gradient_checkpointing
    other = PLAIN if "8bit" in spec.optimizer else SMALL
    return {
        "these settings": parts(spec, trial.plan),
        f"{'without' if checkpointing else 'with'} checkpointing": parts(
            replace(spec, gradient_checkpointing=not checkpointing), trial.plan
        ),
        OPTIMIZERS.entry(other).title: parts(replace(spec, optimizer=other), trial.plan),
        "16-bit weights": parts(spec, PrecisionPlan.uniform(layout, "bf16")),
    }


def _room(needed_bytes: int) -> None:
    """Say whether the workers' devices hold it, where they tell what they have."""
    smallest = memory.smallest(services.jobs().workers())
    if smallest is None or smallest.memory_bytes is None:
        return
    has = f"{wording.size(smallest.memory_bytes)} of the worker on {smallest.device}"
    if memory.holds(smallest, needed_bytes):
        st.caption(f":green[:material/check:] Fits the {has}.")
        return
    st.warning(
        f"Training is estimated at {wording.size(needed_bytes)}, more than the {has} leave. Turn "
        f"on gradient checkpointing, read fewer or shorter sequences at a time, or lower the rank."
    )
