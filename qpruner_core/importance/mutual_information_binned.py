"""Mutual information by counting: states fall into cells of equal numbers."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.metrics import mutual_info_score
from sklearn.metrics.cluster import expected_mutual_information

from qpruner_core.importance.information import (
    Floats,
    InformationSignal,
    Integers,
    frequent_classes,
)

_LEAST_PER_CLASS = 8
"""Samples that a predicted token must exceed to be a class of its own."""


class BinnedInformation(InformationSignal):
    """I(X_l; Y) per layer by counting; see `InformationSignal` for what is measured.

    Every column of X_l is cut into ``n_bins`` bins of equal numbers of samples, and the columns
    together into the cells where bins cross: n_bins to the power of n_components at most, which
    should leave every cell some samples. Y is the most likely token, the most frequent ones as
    classes of their own and the rest as one. The estimator is `counted_information`.
    """

    def __init__(
        self, n_components: int = 3, n_bins: int = 4, n_samples: int = 1024, *, seed: int = 0
    ) -> None:
        super().__init__(n_components, n_samples, seed)
        self._n_bins = n_bins

    def observe(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the most likely tokens."""
        return logits.argmax(dim=-1)

    def outputs(self, observed: NDArray[Any]) -> NDArray[Any]:
        """Return the most likely tokens as classes."""
        return frequent_classes(observed, _LEAST_PER_CLASS)

    def estimate(self, components: Floats, outputs: NDArray[Any]) -> float:
        """Return the estimate of `counted_information` between cells and classes."""
        return counted_information(equal_cells(components, self._n_bins), outputs)


def equal_cells(x: Floats, n_bins: int) -> Integers:
    """Return the cell of every sample, (n,): columns are cut into bins of equal numbers, and
    cells are where bins cross.

    Equal values fall into one bin. Cells do not change under growing functions of a column.

    Args:
        x: Samples, (n, d).
        n_bins: Bins per column.
    """
    ranks = rankdata(x, method="min", axis=0).astype(np.int64) - 1
    bins = ranks * n_bins // len(x)  # (n, d)
    _, cells = np.unique(bins, axis=0, return_inverse=True)
    found: Integers = cells.reshape(-1)
    return found


def counted_information(x: Integers, y: Integers) -> float:
    """Return I(X; Y) of two discrete variables, cleaned of what chance adds; nats, may be below
    zero.

        I = h (I_counted - E) / (h - E),   h = the smaller of H(X) and H(Y)

    E is what I_counted would be on average if the same samples were paired at random: with r and s
    cells about (r - 1)(s - 1) / 2n, and exact however few samples a cell has. So the estimate is
    zero on average for independent variables, and h where one variable decides the other; between,
    the correction shrinks in proportion. See `counted_error`.

    Reference: Vinh, Epps and Bailey, JMLR 11 (2010), 2837-2854, equation 24a for E and "adjusted
    for chance"; they divide by a mean of the entropies to compare clusterings, we keep nats.

    Args:
        x: Cell of every sample, (n,), from 0.
        y: Cell of every sample, (n,), from 0.
    """
    table = np.zeros((int(x.max()) + 1, int(y.max()) + 1), dtype=np.int64)
    np.add.at(table, (x, y), 1)
    table = table[table.any(axis=1)][:, table.any(axis=0)]
    largest = min(_entropy(table.sum(axis=1)), _entropy(table.sum(axis=0)))
    expected = float(expected_mutual_information(table, len(x)))
    if largest <= expected:  # one cell only, or every sample in its own: nothing can be told
        return 0.0
    counted = float(mutual_info_score(None, None, contingency=table))
    return float(largest * (counted - expected) / (largest - expected))


def counted_error(information: float, n_samples: int, n_bins: int) -> float:
    """Return how far `counted_information` may be off on two Gaussian columns in equal bins; nats.

        5 / sqrt(n) + 1.6 I / b

    The first part is chance and goes to either side. The second is a shortfall: b bins tell less
    than the values in them. Exact integrals give 1.5 I / b at most for I up to 1 nat and b from 8;
    beyond, more is lost, as the estimate never exceeds log b.

    Args:
        information: The true I, nats; at most 1.
        n_samples: n, at least 2 b^2.
        n_bins: b.
    """
    return 5.0 / sqrt(n_samples) + 1.6 * information / n_bins


def _entropy(counts: Integers) -> float:
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())
