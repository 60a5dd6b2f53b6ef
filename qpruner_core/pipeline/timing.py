"""Predicted latency: the seconds of every unit, and of everything beside the Linears.

    seconds(plan)  ~  seconds_beside + sum over units u of seconds_u(b_u)

for one generated token. Units are timed shape by shape (`quantization.kernel_times`); what is
beside them is what whole models of one precision take more than their Linears, on average.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import mean

from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.record import QuantizationOutcome, RunRecord, SensitivityCell
from qpruner_core.pipeline.joint import search_space
from qpruner_core.pipeline.materials import Materials
from qpruner_core.quantization.kernel_times import Shape, linear_seconds, shape_of

Times = dict[tuple[Shape, str], float]


def with_times(
    record: RunRecord, materials: Materials, outcome: QuantizationOutcome
) -> QuantizationOutcome:
    """Return the slot of *quantize* with the seconds of every unit where the search asks for
    latency, else as it is.

    Args:
        record: A run that has been pruned.
        materials: Its models; a bank of packed candidates is in memory afterwards.
        outcome: What was measured besides.
    """
    spec = record.spec.search
    if spec.cost != "latency":
        return outcome
    layouts = [level.layout for level in outcome.levels] or [materials.layout()]
    linears = [linear for layout in layouts for linear in layout.linears]
    times = linear_seconds(linears, spec.precisions, materials.device)
    units = search_space(layouts[0], spec, layouts[1:]).units
    cells = tuple(_timed(cell, units[cell.unit], layouts, times) for cell in outcome.sensitivities)
    beside = _beside(record, materials, outcome, times)
    return replace(outcome, sensitivities=cells, seconds_beside=beside)


def _timed(
    cell: SensitivityCell, names: tuple[str, ...], layouts: list[ModelLayout], times: Times
) -> SensitivityCell:
    linears = {linear.name: linear for linear in layouts[cell.level].linears}
    seconds = sum(times[shape_of(linears[name]), cell.precision] for name in names)
    return replace(cell, seconds=seconds)


def _beside(
    record: RunRecord, materials: Materials, outcome: QuantizationOutcome, times: Times
) -> float:
    """Return what one token takes beside the Linears, >= 0: the mean over whole models of one
    precision, all of which are decoded for real.
    """
    spec, layout = record.spec.search, materials.layout()
    levels = outcome.levels if spec.joint != "none" else ()
    bank = materials.search_bank(spec.precisions, levels, packed=True)
    more = []
    for precision in spec.precisions:
        bank.apply(PrecisionPlan.uniform(layout, precision))
        whole = 1.0 / materials.suite().speed(bank.model).decode_tokens_per_second
        linears = sum(times[shape_of(linear), precision] for linear in layout.linears)
        more.append(whole - linears)
    bank.restore()
    return max(0.0, mean(more))
