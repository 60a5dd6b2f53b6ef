"""How much can leave at all, and the plan that given widths make."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qpruner_core.domain.layout import KINDS, ModelLayout
from qpruner_core.domain.plan import PruningPlan
from qpruner_core.domain.spec import PruningSpec
from qpruner_core.errors import InfeasibleRatioError
from qpruner_core.pruning.ladders import Ladder, ladders_of, leaving_members, losses_of
from qpruner_core.pruning.request import Request, layer_losses, make_request
from qpruner_core.pruning.uniform import smallest_uniform
from qpruner_core.pruning.widths import losing_kinds, protected_layers, ratios_by_hand

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """The ratios that a spec can be asked for."""

    lowest: float
    """What the ratios by hand alone take; in [0, 1)."""
    highest: float
    """When every group keeps as little as it may; in [0, 1)."""
    is_settled: bool
    """Whether ratios by hand, or whole layers where no kind of unit may leave, decide all that
    leaves, so that the ratio has no say."""


def plan_of(request: Request, ladders: Sequence[Ladder], widths: Sequence[int]) -> PruningPlan:
    """Return the plan that leaves every ladder at a width, on top of what left before.

    Groups that leave with their layer or their expert are not named.
    """
    kept = dict(request.base.kept)
    gone = leaving_members(ladders, widths) | request.removed_experts
    for ladder, width in zip(ladders, widths, strict=True):
        if width < ladder.group.n_units:
            kept[ladder.group.name] = ladder.kept(width)
    names = [group.name for group in request.layout.groups]
    return PruningPlan(
        kept={name: kept[name] for name in names if name in kept and name not in gone},
        dropped_layers=request.base.dropped_layers,
    )


def largest_ratio(layout: ModelLayout, spec: PruningSpec) -> float:
    """Return the largest ratio a selection reaches under a spec; a share of the parameters of the
    decoder layers, in [0, 1).

    One unit stays in every group. Where layers differ in size and some are to be dropped, it is
    that of dropping the last ones.
    """
    request = make_request(layout, None, spec, None, None)
    return reach(request, ladders_of(request)).highest


def reach(request: Request, ladders: Sequence[Ladder]) -> Reach:
    """Return the ratios that a request can ask for."""
    layout, spec = request.layout, request.spec
    if spec.shape == "uniform":
        widths = smallest_uniform(ladders)
    else:
        widths = [int(ladder.widths[-1]) for ladder in ladders]
    whole = layout.layer_parameters
    losses = layer_losses(layout, request.base)
    for layer, loss in losses_of(ladders, widths).items():
        losses[layer] += loss
    by_hand = {
        layer: ratio
        for layer, ratio in ratios_by_hand(layout, spec).items()
        if layer not in request.dropped
    }
    _check_by_hand(by_hand, losses.tolist(), whole)
    asked = sum(ratio * whole[layer] for layer, ratio in by_hand.items())
    others = sum(loss for layer, loss in enumerate(losses.tolist()) if layer not in by_hand)
    free = any(len(x.widths) > 1 and x.group.layer not in by_hand for x in ladders)
    return Reach(
        lowest=asked / sum(whole),
        highest=(asked + others) / sum(whole),
        is_settled=not free and bool(by_hand or not spec.kinds),
    )


def check_reach(request: Request, ladders: Sequence[Ladder]) -> Reach:
    """Return the ratios that can be asked for, or refuse the one that was.

    Raises:
        InfeasibleRatioError: With what can be reached.
    """
    found, ratio = reach(request, ladders), request.spec.ratio
    if found.is_settled or found.lowest - _ROUNDING <= ratio <= found.highest + _ROUNDING:
        return found
    highest = math.floor(found.highest * 1e4 + _ROUNDING) / 1e4
    if found.lowest > 0.0:
        lowest = math.ceil(found.lowest * 1e4 - _ROUNDING) / 1e4
        raise InfeasibleRatioError(
            f"A pruning ratio of {ratio:g} was asked for, but with the ratios given by hand only "
            f"{lowest:g} to {highest:g} can be reached. Choose a ratio in that range, or change "
            f"those by hand."
        )
    raise InfeasibleRatioError(_too_much(request, highest))


def _too_much(request: Request, highest: float) -> str:
    layout, ratio = request.layout, request.spec.ratio
    no_kind = _no_kind(request)
    if no_kind:
        return no_kind
    shielded = len(protected_layers(layout.n_layers, request.spec))
    if request.spec.shape == "uniform":
        shielded = 0
    if highest == 0.0:
        return (
            f"A pruning ratio of {ratio:g} was asked for, but no unit can leave: {shielded} of "
            f"{layout.n_layers} layers are protected and one unit must stay in each group of the "
            f"others. The largest possible ratio is 0. Protect fewer layers, or let more kinds of "
            f"unit leave."
        )
    return (
        f"A pruning ratio of {ratio:g} cannot be reached: {shielded} of {layout.n_layers} layers "
        f"are protected and at least one unit stays in every group. The largest possible ratio "
        f"for this model is {highest:g}. Lower the ratio, or protect fewer layers."
    )


def _no_kind(request: Request) -> str:
    """Return a sentence where no unit of the kinds that were asked for can leave any layer."""
    has = list(dict.fromkeys(group.kind for group in request.layout.groups))
    wanted = request.spec.kinds
    if not wanted or not set(losing_kinds(request.layout, request.spec)).isdisjoint(has):
        return ""
    present = [KINDS[kind] for kind in wanted if kind in has]
    if present:
        return (
            f"A pruning ratio of {request.spec.ratio:g} was asked for, but in uniform shape all "
            f"{' and '.join(present)} stay, as a stock {request.layout.model_type} config cannot "
            f"state another number of them. Choose per-layer shape, or let other units leave."
        )
    return (
        f"A pruning ratio of {request.spec.ratio:g} was asked for, but only "
        f"{' and '.join(KINDS[kind] for kind in wanted)} may leave and the model has none. Let "
        f"units leave that it has: {' or '.join(KINDS[kind] for kind in has)}."
    )


def _check_by_hand(by_hand: dict[int, float], losses: Sequence[int], whole: Sequence[int]) -> None:
    wrong = [
        f"{ratio:g} for layer {layer} (at most "
        f"{math.floor(losses[layer] / whole[layer] * 1e4) / 1e4:g})"
        for layer, ratio in by_hand.items()
        if ratio > losses[layer] / whole[layer] + _ROUNDING
    ]
    if wrong:
        raise InfeasibleRatioError(
            f"Ratios by hand ask for more than can leave: {', '.join(wrong)}. Lower them, or let "
            f"more kinds of unit leave."
        )
