"""What a plan is in the run that measured it: its space, the layout of its model, and how much of
every layer was pruned.
"""

from __future__ import annotations

from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.record import RunRecord
from qpruner_core.search.space import SearchSpace


def space_of(record: RunRecord) -> SearchSpace | None:
    """Return the space in which a run's plans lie, with its pruning levels in a joint search; None
    before its sensitivities are measured.
    """
    measured, layout = record.quantize, record.layout
    if measured is None or layout is None:
        return None
    spec = record.search.spec if record.search is not None else record.spec.search
    return SearchSpace(
        layout,
        measured.precisions,
        measured.tie,
        levels=[level.layout for level in measured.levels[1:]],
        joint=spec.joint if measured.levels else "none",
        fixed=spec.fixed,
    )


def layout_of(record: RunRecord, plan: PrecisionPlan) -> ModelLayout | None:
    """Return the layout of the model that a plan makes; None where the run has no model yet."""
    space = space_of(record) if plan.levels else None
    return record.layout if space is None else space.layout_of(plan)


def ratios_of(record: RunRecord) -> tuple[float, ...]:
    """Return the pruning ratio of every level of a joint search; empty for any other."""
    return tuple(level.ratio for level in record.quantize.levels) if record.quantize else ()


def layer_ratios(record: RunRecord, plan: PrecisionPlan) -> tuple[float, ...]:
    """Return the pruning ratio of every layer under a plan of a joint search; empty for any
    other.
    """
    ratios, layout = ratios_of(record), record.layout
    if not ratios or layout is None:
        return ()
    return tuple(ratios[level] for level in plan.levels or (0,) * layout.n_layers)
