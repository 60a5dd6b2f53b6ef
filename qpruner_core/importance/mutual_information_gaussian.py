"""Mutual information in closed form, as if states and predictions were jointly Gaussian."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import digamma

from qpruner_core.importance.information import Floats, InformationSignal, standard_components

_SKETCH = 64
"""Random directions in which log-probabilities are kept; 33 MB of them for 128 thousand tokens."""
_SAMPLES_PER_COLUMN = 8
"""Samples that every column of X or Y needs: with fewer, chance alone correlates them."""
_FEWEST_SAMPLES = 4
"""Samples that one column of each takes."""
_LEAST_UNEXPLAINED = 1e-12
"""Share of a variance that always counts as unexplained; keeps the estimate below 14 nats for
every pair of columns.
"""


class GaussianInformation(InformationSignal):
    """I(X_l; Y) per layer for Gaussians; see `InformationSignal` for what is measured.

    Y has to be continuous, so it is what the whole prediction looks like rather than the token it
    prefers: the log-probabilities of all tokens, each position's about their mean over the
    vocabulary, and of these the ``n_outputs`` leading principal components. As the softmax takes
    no notice of that mean, nothing of the prediction is lost by it. The vocabulary is never held
    for all positions: log-probabilities are first projected on 64 random directions, which keep
    leading components nearly as they are (Halko, Martinsson and Tropp, arXiv:0909.4061). Memory of
    Y is n_samples x 64 numbers, and 64 x V of the directions.

    The estimator is `gaussian_information`. Only straight-line dependence counts: for other
    distributions the value is that of Gaussians with the same correlations. With few positions
    fewer components are used, so that every column has `_SAMPLES_PER_COLUMN` samples.
    """

    def __init__(
        self, n_components: int = 16, n_outputs: int = 8, n_samples: int = 1024, *, seed: int = 0
    ) -> None:
        super().__init__(n_components, n_samples, seed)
        self._n_outputs = n_outputs

    def begin(self, n_layers: int, n_sequences: int, length: int) -> None:
        """Forget what was seen, and draw positions; directions are drawn with the first logits."""
        super().begin(n_layers, n_sequences, length)
        self._directions: torch.Tensor | None = None

    def observe(self, logits: torch.Tensor) -> torch.Tensor:
        """Return log-probabilities about their mean along the random directions, (n, 64)."""
        # The mean over the vocabulary takes the normaliser of the softmax with it.
        centred = logits.float() - logits.float().mean(dim=-1, keepdim=True)
        if self._directions is None:
            draw = torch.Generator().manual_seed(self._seed)
            shape = (logits.shape[-1], _SKETCH)
            self._directions = torch.randn(shape, generator=draw).to(centred.device)
        sketch: torch.Tensor = centred @ self._directions / _SKETCH**0.5
        return sketch

    def outputs(self, observed: NDArray[Any]) -> NDArray[Any]:
        """Return the leading components of everything kept, (n, n_outputs), each of variance 1."""
        return standard_components(observed, self._n_outputs, self._seed)

    def estimate(self, components: Floats, outputs: NDArray[Any]) -> float:
        """Return the estimate of `gaussian_information`, of as many columns as samples allow; 0
        where they are too few for one.
        """
        if len(components) < _FEWEST_SAMPLES:
            return 0.0
        most = max(1, len(components) // _SAMPLES_PER_COLUMN)
        return gaussian_information(components[:, :most], outputs[:, :most])


def gaussian_information(x: Floats, y: Floats) -> float:
    """Return I(X; Y) of jointly Gaussian variables; nats, may be below zero.

        I = -1/2 sum over i of log(1 - rho_i^2) - bias

    with rho_i the canonical correlations: for one column each -1/2 log(1 - rho^2), in general
    1/2 log(det S_x det S_y / det S). What chance adds is exactly known for Gaussians and taken
    off,

        bias = 1/2 (f(d) + f(e) - f(d + e)),   f(m) = sum over i = 1..m of psi((n - i) / 2)

    so that the mean over samples is I itself. As only the spans of the columns count, the estimate
    does not change under invertible linear maps of X or of Y; columns that depend on others (to
    n times the machine's precision) are left out. See `gaussian_error`.

    Reference: Cover and Thomas, Elements of Information Theory, 2006, section 8.5, for the closed
    form; the unbiased log-determinants are those of Ahmed and Gokhale, IEEE Transactions on
    Information Theory 35(3), 1989.

    Args:
        x: Samples (n, d); its numerical rank counts as d.
        y: Samples (n, e), likewise.

    Raises:
        ValueError: n is not above d + e + 1.
    """
    one, other = _basis(x), _basis(y)
    n, d, e = len(x), one.shape[1], other.shape[1]
    if n <= d + e + 1:
        raise ValueError(f"{d} and {e} columns need more than {d + e + 1} samples, got {n}")
    if d == 0 or e == 0:  # a constant holds no information
        return 0.0
    correlations = np.linalg.svd(one.T @ other, compute_uv=False)
    unexplained = np.maximum(1.0 - correlations**2, _LEAST_UNEXPLAINED)
    bias = (_log_scale(n, d) + _log_scale(n, e) - _log_scale(n, d + e)) / 2
    return float(-np.log(unexplained).sum() / 2 - bias)


def gaussian_error(correlations: Floats, n_samples: int, n_columns: tuple[int, int]) -> float:
    """Return how far `gaussian_information` may be off on Gaussians; nats, to either side.

        5 sqrt((sum of rho_i^2 + d e / 2n) / n)

    five standard deviations: by the delta method -1/2 log(1 - rho^2) has the variance rho^2 / n,
    and of independent columns 2n I is chi-squared with d e degrees of freedom.

    Args:
        correlations: The true canonical correlations.
        n_samples: n; at least `_SAMPLES_PER_COLUMN` for every column.
        n_columns: d and e.
    """
    by_chance = n_columns[0] * n_columns[1] / (2 * n_samples)
    return float(5.0 * np.sqrt((np.sum(np.square(correlations)) + by_chance) / n_samples))


def _basis(x: Floats) -> Floats:
    """Return an orthonormal basis (n, rank) of the columns about their means."""
    left, sizes, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    tiny = len(x) * np.finfo(np.float64).eps * max(float(np.abs(x).max()), float(sizes[0]))
    basis: Floats = left[:, sizes > tiny]
    return basis


def _log_scale(n: int, m: int) -> float:
    """Return what chance adds to the log-determinant of an m x m covariance, but for m log(2 /
    n).
    """
    return float(digamma((n - np.arange(1, m + 1)) / 2).sum())
