"""A short training inside a trial of the search, which leaves the model as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from torch import nn

from qpruner_core.data.training import TrainingSet
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.progress import never
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.errors import StoppedError
from qpruner_core.recovery.initialization import Start
from qpruner_core.recovery.optimizers import check_optimizer
from qpruner_core.recovery.randomness import seeded
from qpruner_core.recovery.training import Steering, Trainer
from qpruner_core.recovery.wrapping import adapted


@contextmanager
def recovered(
    model: nn.Module,
    layout: ModelLayout,
    spec: RecoverySpec,
    training: TrainingSet,
    starts: Mapping[str, Start] | None = None,
    should_stop: Callable[[], bool] = never,
) -> Iterator[nn.Module]:
    """Train an adapter for ``spec.steps`` steps and yield the model with it, in eval mode.

    Afterwards the model is as it was, however the block ends: the same Linears, dense or packed,
    with the same bits; nothing is loaded or quantised anew.

    Args:
        model: Pruned decoder with the plan's weights in place.
        layout: Its layout.
        spec: How to train.
        training: Rows and what of them is learned.
        starts: Linear name -> where its adapter starts; of all others B = 0.
        should_stop: Asked before every step.

    Raises:
        StoppedError: It was asked to stop before the last step: nothing is yielded.
        NonFiniteLossError: A loss is not a number; the message names the step.
        DataTooShortError: There is nothing to train on.
        BadInputError: A role, a layer or an optimiser is asked for that cannot be.
    """
    device = next(model.parameters()).device
    check_optimizer(spec.optimizer, device.type)
    with ExitStack() as stack:
        with seeded(device, spec.seed):
            stack.enter_context(adapted(model, layout, spec, starts))
            steering = Steering(should_stop=should_stop)
            standing = Trainer(model, layout, spec).run(training, steering)
        if len(standing.losses) < spec.steps:
            raise StoppedError(
                f"The training of a plan was stopped after {len(standing.losses)} of {spec.steps} "
                f"steps; the plan is not measured. Go on with the search: it is trained anew."
            )
        yield model
