"""What was measured of every layer before the search: mutual information, and sensitivities by
part and precision.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from app import tables_plan, wording
from qpruner_core.catalog import PRECISIONS
from qpruner_core.domain.record import QuantizationOutcome, SensitivityCell
from qpruner_core.domain.spec import SIGNALS, SearchSpec

SIGNAL_WORDS = {"loss": "Loss", "kl": "KL divergence"}
SIGNAL_IN_WORDS = {"loss": "loss", "kl": "KL divergence"}
SIGNAL_TITLES = {"loss": "Loss increase", "kl": "KL divergence from 16 bit"}
"""What a sensitivity is, by signal; both in nats per token."""
_EXPERT = re.compile(r"\w+\.\d+\.")
"""What of a part's name tells one expert from the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalRow:
    """One part of the layers at one precision, and in a joint search at one pruning ratio."""

    title: str
    values: Mapping[int, float]
    """Layer -> sensitivity, summed over experts; nats per token."""


def value(cell: SensitivityCell, signal: str) -> float | None:
    """Return a cell's sensitivity by a signal; None where it was not measured by it."""
    return cell.kl if signal == "kl" else cell.loss_increase


def signals(measured: QuantizationOutcome) -> tuple[str, ...]:
    """Return the signals by which every unit was measured; older records have the loss alone, and
    so have further pruning levels.
    """
    own = [cell for cell in measured.sensitivities if cell.level == 0]
    return tuple(name for name in SIGNALS if all(value(c, name) is not None for c in own))


def used(measured: QuantizationOutcome, spec: SearchSpec) -> str:
    """Return the signal that the predicted front adds up: losses where KL was not measured, and
    where pruning ratios are searched too, as less pruning differs from the reference for the
    better.
    """
    by_kl = spec.signal == "kl" and spec.joint == "none" and "kl" in signals(measured)
    return "kl" if by_kl else "loss"


def rows(measured: QuantizationOutcome, signal: str) -> list[SignalRow]:
    """Return one row per pruning level, part and precision, in the order in which they were
    measured; parts together, precisions within them.
    """
    found: dict[tuple[int, str, str], dict[int, float]] = {}
    for cell in measured.sensitivities:
        here = value(cell, signal)
        if here is None:
            continue
        part = _EXPERT.sub("experts ", tables_plan.part_of(cell.unit))
        of_row = found.setdefault((cell.level, part, cell.precision), {})
        layer = tables_plan.layer_of(cell.unit)
        of_row[layer] = of_row.get(layer, 0.0) + here
    parts = list(dict.fromkeys(part for _, part, _ in found))
    order = sorted(found, key=lambda key: (key[0], parts.index(key[1])))
    return [
        SignalRow(title=_title(measured, key, len(parts) > 1), values=found[key]) for key in order
    ]


def hardest_words(measured: QuantizationOutcome, signal: str) -> str:
    """Return in a sentence which layer asks for bits most and which least; empty for one layer."""
    totals: dict[int, float] = {}
    for cell in measured.sensitivities:
        amount = value(cell, signal)
        if amount is not None and cell.level == 0:
            layer = tables_plan.layer_of(cell.unit)
            totals[layer] = totals.get(layer, 0.0) + amount
    if len(totals) < 2:
        return ""
    most, least = max(totals, key=totals.__getitem__), min(totals, key=totals.__getitem__)
    return f"Low precision costs the most in layer {most} and the least in layer {least}."


def stability_words(stability: float | None) -> str:
    """Return the sentence on how steadily the layer signal ranks the layers; empty where that was
    not measured.
    """
    if stability is None:
        return ""
    return (
        "Two halves of the sampled positions rank the layers alike to "
        f"{wording.correlation(stability)} (Spearman)."
    )


def _title(measured: QuantizationOutcome, key: tuple[int, str, str], has_parts: bool) -> str:
    level, part, precision = key
    words = [tables_plan.title(part)] if has_parts else []
    if measured.levels:
        words.append(f"pruned {wording.percent(measured.levels[level].ratio, 0)}")
    return " · ".join([*words, PRECISIONS.entry(precision).title])
