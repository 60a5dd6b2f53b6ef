"""The surrogate against reference computations, and what it learns from measured plans."""

from __future__ import annotations

import numpy as np
import pytest

from qpruner_core.search.surrogate import TERMS, Surrogate


def _problem(n_units=6, n_plans=25, seed=0, pairs=0.0):
    """Costs that differ from the prior, plans, and what they are worth."""
    rng = np.random.default_rng(seed)
    prior = np.stack([rng.gamma(2.0, 0.02, n_units), np.zeros(n_units)], axis=1)
    truth = prior * rng.uniform(0.3, 2.0, (n_units, 1))
    chosen = rng.integers(2, size=(n_plans, n_units))

    def worth(options):
        parts = truth[np.arange(n_units), options]
        return 1.5 + parts.sum(axis=1) + pairs * (parts[:, 1:] * parts[:, :-1]).sum(axis=1)

    return prior, truth, chosen, worth


def _differences(costs):
    return costs[:, 0] - costs[:, 1]


def test_additive_costs_are_found_however_far_the_prediction_was_off():
    prior, truth, chosen, worth = _problem()
    found = Surrogate(prior, chosen, worth(chosen)).costs()
    assert np.abs(_differences(found) - _differences(truth)).max() < 0.1 * truth.max()
    assert np.abs(_differences(prior) - _differences(truth)).max() > 0.5 * truth.max()


def test_plans_that_were_not_measured_are_predicted_within_the_stated_uncertainty():
    prior, _, chosen, worth = _problem(pairs=5.0, n_plans=30)
    surrogate = Surrogate(prior, chosen, worth(chosen))
    others = np.array([[int(bit) for bit in f"{i:06b}"] for i in range(64)])
    mean, deviation = surrogate.predict(others)
    errors = np.abs(mean - worth(others))
    assert errors.max() < 0.1 * np.ptp(worth(others))
    assert (errors <= 4.0 * deviation + 1e-4).mean() > 0.95


def test_pair_terms_carry_what_an_additive_model_cannot():
    prior, _, chosen, worth = _problem(pairs=40.0, n_plans=40)
    surrogate = Surrogate(prior, chosen, worth(chosen))
    others = np.array([[int(bit) for bit in f"{i:06b}"] for i in range(64)])
    mean, _ = surrogate.predict(others)
    features = np.column_stack([np.ones(len(chosen)), chosen])
    fitted, *_ = np.linalg.lstsq(features, worth(chosen), rcond=None)
    additive = np.column_stack([np.ones(64), others]) @ fitted
    assert np.abs(mean - worth(others)).max() < 0.5 * np.abs(additive - worth(others)).max()


def test_the_linear_part_is_the_posterior_mean_of_the_weights_it_stands_for():
    """Against weight space: a Gaussian on every cell and the same covariance for all else."""
    prior, _, chosen, worth = _problem(n_units=4, n_plans=12)
    surrogate = Surrogate(prior, chosen, worth(chosen))
    weights = dict(zip(TERMS, surrogate.weights, strict=True))
    n_units = len(prior)
    relative = (prior / np.ptp(prior, axis=1).mean()) ** 2
    cells = np.eye(2)[chosen].reshape(len(chosen), -1)
    variances = (weights["units, as predicted"] * relative + weights["units, alike"]) / n_units
    alike = (chosen[:, None, :] == chosen[None, :, :]).mean(axis=2)
    as_predicted = (
        (chosen[:, None, :] == chosen[None, :, :]) * relative[np.arange(n_units), chosen]
    ).mean(axis=2)
    predicted = prior[np.arange(n_units), chosen].sum(axis=1)
    span = np.ptp(prior, axis=1).sum()
    covariance = (
        weights["offset"]
        + weights["scale"] * np.outer(predicted, predicted) / span**2
        + cells @ np.diag(variances.ravel()) @ cells.T
        + weights["pairs"] * as_predicted**2
        + weights["rest"] * np.exp(-(1.0 - alike) / 0.25)
        + weights["noise"] * np.eye(len(chosen))
    )
    values = worth(chosen)
    slope = np.polyfit(predicted, values, 1)[0]
    spread = values.std()
    target = (values - values.mean() - slope * (predicted - predicted.mean())) / spread
    pull = np.linalg.solve(covariance, target)
    own = spread * variances * (cells.T @ pull).reshape(prior.shape)
    scale = slope + spread * weights["scale"] * (pull @ predicted) / span**2
    np.testing.assert_allclose(surrogate.costs(), scale * prior + own, rtol=1e-4, atol=1e-6)


def test_draws_scatter_about_the_expected_costs():
    prior, _, chosen, worth = _problem(n_plans=8)
    surrogate = Surrogate(prior, chosen, worth(chosen))
    rng = np.random.default_rng(1)
    drawn = np.array([_differences(surrogate.sampled_costs(rng)) for _ in range(400)])
    error = drawn.std(axis=0) / np.sqrt(len(drawn))
    assert (drawn.std(axis=0) > 0).all()
    assert (np.abs(drawn.mean(axis=0) - _differences(surrogate.costs())) < 4.5 * error).all()


def test_plans_under_way_are_believed_to_be_what_is_expected_and_are_no_longer_uncertain():
    prior, _, chosen, worth = _problem(n_plans=8)
    surrogate = Surrogate(prior, chosen, worth(chosen))
    pending = np.array([[1, 0, 1, 0, 1, 0]])
    before, unsure = surrogate.predict(pending)
    after, sure = surrogate.believing(pending).predict(pending)
    np.testing.assert_allclose(after, before, atol=1e-6)
    assert sure[0] < 0.5 * unsure[0]
    assert surrogate.believing(pending[:0]) is surrogate


def test_an_objective_in_other_units_is_predicted_in_them():
    prior, truth, chosen, worth = _problem()
    accuracy = -1.0 + 12.0 * worth(chosen)
    found = Surrogate(prior, chosen, accuracy).costs()
    np.testing.assert_allclose(
        _differences(found), 12.0 * _differences(truth), atol=1.2 * truth.max()
    )


@pytest.mark.parametrize("value", [0.0, 2.5])
def test_plans_that_are_all_alike_teach_nothing_and_break_nothing(value):
    prior, _, chosen, _ = _problem(n_plans=4)
    surrogate = Surrogate(np.zeros_like(prior), chosen, np.full(4, value))
    mean, deviation = surrogate.predict(chosen)
    np.testing.assert_allclose(mean, value, atol=1e-6)
    assert np.isfinite(deviation).all()


@pytest.mark.parametrize("apart", [1e-2, 1e-4, 1e-6, 0.0])
def test_options_that_are_predicted_nearly_alike_are_no_trouble(apart):
    rng = np.random.default_rng(1)
    base = rng.uniform(0.01, 0.05, (12, 1))
    prior = np.hstack([base, base * (1.0 + apart)])
    chosen = rng.integers(0, 2, (30, 12))
    badness = prior[np.arange(12), chosen].sum(axis=1) + rng.normal(0.0, 1e-4, 30)
    surrogate = Surrogate(prior, chosen, badness)
    assert np.isfinite(surrogate.sampled_costs(rng)).all()
    assert all(np.isfinite(part).all() for part in surrogate.predict(chosen))
