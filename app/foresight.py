"""What is foreseen of a search before its plans are measured: the predicted front, solved once and
kept.

Everything here is estimated, and screens say so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import streamlit as st

from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.record import QuantizationOutcome, RunRecord
from qpruner_core.domain.signals import answers, predicts
from qpruner_core.domain.spec import SearchSpec
from qpruner_core.search.costs import NANOSECONDS, training_load, unit_costs_of
from qpruner_core.search.knapsack import Front, front
from qpruner_core.search.space import SearchSpace


def fits(measured: QuantizationOutcome, spec: SearchSpec) -> bool:
    """Whether what was measured of every unit is what a search is asked for."""
    return answers(measured, spec)


def predicted(record: RunRecord, asked: SearchSpec | None = None) -> Front | None:
    """Return the predicted front of a run; None before what it adds up is measured.

    It is solved once for all budgets; another budget only looks it up.

    Args:
        record: The run.
        asked: The search that it is predicted for; that of the run when None.
    """
    spec = asked or record.spec.search
    if record.quantize is None or record.layout is None or not predicts(record.quantize, spec):
        return None
    return _predicted(_front_key(record, spec), record.layout, record.quantize, spec)


def predicted_by_cost(record: RunRecord, spec: SearchSpec) -> PredictedByCost | None:
    """Return the predicted front against what a search weighs in the place of bytes; None where
    that is bytes, or before what it adds up is measured.
    """
    if spec.cost == "weight_bytes" or predicted(record, spec) is None:
        return None
    key = f"{_front_key(record, spec)}/{spec.cost}/{record.spec.recovery!r}"
    return _predicted_by_cost(key, record, spec)


def _front_key(record: RunRecord, spec: SearchSpec) -> str:
    measured = record.quantize
    loss = measured.loss_16_bit if measured is not None else 0.0
    asked = (spec.precisions, spec.signal, spec.joint, spec.ratios, spec.fixed)
    return f"{record.run_id}/{record.seconds.get('quantize', 0.0)!r}/{loss!r}/{asked!r}"


@st.cache_resource(show_spinner=False, max_entries=16)
def _predicted(
    key: str, _layout: ModelLayout, _measured: QuantizationOutcome, _spec: SearchSpec
) -> Front:
    levels = [level.layout for level in _measured.levels[1:]] if _spec.joint != "none" else []
    made = SearchSpace(
        _layout,
        _spec.precisions,
        _measured.tie,
        levels=levels,
        joint=_spec.joint,
        fixed=_spec.fixed,
    )
    return front(made, _measured.sensitivities, signal=_spec.signal)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PredictedByCost:
    """The predicted front against training memory or latency."""

    front: Front
    """Its ``weight_bytes`` are the costs of the units alone, in integers."""
    costs: np.ndarray
    """Cost of every point, shape ``(n_points,)``; bytes, or seconds per generated token."""


@st.cache_resource(show_spinner=False, max_entries=16)
def _predicted_by_cost(key: str, _record: RunRecord, _spec: SearchSpec) -> PredictedByCost:
    measured, in_bytes = _record.quantize, predicted(_record, _spec)
    if measured is None or in_bytes is None:
        raise ValueError("a front by cost needs the sensitivities of its run")
    # What a trial states, too: activations take 4 bytes on the CPU.
    load = training_load(_record.spec.recovery, 4 if measured.device == "cpu" else 2)
    units = unit_costs_of(
        in_bytes.space, measured.sensitivities, _spec.cost, load, measured.seconds_beside
    )
    found = front(in_bytes.space, measured.sensitivities, signal=_spec.signal, sizes=units.matrix)
    costs = (found.weight_bytes + units.constant).astype(np.float64)
    return PredictedByCost(
        front=found, costs=costs / NANOSECONDS if _spec.cost == "latency" else costs
    )
