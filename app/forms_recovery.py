"""Widgets in, `RecoverySpec` out: a preset fills the form, then the settings in groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from app import forms_search, forms_training, plans, points, tables_recovery, widgets
from app.forms import option_fields
from app.glossary import tip
from qpruner_core.catalog import INITIALIZATIONS, OPTIMIZERS
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.record import RunRecord, Trial
from qpruner_core.domain.recovery import PRESETS, SCHEDULES, RecoverySpec
from qpruner_core.errors import BadInputError, NotReadyError, QPrunerError

AS_ASKED = "as asked"
PRESET_WORDS = {
    AS_ASKED: "As the run has it",
    "usual": "Usual",
    "paper": "As in the paper",
    "low memory": "Low memory",
}
SCHEDULE_WORDS = {"linear": "Linear to 0", "cosine": "Cosine to 0", "constant": "Constant"}
MOST_ROWS, SHOWN_ROWS, ROW_PIXELS = 16, 8, 35
"""Rows up to which a table shows all of them, rows it shows else, and the height of one."""

Fields = dict[str, Any]
"""Name -> value, to be put into a `RecoverySpec`."""


def recovery_form(record: RunRecord, names: Mapping[int, str]) -> RecoverySpec | None:
    """Ask how to train; None, with the reason drawn, where that does not go together.

    Every field is another one for another preset, so that choosing a preset fills the form.

    Args:
        record: A run that has been searched.
        names: Number of a measured plan -> its name.
    """
    preset = _preset_field()
    spec = filled(record.spec.recovery, preset)
    key = f"recover/{record.run_id}/{preset}"
    chosen = record.search.chosen if record.search is not None else 0
    trial = forms_search.trial_field(
        "Plan to train on",
        names,
        chosen if spec.trial is None else spec.trial,
        "plan",
        f"recover/{record.run_id}/trial",
    )
    made: Fields = {"trial": trial, **_steps_fields(spec, key)}
    layout = layout_of(record, trial)
    with st.expander("Schedule and batch"):
        made |= _schedule_fields(spec, key) | _batch_fields(spec, key)
    try:
        with st.expander("Adapters"):
            made |= _adapter_fields(spec, key) | _where_fields(spec, layout, key)
            made |= _initialization_fields(spec, key)
        with st.expander("Memory"):
            made |= _memory_fields(spec, device_of(record, trial), key)
        with st.expander("Training text"):
            made |= forms_training.fields(record, spec, key)
        return replace(spec, **made)
    except NotReadyError as error:
        st.info(str(error))
    except QPrunerError as error:
        widgets.error_panel(str(error))
    return None


def filled(spec: RecoverySpec, preset: str) -> RecoverySpec:
    """Return the settings that a preset gives; plan, text and seed stay those of the run."""
    if preset == AS_ASKED:
        return spec
    kept = {"trial": spec.trial, "training": spec.training, "seed": spec.seed}
    return replace(PRESETS[preset], **kept)  # type: ignore[arg-type]


def trial_of(record: RunRecord, number: int | None) -> Trial | None:
    """Return the measured plan of that number."""
    return next((trial for trial in points.trials_of(record) if trial.number == number), None)


def layout_of(record: RunRecord, number: int | None) -> ModelLayout | None:
    """Return the layout of the model that a measured plan makes."""
    trial = trial_of(record, number)
    return record.layout if trial is None else plans.layout_of(record, trial.plan)


def device_of(record: RunRecord, number: int | None) -> str:
    """Return where a measured plan was measured; ``cpu``, the name of a card, or empty."""
    trial = trial_of(record, number)
    return trial.metrics.device if trial is not None and trial.metrics is not None else ""


def _preset_field() -> str:
    return str(
        st.selectbox(
            "Preset",
            [AS_ASKED, *PRESETS],
            format_func=lambda name: PRESET_WORDS.get(name, name.capitalize()),
            help=tip("recovery_preset"),
            key="recover/preset",
        )
    )


def _pair() -> Sequence[DeltaGenerator]:
    """Return two columns whose fields stand on one line, however long their labels are."""
    return st.columns(2, vertical_alignment="bottom")


def _steps_fields(spec: RecoverySpec, key: str) -> Fields:
    left, right = _pair()
    steps = left.number_input(
        "Steps", 0, 1_000_000, spec.steps, help=tip("recovery_steps"), key=f"{key}/steps"
    )
    rate = right.number_input(
        "Learning rate",
        1e-6,
        1.0,
        spec.learning_rate,
        step=1e-4,
        format="%g",
        help=tip("learning_rate"),
        key=f"{key}/rate",
    )
    return {"steps": int(steps), "learning_rate": float(rate)}


def _schedule_fields(spec: RecoverySpec, key: str) -> Fields:
    left, right = _pair()
    schedule = left.selectbox(
        "Schedule",
        SCHEDULES,
        SCHEDULES.index(spec.schedule),
        format_func=lambda name: SCHEDULE_WORDS.get(name, name),
        help=tip("schedule"),
        key=f"{key}/schedule",
    )
    percent = right.number_input(
        "Warm-up, % of the steps",
        0.0,
        99.0,
        round(100 * spec.warm_up, 4),
        step=1.0,
        format="%g",
        help=tip("warm_up"),
        key=f"{key}/warm_up",
    )
    left, right = _pair()
    decay = left.number_input(
        "Weight decay",
        0.0,
        1.0,
        spec.weight_decay,
        step=0.01,
        format="%g",
        help=tip("weight_decay"),
        key=f"{key}/decay",
    )
    seed = right.number_input("Seed", 0, 2**31 - 1, spec.seed, help=tip("seed"), key=f"{key}/seed")
    return {
        "schedule": str(schedule),
        "warm_up": round(float(percent) / 100, 6),
        "weight_decay": float(decay),
        "seed": int(seed),
    }


def _batch_fields(spec: RecoverySpec, key: str) -> Fields:
    left, right = _pair()
    batch = left.number_input(
        "Batch, sequences",
        1,
        4096,
        spec.batch_size,
        help=tip("batch_size"),
        key=f"{key}/batch",
    )
    length = right.number_input(
        "Sequence, tokens",
        8,
        131_072,
        spec.sequence_length,
        help=tip("sequence_length"),
        key=f"{key}/length",
    )
    every = st.number_input(
        "Checkpoint every, steps",
        0,
        1_000_000,
        spec.checkpoint_steps,
        help=tip("checkpoint_steps"),
        key=f"{key}/checkpoint",
    )
    return {
        "batch_size": int(batch),
        "sequence_length": int(length),
        "checkpoint_steps": int(every),
    }


def _adapter_fields(spec: RecoverySpec, key: str) -> Fields:
    left, middle, right = st.columns(3, vertical_alignment="bottom")
    rank = left.number_input(
        "LoRA rank", 1, 1024, spec.rank, help=tip("lora_rank"), key=f"{key}/rank"
    )
    alpha = middle.number_input(
        "LoRA alpha",
        0.1,
        4096.0,
        spec.alpha,
        step=1.0,
        format="%g",
        help=tip("lora_alpha"),
        key=f"{key}/alpha",
    )
    dropout = right.number_input(
        "LoRA dropout",
        0.0,
        0.9,
        spec.dropout,
        step=0.05,
        format="%g",
        help=tip("lora_dropout"),
        key=f"{key}/dropout",
    )
    return {"rank": int(rank), "alpha": float(alpha), "dropout": float(dropout)}


def _where_fields(spec: RecoverySpec, layout: ModelLayout | None, key: str) -> Fields:
    """Ask which Linears get an adapter, and which layers a rank of their own."""
    if layout is None:
        return {}
    roles = tuple(dict.fromkeys(linear.role for linear in layout.linears))
    given = [role for role in roles if role in spec.targets] or list(roles)
    picked = st.pills(
        "Linears with an adapter",
        roles,
        selection_mode="multi",
        default=given,
        help=tip("lora_targets"),
        wrap=True,
        key=f"{key}/targets",
    )
    if not picked:
        raise BadInputError(
            "No kind of Linear is chosen, so nothing would be trained. Choose at least one under "
            "Adapters, or 0 steps to skip recovery."
        )
    return {
        "targets": _targets(spec.targets, roles, picked),
        "layer_ranks": _ranks_by_hand(spec.layer_ranks, layout.n_layers, key),
    }


def _targets(
    before: tuple[str, ...], roles: tuple[str, ...], picked: list[str]
) -> tuple[str, ...]:
    """Return the roles as a spec keeps them: as they were written where they mean the same."""
    if set(before) == set(picked):
        return before
    return () if set(picked) == set(roles) else tuple(role for role in roles if role in picked)


def _ranks_by_hand(ranks: Mapping[str, int], n_layers: int, key: str) -> dict[str, int]:
    own = st.toggle(
        "Set ranks of layers by hand",
        value=bool(ranks),
        help=tip("layer_ranks"),
        key=f"{key}/by_hand",
    )
    if not own:
        return {}
    edited = st.data_editor(
        tables_recovery.from_ranks(ranks, n_layers),
        key=f"{key}/ranks",
        height=_table_height(n_layers),
        placeholder="as above",
        column_config={
            "layer": st.column_config.NumberColumn("Layer", help=tip("layer")),
            tables_recovery.RANK: st.column_config.NumberColumn(
                help=tip("layer_ranks"), min_value=0, max_value=1024, step=1, format="%d"
            ),
        },
    )
    return tables_recovery.to_ranks(pd.DataFrame(edited))


def _table_height(n_rows: int) -> Literal["content"] | int:
    """Return a height that shows all rows, or so many and a half that more are expected."""
    return "content" if n_rows <= MOST_ROWS else int(ROW_PIXELS * (SHOWN_ROWS + 1.5))


def _initialization_fields(spec: RecoverySpec, key: str) -> Fields:
    names = INITIALIZATIONS.names()
    chosen = str(
        st.selectbox(
            "Adapters start at",
            names,
            names.index(spec.initialization),
            format_func=lambda name: INITIALIZATIONS.entry(name).title,
            help=tip("initialization"),
            key=f"{key}/initialization",
        )
    )
    entry = INITIALIZATIONS.entry(chosen)
    st.caption(entry.summary)
    given = spec.initialization_options if chosen == spec.initialization else {}
    options = option_fields(entry, given, key)
    if INITIALIZATIONS.options(chosen, given) == options:
        options = dict(given)  # written as it was where it means the same
    return {"initialization": chosen, "initialization_options": options}


def _memory_fields(spec: RecoverySpec, device: str, key: str) -> Fields:
    micro = st.number_input(
        "Micro-batch, sequences (0 for the whole batch)",
        0,
        4096,
        spec.micro_batch_size,
        help=tip("micro_batch"),
        key=f"{key}/micro",
    )
    checkpointing = st.toggle(
        "Gradient checkpointing",
        spec.gradient_checkpointing,
        help=tip("gradient_checkpointing"),
        key=f"{key}/checkpointing",
    )
    return {
        "micro_batch_size": int(micro),
        "gradient_checkpointing": bool(checkpointing),
        "optimizer": _optimizer_field(spec.optimizer, device, key),
    }


def _optimizer_field(now: str, device: str, key: str) -> str:
    names = OPTIMIZERS.names()
    chosen = str(
        st.selectbox(
            "Optimiser",
            names,
            names.index(now),
            format_func=lambda name: (
                OPTIMIZERS.entry(name).title
                + ("" if runs_on(name, device) else ", not on this run's device")
            ),
            help=tip("optimizer"),
            key=f"{key}/optimizer",
        )
    )
    st.caption(OPTIMIZERS.entry(chosen).summary)
    if not runs_on(chosen, device):
        st.warning(
            f"{OPTIMIZERS.entry(chosen).title} needs a CUDA card, and this plan was measured on "
            f"{device}. Choose another optimiser unless a worker with a card trains it."
        )
    return chosen


def runs_on(optimizer: str, device: str) -> bool:
    """Whether an optimiser runs on a device: ``cpu``, the name of a card, or one not known."""
    kind = "cpu" if device == "cpu" else "cuda"
    devices = OPTIMIZERS.entry(optimizer).facts["devices"]
    return not device or (isinstance(devices, tuple) and kind in devices)
