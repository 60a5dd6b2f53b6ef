"""How much a plan is expected to add to the measured front.

The cost of a plan is known before it is measured, its badness only as a normal distribution. Its
expected gain in hypervolume is then exact: the front is a staircase, and over every step the gain
is the width of the step times the expected improvement on its height

    E[max(0, g - Y)] = (g - mu) Phi(z) + sigma phi(z),   z = (g - mu) / sigma

(Jones, Schonlau and Welch, Journal of Global Optimization 13, 1998, equation 15).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from qpruner_core.search.pareto import Point, non_dominated

Floats = NDArray[np.float64]


def expected_gain(
    costs: Floats, mean: Floats, deviation: Floats, measured: list[Point], reference: Point
) -> Floats:
    """Return the expected gain in hypervolume of every plan, ``(n,)``; >= 0.

    Args:
        costs: Cost of every plan, ``(n,)``.
        mean: Expected badness, ``(n,)``.
        deviation: Its standard deviation, ``(n,)``; > 0.
        measured: Cost and badness of everything measured.
        reference: Cost and badness beyond which nothing counts.
    """
    inside = [p for p in measured if p[0] < reference[0] and p[1] < reference[1]]
    front = [inside[i] for i in non_dominated(inside)]
    edges = np.array([-np.inf, *(cost for cost, _ in front), reference[0]])
    heights = np.array([reference[1], *(value for _, value in front)])
    low = np.maximum(edges[:-1], costs[:, None])  # (n, steps)
    widths = np.maximum(edges[1:] - low, 0.0)
    z = (heights - mean[:, None]) / deviation[:, None]
    density = np.exp(-0.5 * z**2) / np.sqrt(2.0 * np.pi)
    gains = (heights - mean[:, None]) * ndtr(z) + deviation[:, None] * density
    total: Floats = (widths * gains).sum(axis=1)
    return total
