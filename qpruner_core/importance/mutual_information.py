"""Mutual information by nearest neighbours: no model of the densities, only distances."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import digamma
from sklearn.neighbors import KDTree

from qpruner_core.importance.information import (
    Floats,
    InformationSignal,
    Integers,
    frequent_classes,
)

_TIE_BREAK = 1e-10
"""Noise on standard columns: states that are equal bit for bit would lie at distance zero."""


class MutualInformation(InformationSignal):
    """I(X_l; Y) per layer by nearest neighbours; see `InformationSignal` for what is measured.

    Y is the most likely token, the most frequent ones as classes of their own and the rest as one;
    the estimator is `neighbour_information_of_classes`, on all ``n_components`` columns together.
    What is estimated is at most H(Y), and grows with every component until neighbours are too far
    apart: with four, a thousand samples are enough.
    """

    def __init__(
        self, n_components: int = 4, n_neighbors: int = 3, n_samples: int = 1024, *, seed: int = 0
    ) -> None:
        super().__init__(n_components, n_samples, seed)
        self._n_neighbors = n_neighbors

    def observe(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the most likely tokens."""
        return logits.argmax(dim=-1)

    def outputs(self, observed: NDArray[Any]) -> NDArray[Any]:
        """Return the most likely tokens as classes, each with more than enough neighbours."""
        return frequent_classes(observed, 2 * self._n_neighbors)

    def estimate(self, components: Floats, outputs: NDArray[Any]) -> float:
        """Return the estimate of `neighbour_information_of_classes`."""
        return neighbour_information_of_classes(components, outputs, self._n_neighbors, self._seed)


def neighbour_information(x: Floats, y: Floats, n_neighbors: int = 3, seed: int = 0) -> float:
    """Return I(X; Y) of two continuous variables by nearest neighbours; nats, may be below zero.

        I = psi(k) + psi(n) - mean over i of (psi(n_x(i) + 1) + psi(n_y(i) + 1))

    with n_x(i) the samples whose x lies closer to x_i than the k-th neighbour of (x_i, y_i) in the
    joint space, all distances the largest of the coordinates'. See `neighbour_error`.

    Reference: Kraskov, Stoegbauer and Grassberger, arXiv:cond-mat/0305641, equation 8; the trees
    are scikit-learn's, whose own estimator takes one column at a time.

    Args:
        x: Samples (n, d) in comparable units, such as variance 1.
        y: Samples (n, e), likewise.
        n_neighbors: k; more of them vary less and blur more.
        seed: Seed of the noise that parts equal samples.
    """
    n, k = len(x), min(n_neighbors, len(x) - 1)
    noise = np.random.default_rng(seed)
    x, y = _parted(x, noise), _parted(y, noise)
    radius = _radius(np.hstack([x, y]), k)
    counts = [_within(part, radius) for part in (x, y)]  # each counts the sample itself: n_x + 1
    return float(digamma(k) + digamma(n) - sum(float(digamma(m).mean()) for m in counts))


def neighbour_information_of_classes(
    x: Floats, classes: Integers, n_neighbors: int = 3, seed: int = 0
) -> float:
    """Return I(X; Y) of a continuous and a discrete variable by nearest neighbours; nats, may be
    below zero.

        I = psi(n) + mean psi(k_i) - mean psi(N_i) - mean psi(m_i)

    with N_i the samples of the same class as i, k_i the smaller of k and N_i - 1, and m_i the
    samples of any class, i among them, within the distance of the k_i-th neighbour of the same
    class. For independent variables the estimate lies within 5 / sqrt(n) of zero. Classes of one
    sample have no neighbour and are left out.

    Reference: Ross, PLoS ONE 9(2), 2014, e87357, which carries arXiv:cond-mat/0305641 over to
    discrete variables.

    Args:
        x: Samples (n, d) in comparable units, such as variance 1.
        classes: Class of every sample, (n,).
        n_neighbors: k.
        seed: Seed of the noise that parts equal samples.
    """
    _, inverse, sizes = np.unique(classes, return_inverse=True, return_counts=True)
    counted = sizes[inverse] > 1
    x, inverse = _parted(x[counted], np.random.default_rng(seed)), inverse[counted]
    if len(np.unique(inverse)) < 2:  # a prediction that never changes holds no information
        return 0.0
    radius = np.empty(len(x))
    for one in np.unique(inverse):
        radius[inverse == one] = _radius(x[inverse == one], min(n_neighbors, sizes[one] - 1))
    own = sizes[inverse]
    terms = digamma(np.minimum(n_neighbors, own - 1)) - digamma(own) - digamma(_within(x, radius))
    return float(digamma(len(x)) + terms.mean())


def neighbour_error(information: float, n_samples: int, n_columns: int) -> float:
    """Return how far `neighbour_information` may be off on Gaussians; nats.

        5 / sqrt(n) + 0.06 (d + e - 2) I

    The first part is chance (one standard deviation is about 1 / sqrt(n)) and goes to either side.
    The second is a shortfall: in more columns than two, neighbours lie too far apart for the
    density to be even among them. Measured with k = 3 for d + e up to 8, n from 500 and I up to
    3.3 nats.

    Args:
        information: The true I, nats.
        n_samples: n.
        n_columns: d + e.
    """
    return 5.0 / sqrt(n_samples) + 0.06 * (n_columns - 2) * information


def _parted(x: Floats, noise: np.random.Generator) -> Floats:
    """Return samples of which no two are equal."""
    scale = _TIE_BREAK * np.maximum(1.0, np.abs(x).mean(axis=0))
    parted: Floats = x + scale * noise.standard_normal(x.shape)
    return parted


def _radius(x: Floats, k: int) -> Floats:
    """Return just less than the distance of every sample to its k-th neighbour, (n,)."""
    distances, _ = KDTree(x, metric="chebyshev").query(x, k=k + 1)  # the first is the sample
    radius: Floats = np.nextafter(distances[:, -1], 0.0)
    return radius


def _within(x: Floats, radius: Floats) -> Integers:
    """Return how many samples lie within a radius of every sample, itself among them, (n,)."""
    counts: Integers = KDTree(x, metric="chebyshev").query_radius(x, radius, count_only=True)
    return counts
