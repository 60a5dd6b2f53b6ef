"""Where the adapters of a plan start, and what leaves the weights before they are packed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from qpruner_core.catalog import INITIALIZATIONS, PRECISIONS
from qpruner_core.domain.adapters import adapter_ranks
from qpruner_core.domain.layout import LinearLayout, ModelLayout
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.progress import OnProgress, Progress, never, silent
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.errors import StoppedError
from qpruner_core.quantization.orientation import is_dense, outputs_first
from qpruner_core.recovery.initialization import Factors, Start
from qpruner_core.recovery.low_rank import product

Shifts = Mapping[str, tuple[Factors, float]]
"""Linear name -> what is taken from its weight, and the scaling that belongs to it."""


def start_of(
    weight: torch.Tensor, linear: LinearLayout, precision: str, spec: RecoverySpec
) -> Start:
    """Return where the adapter of one Linear starts; the same for the same name and seed.

    Args:
        weight: Dense, ``(out_features, in_features)``; unchanged.
        linear: Its layout; it gets an adapter.
        precision: What the plan gives it.
        spec: The initialisation with its options, ranks, alpha and seed.
    """
    rank = spec.rank_of(linear.layer, linear.role)
    options = INITIALIZATIONS.options(spec.initialization, spec.initialization_options)
    digest = hashlib.sha256(f"{spec.seed}:{linear.name}".encode()).digest()
    return INITIALIZATIONS.target(spec.initialization)(**options).start(
        weight,
        PRECISIONS.target(precision).fake_quantize,
        rank,
        spec.alpha / rank,
        torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1),
    )


def starts_of(
    model: nn.Module,
    layout: ModelLayout,
    plan: PrecisionPlan,
    spec: RecoverySpec,
    on_progress: OnProgress = silent,
    should_stop: Callable[[], bool] = never,
) -> dict[str, Start]:
    """Return Linear name -> where its adapter starts; Linears that LoRA's own way is right for are
    left out.

    Args:
        model: Pruned, its Linears dense; unchanged.
        layout: Its layout.
        plan: Precision of every Linear.
        spec: How adapters start.
        on_progress: Told after every Linear.
        should_stop: Asked before every Linear.

    Raises:
        BadInputError: A role or a layer is asked for that the model has not.
        StoppedError: It was asked to stop; nothing has been trained by then.
    """
    if not spec.steps:
        return {}
    ranks = adapter_ranks(spec, layout)
    if spec.initialization == "default":
        return {}
    asked = [linear for linear in layout.linears if linear.name in ranks]
    starts: dict[str, Start] = {}
    for done, linear in enumerate(asked, start=1):
        check_goes_on(should_stop)
        weight = outputs_first(dense_module(model, linear.name))
        start = start_of(weight, linear, plan.precisions[linear.name], spec)
        if start.adapter is not None or start.shift is not None:
            starts[linear.name] = Start(adapter=_host(start.adapter), shift=_host(start.shift))
        words = f"where adapters start: {done} of {len(asked)} Linears"
        on_progress(Progress(step="recover", done=0, total=spec.steps, message=words))
    return starts


def check_goes_on(should_stop: Callable[[], bool]) -> None:
    """Raise where it was asked to stop.

    Raises:
        StoppedError: It was.
    """
    if should_stop():
        raise StoppedError(
            "The training was stopped while it looked for where its adapters start. Start it "
            "again, or resume its job: it begins anew there."
        )


def shifts_of(starts: Mapping[str, Start]) -> dict[str, Factors]:
    """Return Linear name -> what is taken from its weight; empty where nothing is."""
    return {name: start.shift for name, start in starts.items() if start.shift is not None}


def with_scalings(
    factors: Mapping[str, Factors], layout: ModelLayout, spec: RecoverySpec
) -> Shifts:
    """Return the factors of Linears with the scaling of their adapters, alpha / rank."""
    return dict(_with_scalings(factors, layout, spec))


def _with_scalings(
    factors: Mapping[str, Factors], layout: ModelLayout, spec: RecoverySpec
) -> Iterator[tuple[str, tuple[Factors, float]]]:
    for linear in layout.linears:
        if linear.name in factors:
            rank = spec.rank_of(linear.layer, linear.role)
            yield linear.name, (factors[linear.name], spec.alpha / rank)


def dense_module(model: nn.Module, name: str) -> nn.Linear | Conv1D:
    """Return a Linear or Conv1D by its name.

    Raises:
        TypeError: It is none, as it was packed already.
    """
    module = model.get_submodule(name)
    if not is_dense(module):
        raise TypeError(f"{name!r} is a {type(module).__name__}; a dense module is needed")
    return module


def take_(module: nn.Linear | Conv1D, factors: Factors, scaling: float) -> None:
    """Take ``scaling * b @ a`` from a dense weight, in place; it is float32 from then on, so that
    nothing but the precision rounds it.
    """
    taken = product(Factors(a=factors.a.cpu(), b=factors.b.cpu()), scaling)
    if isinstance(module, Conv1D):
        taken = taken.t()
    weight = module.weight.detach().float() - taken.to(module.weight.device)
    module.weight = nn.Parameter(weight, requires_grad=False)


def _host(factors: Factors | None) -> Factors | None:
    return None if factors is None else Factors(a=factors.a.cpu(), b=factors.b.cpu())
