"""What a selection could not do exactly as asked, in sentences for the person."""

from __future__ import annotations

from collections.abc import Iterator

from qpruner_core.domain.layout import KINDS, ModelLayout
from qpruner_core.domain.plan import PruningPlan
from qpruner_core.domain.spec import PruningSpec
from qpruner_core.pruning.request import Request
from qpruner_core.pruning.widths import (
    CHANNELS,
    fitting_multiple,
    group_ladder,
    losing_kinds,
    protected_layers,
    prunable_groups,
    ratios_by_hand,
)

_NEAR = 0.005
"""Share of the parameters by which a model may miss the ratio before it is said."""
_LIKE = 0.05
"""Share of the KV heads by which they may miss the ratio before the stock config is blamed."""


def remarks(
    request: Request, plan: PruningPlan, pruned: ModelLayout, *, is_settled: bool
) -> tuple[str, ...]:
    """Return one sentence for everything that is not exactly as asked.

    Args:
        request: What was asked.
        plan: What was chosen.
        pruned: The layout that the plan leaves.
        is_settled: Whether no unit could leave but by hand, so that the ratio had no say.
    """
    ratio = request.spec.ratio
    if plan.is_identity and not is_settled:
        nothing = f"A pruning ratio of {ratio:g} rounds to no unit at all; nothing is removed."
        return (nothing,) if ratio > 0.0 else ()
    return (
        *_shape_remarks(request),
        *_by_hand_remarks(request, is_settled=is_settled),
        *(() if is_settled else _ratio_remarks(request, plan, pruned)),
        *_kind_remarks(request, pruned),
        *_multiple_remarks(request, plan),
    )


def _shape_remarks(request: Request) -> Iterator[str]:
    layout, spec = request.layout, request.spec
    if spec.shape != "uniform":
        return
    if protected_layers(layout.n_layers, spec):
        yield "Uniform widths are the same in every layer, so no layer is protected."
    if spec.scope not in ("per-layer", PruningSpec().scope):
        yield (
            f"Uniform widths leave nothing to a {spec.scope} scope; units are ranked per layer."
        )
    if spec.layer_ratios:
        yield "Uniform widths are the same in every layer, so ratios by hand are not followed."
    present = {group.kind for group in layout.groups}
    for kind in spec.kinds:
        if kind in present and kind not in losing_kinds(layout, spec):
            yield (
                f"All {KINDS[kind]} stay, as a stock {layout.model_type} config cannot state "
                f"another number of them; per-layer shape has no such limit."
            )


def _by_hand_remarks(request: Request, *, is_settled: bool) -> Iterator[str]:
    layout, spec = request.layout, request.spec
    by_hand = ratios_by_hand(layout, spec)
    shielded = protected_layers(layout.n_layers, spec)
    both = sorted(layer for layer, ratio in by_hand.items() if ratio > 0 and layer in shielded)
    if both:
        yield (
            f"Ratios by hand outrank protection, so {_layers(both)} "
            f"{'loses' if len(both) == 1 else 'lose'} units although protected."
        )
    if is_settled:
        what = "The ratios by hand decide" if by_hand else "The number of layers to drop decides"
        yield f"{what} all that can leave; the ratio of {spec.ratio:g} has no say."


def _layers(numbers: list[int]) -> str:
    names = ", ".join(map(str, numbers))
    return f"layer {names}" if len(numbers) == 1 else f"layers {names}"


def _ratio_remarks(request: Request, plan: PruningPlan, pruned: ModelLayout) -> Iterator[str]:
    """Say what share leaves when it is not the one asked for."""
    asked = request.spec.ratio
    whole = sum(request.layout.layer_parameters)
    share = 1.0 - sum(pruned.layer_parameters) / whole
    if abs(share - asked) <= _NEAR:
        return
    found = f"{share:.1%} of the parameters of the layers leave rather than {asked:.1%}"
    settled = _settled_first(request)
    if share < asked or not settled or _chose_freely(request, plan):
        yield f"{found}, the nearest that whole units and rounded widths give."
    else:
        yield f"{found}, as {_listed(settled)} alone take that much; nothing else leaves."


def _settled_first(request: Request) -> list[str]:
    """Return what takes parameters before the ratio has its say."""
    by_hand = ratios_by_hand(request.layout, request.spec)
    parts = {
        "the dropped layers": bool(request.dropped),
        "the ratios by hand": any(ratio > 0.0 for ratio in by_hand.values()),
        "earlier rounds": bool(request.removed.kept),
    }
    return [words for words, is_there in parts.items() if is_there]


def _chose_freely(request: Request, plan: PruningPlan) -> bool:
    """Whether any layer without a ratio by hand loses units that had not left before."""
    by_hand, before = ratios_by_hand(request.layout, request.spec), request.base.kept
    return any(
        group.layer not in by_hand and plan.kept[group.name] != before.get(group.name)
        for group in request.layout.groups
        if group.name in plan.kept
    )


def _listed(words: list[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def _kind_remarks(request: Request, pruned: ModelLayout) -> Iterator[str]:
    """Say which kinds cannot lose anything, or lose another share than the ratio for the sake of
    a stock config.
    """
    layout, spec = request.layout, request.spec
    for kind in losing_kinds(layout, spec):
        groups = [group for group in layout.groups if group.kind == kind]
        if groups and all(group.n_units == 1 for group in groups):
            yield f"No {KINDS[kind]} leave, as every layer has just one of them."
        elif groups and kind == "kv_heads" and spec.shape == "uniform":
            most = max(groups, key=lambda group: group.n_units)
            after = max(group.n_units for group in pruned.groups if group.kind == kind)
            lost = 1.0 - after / most.n_units
            limited = len(group_ladder(layout, most, spec)) < most.n_units
            if limited and abs(lost - spec.ratio) > _LIKE:
                yield (
                    f"{lost:.1%} of the KV heads leave, as a stock {layout.model_type} config "
                    f"takes only numbers of query heads that divide its hidden size of "
                    f"{layout.hidden_size}; per-layer shape has no such limit."
                )


def _multiple_remarks(request: Request, plan: PruningPlan) -> Iterator[str]:
    """Say when the width multiple does not fit, or was left behind at high ratios."""
    spec = request.spec
    groups = prunable_groups(request.layout, spec, request.dropped)
    touched = [group for group in groups if group.kind in CHANNELS]
    if not touched:
        return
    narrowest = min(group.n_units for group in touched)
    multiple = fitting_multiple(narrowest, spec.width_multiple)
    if multiple != spec.width_multiple:
        yield (
            f"MLP widths are multiples of {multiple}, not of {spec.width_multiple}: four times "
            f"that do not fit {narrowest} channels."
        )
    elif any(len(plan.kept.get(group.name, range(multiple))) < multiple for group in touched):
        yield f"Some MLPs keep fewer than {multiple} channels, so their widths are powers of two."
