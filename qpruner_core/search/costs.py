"""What a plan costs, as a search weighs it against quality: measured, and predicted unit by unit.

A predicted cost is a constant and a sum over units, so that a knapsack can minimise under it. Sums
are integers: bytes, or nanoseconds per generated token.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qpruner_core.catalog import precision_formats, state_bytes_of
from qpruner_core.domain.device_memory import (
    TrainingLoad,
    bytes_beyond_16_bit,
    linear_training_bytes,
    training_bytes_estimate,
)
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.record import SensitivityCell
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.errors import NotReadyError
from qpruner_core.search.space import SearchSpace

NANOSECONDS = 10**9
"""Predicted latency is counted in these."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UnitCosts:
    """Predicted cost of every plan of a space: ``constant`` and one entry of ``matrix`` per
    unit.
    """

    matrix: NDArray[np.int64]
    """Shape ``(n_units, n_options)``, in the order of the space; bytes or nanoseconds, >= 0."""
    constant: int
    """What no plan touches; bytes or nanoseconds."""


def cost_of(metrics: Metrics, cost: str) -> float:
    """Return what a measured plan costs: bytes, or seconds per generated token.

    Args:
        metrics: What was measured.
        cost: As in `SearchSpec.cost`.

    Raises:
        NotReadyError: The plan was measured for a search that weighs something else.
    """
    if cost == "weight_bytes":
        return float(metrics.weight_bytes)
    if cost == "training_memory" and metrics.training_bytes is not None:
        return float(metrics.training_bytes)
    if cost == "latency" and metrics.decode_tokens_per_second:
        return 1.0 / metrics.decode_tokens_per_second
    raise NotReadyError(
        f"A plan was measured without {cost.replace('_', ' ')}, which this search weighs. Search "
        f"again, so that its plans are measured with it."
    )


def summable(cost_measured: float, cost: str) -> float:
    """Return what a plan was measured to cost in the unit of `UnitCosts.matrix`: bytes, or
    nanoseconds per generated token.

    Args:
        cost_measured: As `cost_of` gives it.
        cost: As in `SearchSpec.cost`.
    """
    return cost_measured * NANOSECONDS if cost == "latency" else cost_measured


def training_load(recovery: RecoverySpec, compute_bytes: int) -> TrainingLoad:
    """Return what decides the memory of the recovery that a run asks for.

    Args:
        recovery: As in `RunSpec.recovery`.
        compute_bytes: Bytes of one activation: 2 on CUDA, 4 on the CPU.
    """
    return TrainingLoad.of(recovery, compute_bytes, state_bytes_of(recovery.optimizer))


def unit_costs_of(
    space: SearchSpace,
    cells: Iterable[SensitivityCell],
    cost: str,
    load: TrainingLoad | None = None,
    seconds_beside: float = 0.0,
) -> UnitCosts:
    """Return the predicted cost of every unit at every option.

    Args:
        space: What may be chosen.
        cells: Sensitivities with the seconds of every unit; only latency reads them.
        cost: As in `SearchSpec.cost`.
        load: Of the recovery; only training memory reads it.
        seconds_beside: Time of everything but the Linears for one generated token.

    Raises:
        NotReadyError: A unit was not timed.
    """
    if cost == "training_memory":
        return _training(space, load or TrainingLoad())
    if cost == "latency":
        return _latency(space, cells, seconds_beside)
    return UnitCosts(matrix=np.array(space.unit_bytes, dtype=np.int64), constant=space.fixed_bytes)


def _training(space: SearchSpace, load: TrainingLoad) -> UnitCosts:
    """Packed bytes, and what adapters and activations of the unit's Linears take at its level.

    The largest dequantised weight does not add up over units; that of the widest level is taken,
    so that a prediction is never too small and exact where there is one level.
    """
    formats = precision_formats()
    whole = []
    for level in space.levels:
        plan = space.plan(dict.fromkeys(space.units, space.precisions[0]))
        estimate = training_bytes_estimate(level, plan, formats, load)
        of_linears = sum(linear_training_bytes(level, load).values())
        norms = estimate.adapter + estimate.activations - of_linears
        wider = bytes_beyond_16_bit(level, load)
        whole.append(estimate.logits + estimate.workspace + norms + wider)
    matrix = np.array(space.unit_bytes, dtype=np.int64)
    for column, (index, _) in enumerate(space.options):
        of_linear = linear_training_bytes(space.levels[index], load)
        for row, names in enumerate(space.units.values()):
            matrix[row, column] += sum(of_linear[n] for n in names)
    return UnitCosts(matrix=matrix, constant=space.fixed_bytes + max(whole))


def _latency(
    space: SearchSpace, cells: Iterable[SensitivityCell], seconds_beside: float
) -> UnitCosts:
    timed = {
        (cell.unit, cell.level, cell.precision): cell.seconds
        for cell in cells
        if cell.seconds is not None
    }
    wanted = [(unit, *option) for unit in space.units for option in space.options]
    missing = [key for key in wanted if key not in timed]
    if missing:
        unit, _, precision = missing[0]
        raise NotReadyError(
            f"{len(missing)} of {len(wanted)} times of units are missing, such as {unit} at "
            f"{precision}. Run the quantising step again with the cost latency: it times every "
            f"Linear."
        )
    seconds = np.array([timed[key] for key in wanted]).reshape(len(space.units), -1)
    return UnitCosts(
        matrix=np.rint(seconds * NANOSECONDS).astype(np.int64),
        constant=round(seconds_beside * NANOSECONDS),
    )
