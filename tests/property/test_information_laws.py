"""The estimators of mutual information against closed forms, within the error each one states."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qpruner_core.importance.mutual_information import (
    neighbour_error,
    neighbour_information,
    neighbour_information_of_classes,
)
from qpruner_core.importance.mutual_information_binned import (
    counted_error,
    counted_information,
    equal_cells,
)
from qpruner_core.importance.mutual_information_gaussian import (
    gaussian_error,
    gaussian_information,
)

Pair = tuple[np.ndarray, np.ndarray]

seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(500, 1500)
correlations = st.lists(st.floats(-0.9, 0.9), min_size=1, max_size=4)


def gaussians(rhos: list[float], n: int, seed: int) -> Pair:
    """Two Gaussian variables of as many columns, the i-th of each correlated by rhos[i]."""
    rng = np.random.default_rng(seed)
    rho = np.array(rhos)
    x = rng.normal(size=(n, len(rho)))
    return x, rho * x + np.sqrt(1 - rho**2) * rng.normal(size=x.shape)


def closed_form(rhos: list[float]) -> float:
    return float(-0.5 * np.log(1 - np.square(rhos)).sum())


def determinant_form(covariance: np.ndarray, d: int) -> float:
    """1/2 log(det S_x det S_y / det S) of the covariance of x and y side by side."""
    parts = (covariance[:d, :d], covariance[d:, d:], covariance)
    one, other, both = (np.linalg.slogdet(part)[1] for part in parts)
    return float((one + other - both) / 2)


@given(correlations, sizes, seeds)
@settings(max_examples=40)
def test_neighbours_find_the_information_of_gaussians(rhos, n, seed):
    x, y = gaussians(rhos, n, seed)
    found, exact = neighbour_information(x, y), closed_form(rhos)
    assert found <= exact + neighbour_error(0.0, n, 2)
    assert found >= exact - neighbour_error(exact, n, 2 * len(rhos))


@given(st.floats(-0.93, 0.93), sizes, st.integers(8, 15), seeds)
@settings(max_examples=40)
def test_bins_find_the_information_of_two_gaussian_columns(rho, n, n_bins, seed):
    x, y = gaussians([rho], n, seed)
    found = counted_information(equal_cells(x, n_bins), equal_cells(y, n_bins))
    exact = closed_form([rho])
    assert found <= exact + counted_error(0.0, n, n_bins)
    assert found >= exact - counted_error(exact, n, n_bins)


@given(st.lists(st.floats(-0.999, 0.999), min_size=1, max_size=6), sizes, seeds)
def test_the_gaussian_form_finds_the_information_of_gaussians(rhos, n, seed):
    x, y = gaussians(rhos, n, seed)
    error = gaussian_error(np.array(rhos), n, (len(rhos), len(rhos)))
    assert gaussian_information(x, y) == pytest.approx(closed_form(rhos), abs=error)


@given(st.integers(1, 4), st.integers(1, 4), sizes, seeds)
def test_the_gaussian_form_is_right_for_any_covariance(d, e, n, seed):
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(d + e, d + e)) + 2 * np.eye(d + e)
    samples = rng.normal(size=(n, d + e)) @ mixing
    exact = determinant_form(mixing.T @ mixing, d)
    error = gaussian_error(np.ones(min(d, e)), n, (d, e))
    assert gaussian_information(samples[:, :d], samples[:, d:]) == pytest.approx(exact, abs=error)


@given(correlations, sizes, seeds)
def test_the_gaussian_form_does_not_change_under_invertible_linear_maps(rhos, n, seed):
    x, y = gaussians(rhos, n, seed)
    rng = np.random.default_rng(seed)
    before = gaussian_information(x, y)
    for _ in range(2):
        turned, _ = np.linalg.qr(rng.normal(size=(len(rhos), len(rhos))))
        stretched = turned * 10.0 ** rng.uniform(-3, 3, len(rhos)) @ turned.T
        shift = rng.normal(size=len(rhos))
        assert gaussian_information(x @ stretched + shift, y) == pytest.approx(before, abs=1e-8)
        assert gaussian_information(x, y @ stretched + shift) == pytest.approx(before, abs=1e-8)


@given(st.integers(1, 4), st.integers(1, 4), sizes, seeds)
@settings(max_examples=40)
def test_independent_variables_hold_nothing(d, e, n, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, d)), rng.standard_t(5, size=(n, e))
    classes = rng.integers(0, 2 + 4 * e, n)
    assert abs(neighbour_information(x, y)) <= neighbour_error(0.0, n, d + e)
    assert abs(neighbour_information_of_classes(x, classes)) <= 5 / n**0.5
    assert abs(counted_information(equal_cells(x[:, :1], 8), classes)) <= counted_error(0.0, n, 8)
    uniform = rng.uniform(size=(n, e))  # the null distribution needs moments alone
    assert abs(gaussian_information(x, uniform)) <= gaussian_error(np.zeros(1), n, (d, e))


@given(st.integers(2, 12), sizes, seeds)
@settings(max_examples=40)
def test_a_variable_that_decides_the_other_holds_its_entropy(n_classes, n, seed):
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, n_classes, n)
    shares = np.bincount(classes) / n
    entropy = float(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())
    assert counted_information(classes, rng.permutation(n_classes)[classes]) == pytest.approx(
        entropy
    )
    apart = classes[:, None] + 0.01 * rng.normal(size=(n, 2))
    assert neighbour_information_of_classes(apart, classes) == pytest.approx(entropy, abs=0.02)


@given(correlations, seeds)
@settings(max_examples=30)
def test_bins_do_not_change_under_growing_functions_of_a_column(rhos, seed):
    x, _ = gaussians(rhos, 300, seed)
    assert np.array_equal(equal_cells(x, 5), equal_cells(np.exp(3 * x) - 7, 5))


def test_the_gaussian_form_is_right_on_average():
    rhos = [0.5, 0.2, 0.0]
    found = [gaussian_information(*gaussians(rhos, 40, seed)) for seed in range(4000)]
    spread = np.std(found) / len(found) ** 0.5
    assert np.mean(found) == pytest.approx(closed_form(rhos), abs=4 * spread)


def test_chance_adds_nothing_to_counts_on_average():
    rng = np.random.default_rng(0)
    found = [
        counted_information(rng.integers(0, 8, 60), rng.integers(0, 8, 60)) for _ in range(500)
    ]
    spread = np.std(found) / len(found) ** 0.5
    assert np.mean(found) == pytest.approx(0.0, abs=4 * spread)
