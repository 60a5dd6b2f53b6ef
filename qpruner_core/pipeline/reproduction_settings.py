"""What each setting of the paper's table asks of a run at one pruning ratio.

All rows of a ratio share its run, and with it pruning, text and items. Decision 21 says where each
choice comes from.
"""

from __future__ import annotations

from dataclasses import replace

from qpruner_core.catalog import PRECISIONS, precision_formats
from qpruner_core.domain.footprint import plan_bytes
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.record import SearchOutcome, Trial
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.domain.reproduction import ReproductionSpec
from qpruner_core.domain.spec import DataSpec, ImportanceSpec, PruningSpec, RunSpec, SearchSpec
from qpruner_core.errors import InfeasibleBudgetError
from qpruner_core.pruning.widths import protected_layers
from qpruner_core.search.presets import LLM_PRUNER, QPRUNER_3

LOW, HIGH = "nf4", "int8"
"""The two precisions of the paper."""
SIGNAL = "mutual_information"
N_BASELINES = 5
"""Named plans that a search measures before its own; all but the one at 16 bit lie in its
space."""


def cut_spec(
    spec: ReproductionSpec, parent: RunSpec, layout: ModelLayout, ratio: float
) -> RunSpec:
    """Return what the run of a ratio is asked for up to its pruning.

    Args:
        spec: The table.
        parent: Model and data.
        layout: The model before pruning.
        ratio: The pruning ratio.
    """
    criterion = "flap" if spec.setting == "ours" else "taylor"
    usual = PruningSpec()
    pruning = replace(
        usual,
        ratio=ratio,
        criterion=criterion,
        scope=usual.scope if spec.setting == "ours" else "per-layer",
        kinds=_kinds(layout, usual),
    )
    importance = ImportanceSpec(criteria=(criterion, SIGNAL), seed=spec.seed)
    return RunSpec(
        model=parent.model,
        data=parent.data,
        importance=importance,
        pruning=pruning,
        recovery=spec.recovery,
    )


def search_spec(
    spec: ReproductionSpec, data: DataSpec, pruning: PruningSpec, layout: ModelLayout
) -> SearchSpec:
    """Return the search that ends in QPruner-3.

    Args:
        spec: The table.
        data: Of the run; without tasks its search goes by the loss.
        pruning: How the run was pruned.
        layout: The model as it was pruned.
    """
    fixed = fixed_layers(spec, pruning, layout)
    asked = SearchSpec(
        memory_budget=f"{budget_bytes(spec, layout, fixed)} B",
        n_trials=spec.n_trials,
        recover_steps=spec.recover_steps,
        information=SIGNAL,
        fixed={str(layer): name for layer, name in fixed.items()},
        seed=spec.seed,
    )
    if spec.setting == "ours":
        return asked
    return replace(
        asked,
        precisions=(LOW, HIGH),
        tie="layer",
        objective="loss" if data.tasks == "none" else "accuracy",
        strategy="gp",
        # The strategy counts the baselines of its space as first points.
        options={"n_startup": spec.n_startup + N_BASELINES - 1},
    )


def fixed_layers(
    spec: ReproductionSpec, pruning: PruningSpec, layout: ModelLayout
) -> dict[int, str]:
    """Return layer -> the precision that every QPruner row gives it; none but in the setting
    ``script``, whose first and last layers stay at 16 bit.
    """
    if spec.setting != "script":
        return {}
    return dict.fromkeys(sorted(protected_layers(layout.n_layers, pruning)), "bf16")


def budget_bytes(spec: ReproductionSpec, layout: ModelLayout, fixed: dict[int, str]) -> int:
    """Return the memory budget that QPruner-2 and QPruner-3 share: 4 bit everywhere, and a share
    of what 8 bit takes beyond; fixed layers count at their precision.
    """
    low, high = (_uniform_bytes(layout, name, fixed) for name in (LOW, HIGH))
    return low + round(spec.int8_share * (high - low))


def row_trial(variant: str, setting: str, found: SearchOutcome) -> Trial:
    """Return the measured plan of a row.

    Raises:
        InfeasibleBudgetError: No such plan was measured.
    """
    if variant == QPRUNER_3 and setting == "ours":
        wanted = found.chosen
        trials = (*found.trials, *found.baselines)
        return next(trial for trial in trials if trial.number == wanted)
    for trial in found.baselines:
        if trial.name == variant and trial.metrics is not None:
            return trial
    failed = next((each for each in found.baselines if each.name == variant), None)
    raise InfeasibleBudgetError(
        f"The search has measured no plan for the row {variant} of the table"
        f"{f', as it failed: {failed.reason}' if failed is not None else ''}. Raise the share of "
        f"8-bit layers, prune less, or measure more trials."
    )


def row_recovery(variant: str, recovery: RecoverySpec) -> RecoverySpec:
    """Return how a row is recovered: all alike, but that nothing was lost by quantising at 16 bit,
    where adapters start as LoRA starts them.
    """
    if variant != LLM_PRUNER:
        return recovery
    return replace(recovery, initialization="default", initialization_options={})


def held_at_16_bit(setting: str) -> tuple[str, ...]:
    """Return the precisions whose Linears hold 16-bit weights in memory."""
    return (HIGH,) if setting == "script" else ()


def _kinds(layout: ModelLayout, usual: PruningSpec) -> tuple[str, ...]:
    """Return the kinds of unit that may leave: heads only where any number of them fits the blocks
    of 4-bit weights.
    """
    block = precision_formats()[PRECISIONS.entry(LOW).name].block_size
    columns = layout.n_heads // layout.n_kv_heads * layout.head_dim
    return tuple(kind for kind in usual.kinds if kind != "kv_heads" or columns % block == 0)


def _uniform_bytes(layout: ModelLayout, name: str, fixed: dict[int, str]) -> int:
    chosen = [fixed.get(layer, name) for layer in range(layout.n_layers)]
    return plan_bytes(layout, PrecisionPlan.by_layer(layout, chosen), precision_formats())
