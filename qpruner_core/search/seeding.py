"""Which plans are measured without asking the sampler: points of the predicted front, and untried
neighbours.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from qpruner_core.search.allocator import Floats
from qpruner_core.search.space import Code, SearchSpace


def order_seeds(
    space: SearchSpace, codes: Sequence[Code], budget_bytes: int, n_seeds: int
) -> list[Code]:
    """Return up to ``n_seeds`` points of the predicted front in the order they are to be measured.

    The point nearest below the budget comes first, then points further down whose distance to the
    budget grows quadratically: dense where the person will choose, sparse at the small end, the
    smallest included. Points over the budget are left out.
    """
    by_bytes = sorted(
        {code: space.code_bytes(code) for code in codes}.items(), key=lambda p: (-p[1], p[0])
    )
    below = [pair for pair in by_bytes if pair[1] <= budget_bytes]
    if len(below) <= n_seeds:
        return [code for code, _ in below]
    sizes = np.array([size for _, size in below], dtype=np.float64)
    depth = np.linspace(0.0, 1.0, max(n_seeds, 2))[:n_seeds] ** 2
    taken: list[int] = []
    for target in sizes[0] - depth * (sizes[0] - sizes[-1]):
        distance = np.abs(sizes - target)
        distance[taken] = np.inf
        taken.append(int(np.argmin(distance)))
    return [below[index][0] for index in sorted(taken)]


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
    only, so the walk is as long as what was tried, not as the space; and as a plan within the
    budget stays within it while it is lowered, none is out of reach.

    Args:
        space: The search space.
        start: A plan within the budget.
        tried: Plans that are not to be returned.
        anchors: Plans whose neighbourhood is preferred.
        budget_bytes: Bytes the whole model may take.
    """
    seen, ring = {start}, [start]
    while ring:
        untried = [code for code in ring if code not in tried]
        if untried:
            return min(untried, key=lambda code: _rank(code, anchors))
        following = []
        for code in ring:
            for near in _neighbours(code, tuple(space.parameters.values())):
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
    return code


def _lowered(code: Code) -> Iterator[Code]:
    """Give the codes that lower one parameter by one or, where bytes stay equal, by more."""
    for index, choice in enumerate(code):
        for lower in range(choice):
            yield (*code[:index], lower, *code[index + 1 :])


def _neighbours(code: Code, sizes: Sequence[int]) -> Iterator[Code]:
    """Give the codes that move one parameter by one."""
    for index, (choice, n_choices) in enumerate(zip(code, sizes, strict=True)):
        for moved in (choice - 1, choice + 1):
            if 0 <= moved < n_choices:
                yield (*code[:index], moved, *code[index + 1 :])


def _rank(code: Code, anchors: Sequence[Code]) -> tuple[int, Code]:
    steps = 0
    if anchors:
        steps = int(np.abs(np.array(anchors) - np.array(code)).sum(axis=1).min())
    return (steps, code)
