"""Recovery inside a trial: a plan shown by the bank is trained for a while, then measured.

All trials share the weights of the bank, so that adapters start at what a plan lost of *these*
weights. Nothing of a trial's training is kept, and nothing of it touches the disk: text is
tokenised once, and where an adapter of a Linear starts at a precision is found once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

from torch import nn

from qpruner_core.data.training import TrainingSet
from qpruner_core.domain.layout import LinearLayout, ModelLayout
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.progress import never
from qpruner_core.domain.record import RunRecord
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.errors import BadInputError
from qpruner_core.pipeline.measuring import ShowsPlans, Trained
from qpruner_core.pipeline.starting import check_goes_on, start_of
from qpruner_core.recovery.initialization import Start
from qpruner_core.recovery.trial import recovered

LayoutOf = Callable[[PrecisionPlan], ModelLayout]
"""Returns the layout of the model under a plan."""
ReadTraining = Callable[[RecoverySpec], TrainingSet]
"""Returns what a recovery trains on."""


def trained_for(
    steps: int,
    recovery: RecoverySpec,
    layout_of: LayoutOf,
    read: ReadTraining,
    should_stop: Callable[[], bool] = never,
) -> Trained:
    """Return what every plan goes through before it is measured; nothing with 0 steps.

    Args:
        steps: As in `SearchSpec.recover_steps`.
        recovery: How to train otherwise.
        layout_of: Layout of the model under a plan.
        read: Reads the text; asked once, when the first plan is trained.
        should_stop: Asked before every step; a plan whose training is stopped raises
            `StoppedError` and is not measured.
    """
    if not steps:
        return lambda bank, plan: nullcontext(bank.model)
    spec = replace(recovery, steps=steps, trial=None, checkpoint_steps=0)
    return _TrialRecovery(spec, layout_of, read, should_stop)


def check_same_training(record: RunRecord, study_name: str) -> None:
    """Refuse to set a plan beside others that were trained in another way: the recovery that a run
    asks for may have changed since it searched.

    Args:
        record: The run.
        study_name: Name of the study that it would search in now.

    Raises:
        BadInputError: Its finished search trained otherwise.
    """
    found, steps = record.search, record.spec.search.recover_steps
    if steps and found is not None and found.study_name != study_name:
        raise BadInputError(
            f"The plans of this search were trained for {steps} steps each, by settings that the "
            f"run's recovery no longer has, so that a plan made by hand would not compare with "
            f"them. Search again, or recover once more by the settings of the search."
        )


class _TrialRecovery:
    """Trains one plan after the other, each from its own start."""

    def __init__(
        self,
        spec: RecoverySpec,
        layout_of: LayoutOf,
        read: ReadTraining,
        should_stop: Callable[[], bool],
    ) -> None:
        self._spec, self._layout_of, self._read = spec, layout_of, read
        self._should_stop = should_stop
        self._text: TrainingSet | None = None
        self._starts: dict[tuple[str, int, str], Start] = {}

    @contextmanager
    def __call__(self, bank: ShowsPlans, plan: PrecisionPlan) -> Iterator[nn.Module]:
        if self._text is None:
            self._text = self._read(self._spec)
        layout = self._layout_of(plan)
        starts = self._starts_of(bank, layout, plan)
        asked = (self._spec, self._text, starts, self._should_stop)
        with recovered(bank.model, layout, *asked) as model:
            yield model

    def _starts_of(
        self, bank: ShowsPlans, layout: ModelLayout, plan: PrecisionPlan
    ) -> dict[str, Start]:
        """Return where the adapter of every Linear starts, where LoRA does not say it itself."""
        found = {
            linear.name: self._start(bank, linear, plan)
            for linear in layout.linears
            if self._spec.rank_of(linear.layer, linear.role)
        }
        return {name: start for name, start in found.items() if start.adapter is not None}

    def _start(self, bank: ShowsPlans, linear: LinearLayout, plan: PrecisionPlan) -> Start:
        level = plan.levels[linear.layer] if plan.levels else 0
        precision = plan.precisions[linear.name]
        key = (linear.name, level, precision)
        if key not in self._starts:
            check_goes_on(self._should_stop)
            weight = bank.found_weight(linear.name, level)
            # What would shift the weights was refused (see `check_recovery_in_trials`).
            self._starts[key] = start_of(weight, linear, precision, self._spec)
        return self._starts[key]
