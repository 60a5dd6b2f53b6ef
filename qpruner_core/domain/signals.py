"""Whether what *quantize* measured is what a search asks for."""

from __future__ import annotations

from qpruner_core.domain.record import QuantizationOutcome
from qpruner_core.domain.spec import SearchSpec


def answers(measured: QuantizationOutcome, asked: SearchSpec) -> bool:
    """Whether a search can go by what was measured: sensitivities of its ties, precisions and
    pruning levels, its layer signal, and times where it weighs latency.
    """
    return predicts(measured, asked) and measured.information == asked.information


def predicts(measured: QuantizationOutcome, asked: SearchSpec) -> bool:
    """Whether a search can be predicted from what was measured; the layer signal, by which one
    baseline spends its budget, has no say.
    """
    ratios = tuple(level.ratio for level in measured.levels[1:])
    return (
        measured.tie == asked.tie
        and set(asked.precisions) <= set(measured.precisions)
        and set(measured.fixed) <= set(asked.fixed)
        and (asked.joint == "none" or ratios == asked.ratios)
        and (asked.cost != "latency" or all(c.seconds is not None for c in measured.sensitivities))
    )
