"""Plans with a name: the variants of the QPruner paper (arXiv:2412.11629) and what they are held
against.

They are measured on every front, whatever the precisions and ties of the search are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from qpruner_core.catalog import precision_formats
from qpruner_core.domain.footprint import plan_bytes
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.record import Trial
from qpruner_core.search.pareto import best_measured
from qpruner_core.search.space import SearchSpace

LLM_PRUNER = "LLM-Pruner (16 bit)"
UNIFORM_INT8 = "uniform int8"
QPRUNER_1 = "QPruner-1"
QPRUNER_2 = "QPruner-2"
QPRUNER_3 = "QPruner-3"
RANDOM = "random"

_PAPER = ("nf4", "int8")
NOTHING_FIXED: Mapping[str, str] = {}


def baselines(
    space: SearchSpace,
    layout: ModelLayout,
    mutual_information: Sequence[float],
    budget_bytes: int,
    seed: int = 0,
) -> dict[str, PrecisionPlan]:
    """Return preset name -> plan, in the order they are measured and shown.

    ``QPruner-3`` is not among them: it is a name that `qpruner_3` gives to the best measured plan.
    ``QPruner-2`` is left out when the budget is below nf4 everywhere. All but the plan at 16 bit
    give fixed layers the precision that the space does.

    Args:
        space: Where the random plan is drawn from.
        layout: The pruned model.
        mutual_information: I(X_l; Y) per layer, shape ``(n_layers,)``; nats.
        budget_bytes: Memory budget.
        seed: Seed of the random plan.

    Raises:
        InfeasibleBudgetError: No plan of the space fits the budget.
    """
    space.check_budget(budget_bytes)
    plans = {
        LLM_PRUNER: PrecisionPlan.uniform(layout, "bf16"),
        UNIFORM_INT8: _held(PrecisionPlan.uniform(layout, "int8"), space.fixed),
        QPRUNER_1: _held(PrecisionPlan.uniform(layout, "nf4"), space.fixed),
    }
    second = by_mutual_information(layout, mutual_information, budget_bytes, space.fixed)
    if second is not None:
        plans[QPRUNER_2] = second
    return plans | {RANDOM: random_plan(space, budget_bytes, seed)}


def by_mutual_information(
    layout: ModelLayout,
    mutual_information: Sequence[float],
    budget_bytes: int,
    fixed: Mapping[str, str] = NOTHING_FIXED,
) -> PrecisionPlan | None:
    """Return QPruner-2: int8 for the most informative layers that the budget carries, nf4 for the
    others.

    Layers are visited by descending mutual information; one that no longer fits is passed over, as
    a narrower one may still fit. None when nf4 everywhere exceeds the budget.

    Args:
        layout: The pruned model.
        mutual_information: I(X_l; Y) per layer, shape ``(n_layers,)``; nats.
        budget_bytes: Memory budget.
        fixed: Linear -> its precision, where the layer is not to be chosen for.
    """
    if len(mutual_information) != layout.n_layers:
        raise ValueError(f"need {layout.n_layers} values, got {len(mutual_information)}")
    chosen = ["nf4"] * layout.n_layers
    plan = _held(PrecisionPlan.by_layer(layout, chosen), fixed)
    if plan_bytes(layout, plan, precision_formats()) > budget_bytes:
        return None
    for layer in sorted(range(layout.n_layers), key=lambda i: (-mutual_information[i], i)):
        wanted = [*chosen[:layer], "int8", *chosen[layer + 1 :]]
        raised = _held(PrecisionPlan.by_layer(layout, wanted), fixed)
        if plan_bytes(layout, raised, precision_formats()) <= budget_bytes:
            chosen[layer], plan = "int8", raised
    return plan


def random_plan(space: SearchSpace, budget_bytes: int, seed: int) -> PrecisionPlan:
    """Return a uniform random plan, its units lowered in random order until the budget holds.

    Raises:
        InfeasibleBudgetError: No plan of the space fits the budget.
    """
    space.check_budget(budget_bytes)
    rng = np.random.default_rng(seed)
    code = [int(rng.integers(n)) for n in space.parameters.values()]
    for index in rng.permutation(len(code)):
        if space.code_bytes(tuple(code)) <= budget_bytes:
            break
        code[index] = 0
    return space.decode(tuple(code))


def qpruner_3(
    trials: Iterable[Trial],
    layout: ModelLayout,
    budget_bytes: int,
    objective: str,
    fixed: Mapping[str, str] = NOTHING_FIXED,
) -> Trial | None:
    """Return the best measured plan that gives whole layers nf4 or int8 within the budget, or
    None. Linears that are fixed have the precision that is given for them.

    That is what the paper's refinement of QPruner-2 by Bayesian optimisation ends with.
    """
    fitting = [trial for trial in trials if _is_papers(trial.plan, layout, fixed)]
    return best_measured(fitting, objective, budget_bytes)


def _held(plan: PrecisionPlan, fixed: Mapping[str, str]) -> PrecisionPlan:
    """Return a plan with the precisions of fixed Linears in their place."""
    if not fixed:
        return plan
    return replace(plan, precisions={**plan.precisions, **fixed})


def _is_papers(plan: PrecisionPlan, layout: ModelLayout, fixed: Mapping[str, str]) -> bool:
    if any(plan.precisions[name] != precision for name, precision in fixed.items()):
        return False
    layers: dict[int, set[str]] = {}
    for linear in layout.linears:
        if linear.name not in fixed:
            layers.setdefault(linear.layer, set()).add(plan.precisions[linear.name])
    return all(len(kinds) == 1 and kinds <= set(_PAPER) for kinds in layers.values())
