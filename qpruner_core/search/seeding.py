"""Which plans are measured without asking the sampler: points of the predicted front, and untried
neighbours.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from qpruner_core.search.allocator import Floats, Integers
from qpruner_core.search.knapsack import Front
from qpruner_core.search.space import Code, SearchSpace


def order_points(front: Front, budget_bytes: int, n_points: int) -> list[Code]:
    """Return up to ``n_points`` plans of a predicted front within the budget, in the order in
    which they are to be measured.

    The best under the budget comes first and the smallest second; then always the point that adds
    most to the area that the chosen ones dominate, by prediction.
    """
    codes = front.codes()
    inside = [i for i, code in enumerate(codes) if front.space.code_bytes(code) <= budget_bytes]
    if not inside:
        return []
    sizes, losses = front.weight_bytes[inside], front.loss_increase[inside]
    order = list(dict.fromkeys([len(inside) - 1, 0]))
    while len(order) < min(n_points, len(inside)):
        gains = _gains(sizes, losses, order)
        gains[order] = -1.0
        order.append(int(np.argmax(gains)))
    return [codes[inside[i]] for i in order[: max(n_points, 0)]]


def _gains(sizes: Integers, losses: Floats, chosen: Sequence[int]) -> Floats:
    """Return what every point of a front adds to the area that some of its points dominate; both
    ends of the front are among these.
    """
    known = np.sort(np.array(chosen))
    right = np.searchsorted(known, np.arange(len(sizes)), side="left")
    after = known[np.minimum(right, len(known) - 1)]
    before = known[np.maximum(right - 1, 0)]
    gains: Floats = (sizes[after] - sizes) * (losses[before] - losses)
    return gains


def nearest_untried(
    space: SearchSpace,
    start: Code,
    tried: Collection[Code],
    anchors: Sequence[Code],
    budget_bytes: int,
) -> Code | None:
    """Return an untried plan within the budget as few steps from ``start`` as possible; None when
    none is left.

    Among equally near ones, those nearest to the predicted front go first (fewest steps to one of
    ``anchors``), then the smallest code. A plan as near as possible is reached through tried plans
    only, so the walk is as long as what was tried, not as the space; and as steps go along
    `_ladders`, a plan within the budget stays within it while it is lowered, and none is out of
    reach.

    Args:
        space: The search space.
        start: A plan within the budget.
        tried: Plans that are not to be returned.
        anchors: Plans whose neighbourhood is preferred.
        budget_bytes: Bytes the whole model may take.
    """
    ladders = _ladders(space)
    seen, ring = {start}, [start]
    while ring:
        untried = [code for code in ring if code not in tried]
        if untried:
            return min(untried, key=lambda code: _rank(code, anchors))
        following = []
        for code in ring:
            for near in _neighbours(code, ladders):
                if near not in seen:
                    seen.add(near)
                    if space.code_bytes(near) <= budget_bytes:
                        following.append(near)
        ring = following
    return None


def within_budget(space: SearchSpace, code: Code, prior: Floats, budget_bytes: int) -> Code:
    """Return a plan lowered until it holds the budget, at the least predicted loss per byte saved
    in every step.

    Args:
        space: The search space; some plan of it holds the budget.
        code: A plan of any size.
        prior: Predicted loss increase, ``(n_units, n_options)``.
        budget_bytes: Bytes the whole model may take.
    """
    units = np.arange(len(space.units))
    table = np.array(space.unit_bytes)
    while space.code_bytes(code) > budget_bytes:
        now = np.array(space.option_indices(code))
        best: tuple[float, Code] | None = None
        for lower in _lowered(code):
            then = np.array(space.option_indices(lower))
            saved = int((table[units, now] - table[units, then]).sum())
            lost = float((prior[units, then] - prior[units, now]).sum())
            if saved > 0 and (best is None or (lost / saved, lower) < best):
                best = (lost / saved, lower)
        if best is None:
            raise ValueError("no plan of the space holds the budget")
        code = best[1]
    return space.canonical(code)


def _lowered(code: Code) -> Iterator[Code]:
    """Give the codes that lower one parameter by one or, where bytes stay equal, by more."""
    for index, choice in enumerate(code):
        for lower in range(choice):
            yield (*code[:index], lower, *code[index + 1 :])


def _ladders(space: SearchSpace) -> list[list[int]]:
    """Return the different values of every parameter by ascending bytes.

    Options ascend in bytes of the whole model. Where every layer has a pruning level of its own,
    one that prunes a layer little may take less of it at 4 bit than another level at 8 bit, though
    not of the model.
    """
    sizes = list(space.parameters.values())
    if space.joint != "per-layer":
        return [list(range(n)) for n in sizes]
    alike = [space.canonical((option,) * len(sizes)) for option in range(len(space.options))]
    return [
        sorted({code[unit] for code in alike}, key=lambda option: (row[option], option))
        for unit, row in enumerate(space.unit_bytes)
    ]


def _neighbours(code: Code, ladders: Sequence[Sequence[int]]) -> Iterator[Code]:
    """Give the codes that move one parameter by one step of its ladder."""
    for index, (choice, ladder) in enumerate(zip(code, ladders, strict=True)):
        at = ladder.index(choice)
        for step in (at - 1, at + 1):
            if 0 <= step < len(ladder):
                yield (*code[:index], ladder[step], *code[index + 1 :])


def _rank(code: Code, anchors: Sequence[Code]) -> tuple[int, Code]:
    steps = 0
    if anchors:
        steps = int(np.abs(np.array(anchors) - np.array(code)).sum(axis=1).min())
    return (steps, code)
