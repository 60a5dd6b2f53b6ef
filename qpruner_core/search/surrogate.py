"""What is believed of plans that were not measured: a Bayesian linear model of per-unit costs,
with pair terms and a Gaussian process on what is left.

    badness(plan) = a + s m(plan) + sum_u d_u(o_u) + pairs(plan) + rest(plan) + noise

m is the prediction of the sensitivities, s how it carries over to the evaluation text, d_u what a
unit really costs beyond it, *pairs* the products of two units' choices, and *rest* a Gaussian
process over the share of units in which two plans differ. All terms are Gaussian, so that together
they are one Gaussian process whose covariance is a sum of known matrices with unknown weights
(Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, sections 2.7 and 5.4.1);
the weights are those of greatest marginal likelihood under weak priors, so a term that the data do
not carry fades. The linear part is given back as costs per unit, from which the exact front is
solved again.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

TERMS = ("offset", "scale", "units, as predicted", "units, alike", "pairs", "rest", "noise")
"""Terms of the covariance, in the order of their weights."""
_CENTRES = np.log(np.array([1.0, 0.025, 0.1, 0.01, 0.01, 0.003, 1e-4]))
"""Usual weights, as variances in the unit of the measured spread."""
_WIDTHS = np.array([0.75, 0.75, 0.75, 0.75, 1.0, 1.0, 1.0])
"""Standard deviations of the priors of their logarithms."""
_SPAN = 9.0
"""How far a logarithm may go from its centre."""
_LENGTH = 0.25
"""Share of units after which *rest* has forgotten, by a factor e."""
_LEAST_APART = 0.1
"""Share of their largest predicted cost by which a unit's options count as apart, at least in the
mean over units."""
_JITTER = 1e-10


@dataclass(frozen=True, slots=True, eq=False)
class _Scaled:
    """Measured values in a unit in which the priors are stated."""

    centre: float
    spread: float
    slope: float
    """Nats of the objective per nat predicted, first guess; >= 0."""


class Surrogate:
    """Fitted to some measured plans; predicts others with their uncertainty.

    Args:
        prior: Predicted loss increase, ``(n_units, n_options)``; nats.
        chosen: Option of every unit of every measured plan, ``(n_plans, n_units)``; two plans or
            more.
        badness: Measured values, ``(n_plans,)``; smaller is better.
    """

    def __init__(self, prior: Floats, chosen: Integers, badness: Floats) -> None:
        self._prior, self._chosen = prior, chosen
        self._units = np.arange(len(prior))
        predicted = self._predicted(chosen)
        self._scaled = _scaled(predicted, badness)
        # Differences of a unit's options are what matters; a typical one sets the scale of d_u.
        # Options that are nearly alike, as nf4 and fp4 may be, must not make it next to nothing.
        least = _LEAST_APART * float(np.abs(prior).max(axis=1).mean())
        self._typical = max(float(np.ptp(prior, axis=1).mean()), least) or 1.0
        self._range = max(float(np.ptp(prior, axis=1).sum()), least * len(prior)) or 1.0
        self._badness = badness
        self._matrices = self._between(chosen)
        self.weights = self._fit(self._target())
        """Variance of every term of `TERMS`, in units of the measured spread squared."""
        self._condition()

    def predict(self, chosen: Integers) -> tuple[Floats, Floats]:
        """Return mean and standard deviation of the badness of plans, ``(n,)`` each.

        Args:
            chosen: Option of every unit, ``(n, n_units)``.
        """
        across = _combined(self.weights[:-1], self._covariances(chosen, self._chosen))
        mean = across @ self._pull
        half = solve_triangular(self._factor[0], across.T, lower=True)
        own = _combined(self.weights[:-1], self._own(chosen))
        deviation = np.sqrt(np.maximum(own - (half**2).sum(axis=0), _JITTER))
        spread = self._scaled.spread
        return self._mean(self._predicted(chosen)) + spread * mean, spread * deviation

    def believing(self, pending: Integers) -> Surrogate:
        """Return the surrogate that has seen plans under way with the values it expects of them
        (kriging believer), so that a batch spreads out.
        """
        if not len(pending):
            return self
        expected, _ = self.predict(pending)
        other = copy(self)
        other._chosen = np.concatenate([self._chosen, pending])
        other._badness = np.concatenate([self._badness, expected])
        other._matrices = other._between(other._chosen)
        other._condition()
        return other

    def costs(self) -> Floats:
        """Return the expected costs of units, ``(n_units, n_options)``, up to a constant; nats."""
        return self._costs(self._pull, np.zeros_like(self._prior), 0.0)

    def sampled_costs(self, rng: np.random.Generator) -> Floats:
        """Return costs of units drawn from what is believed of the linear part.

        A draw from the prior, moved by what it would have said of the measured plans (Matheron's
        rule).
        """
        drawn = rng.standard_normal(self._prior.shape) * np.sqrt(self._cell_variances())
        scale = float(rng.standard_normal() * np.sqrt(self.weights[1]))
        beyond = [0, *range(4, len(TERMS))]  # offset, pairs, rest, noise
        parts = [self._matrices[i] for i in beyond]
        shape = np.linalg.cholesky(_combined(self.weights[beyond], parts))
        said = drawn[self._units, self._chosen].sum(axis=1)
        said += scale * self._predicted(self._chosen) / self._range
        said += shape @ rng.standard_normal(len(said))
        return self._costs(self._pull - cho_solve(self._factor, said), drawn, scale)

    def _costs(self, pull: Floats, drawn: Floats, scale: float) -> Floats:
        """Return the costs that a pull of the measured plans makes of prior costs."""
        pulled = (pull @ self._one_hot(self._chosen)).reshape(self._prior.shape)
        own = drawn + pulled * self._cell_variances()
        scale += self.weights[1] * float(pull @ self._predicted(self._chosen)) / self._range
        slope = self._scaled.slope + scale * self._scaled.spread / self._range
        costs: Floats = slope * self._prior + self._scaled.spread * own
        return costs

    def _target(self) -> Floats:
        expected = self._mean(self._predicted(self._chosen))
        target: Floats = (self._badness - expected) / self._scaled.spread
        return target

    def _condition(self) -> None:
        """Take in the measured plans under the weights as they are."""
        self._factor = cho_factor(_combined(self.weights, self._matrices), lower=True)
        self._pull = cho_solve(self._factor, self._target())

    def _between(self, chosen: Integers) -> list[Floats]:
        """Return the covariance of plans with each other under every term."""
        same = np.eye(len(chosen))
        found = self._covariances(chosen, chosen)
        return [*(matrix + _JITTER * same for matrix in found), same]

    def _predicted(self, chosen: Integers) -> Floats:
        values: Floats = self._prior[self._units, chosen].sum(axis=1)
        return values

    def _mean(self, predicted: Floats) -> Floats:
        return self._scaled.centre + self._scaled.slope * predicted

    def _cell_variances(self) -> Floats:
        """Return the variance of what each unit really costs beyond its prediction."""
        relative = (self._prior / self._typical) ** 2
        variances: Floats = self.weights[2] * relative + self.weights[3]
        return variances / len(self._units)

    def _covariances(self, these: Integers, those: Integers) -> list[Floats]:
        """Return the covariance of two sets of plans under every term but the noise."""
        relative = ((self._prior / self._typical) ** 2).ravel()
        one, other = self._one_hot(these), self._one_hot(those)  # (n, n_units * n_options)
        alike = one @ other.T / len(self._units)
        as_predicted = one @ (other * relative).T / len(self._units)
        scale = np.outer(self._predicted(these), self._predicted(those)) / self._range**2
        return [
            np.ones(alike.shape),
            scale,
            as_predicted,
            alike,
            as_predicted**2,
            np.exp(-(1.0 - alike) / _LENGTH),
        ]

    def _one_hot(self, chosen: Integers) -> Floats:
        """Return which options plans have, ``(n, n_units * n_options)``."""
        picked: Floats = np.eye(self._prior.shape[1])[chosen]
        return picked.reshape(len(chosen), -1)

    def _own(self, chosen: Integers) -> list[Floats]:
        """Return the variance of every plan under every term but the noise."""
        relative = (self._prior / self._typical) ** 2
        as_predicted = relative[self._units, chosen].mean(axis=1)
        ones = np.ones(len(chosen))
        scale = (self._predicted(chosen) / self._range) ** 2
        return [ones, scale, as_predicted, ones, as_predicted**2, ones]

    def _fit(self, target: Floats) -> Floats:
        """Return the weights of greatest posterior density."""

        def cost(logs: Floats) -> tuple[float, Floats]:
            return _negative_evidence(np.asarray(logs), self._matrices, target)

        bounds = [(centre - _SPAN, centre + _SPAN) for centre in _CENTRES]
        found = minimize(cost, _CENTRES, jac=True, method="L-BFGS-B", bounds=bounds)
        weights: Floats = np.exp(np.asarray(found.x))
        return weights


def _scaled(predicted: Floats, badness: Floats) -> _Scaled:
    """Return centre, spread and slope of measured values.

    The slope is that of a line through the measured plans: another text, or an objective in
    another unit than nats, has another slope than 1, which two plans tell already.
    """
    dx, dy = predicted - predicted.mean(), badness - badness.mean()
    spread = float(dy.std()) or 1.0
    variance = float((dx**2).sum())
    slope = float((dx * dy).sum()) / variance if variance > 0.0 else 1.0
    slope = max(slope, 0.0)
    return _Scaled(float(badness.mean() - slope * predicted.mean()), spread, slope)


def _combined(weights: Floats, matrices: Sequence[Floats]) -> Floats:
    total: Floats = sum(
        (weight * matrix for weight, matrix in zip(weights, matrices, strict=True)),
        start=np.zeros_like(matrices[0]),
    )
    return total


def _negative_evidence(
    logs: Floats, matrices: Sequence[Floats], target: Floats
) -> tuple[float, Floats]:
    """Return the negative log posterior density of weights and its gradient by their logarithms
    (Rasmussen and Williams, equations 5.8 and 5.9).
    """
    weights = np.exp(logs)
    factor = cho_factor(_combined(weights, matrices), lower=True)
    pull = cho_solve(factor, target)
    inverse = cho_solve(factor, np.eye(len(target)))
    value = 0.5 * float(target @ pull) + float(np.log(np.diag(factor[0])).sum())
    slack = np.outer(pull, pull) - inverse
    gradient = np.array(
        [-0.5 * w * float((slack * m).sum()) for w, m in zip(weights, matrices, strict=True)]
    )
    away = (logs - _CENTRES) / _WIDTHS
    return value + 0.5 * float((away**2).sum()), gradient + away / _WIDTHS
