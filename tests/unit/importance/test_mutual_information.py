"""The estimator on data whose information is known, and the bookkeeping around it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qpruner_core.importance.information import frequent_classes, standard_components
from qpruner_core.importance.mutual_information import MutualInformation

H = 12


def information(states: np.ndarray, tokens: np.ndarray, **options: int) -> float:
    """The signal of one layer whose states are given and whose prediction is the given token."""
    signal = MutualInformation(n_samples=len(states), **options)
    signal.begin(1, 1, len(states) + 1)
    with_sink = torch.as_tensor(np.concatenate([np.zeros((1, H)), states]))[None]
    one_hot = np.eye(int(tokens.max()) + 1)[np.concatenate([[0], tokens])]
    signal.see_layer(0, 0, with_sink, with_sink)
    signal.see_output(0, torch.as_tensor(one_hot)[None], lambda hidden: hidden)
    return float(signal.values()[0])


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_independent_states_hold_next_to_nothing(rng):
    assert information(rng.normal(size=(1000, H)), rng.integers(0, 2, 1000)) < 0.05


def test_a_state_that_tells_one_of_four_tokens_holds_the_log_of_four(rng):
    tokens = rng.integers(0, 4, 1000)
    states = rng.normal(size=(1000, H)) * 0.01
    states[:, 3] += tokens
    assert information(states, tokens, n_components=1) == pytest.approx(np.log(4), rel=0.1)


def test_a_gaussian_shift_holds_what_the_integral_says(rng):
    tokens = rng.integers(0, 2, 2000)
    column = rng.normal(size=2000) + 2.0 * tokens
    grid = np.linspace(-8, 10, 4001)
    density = [np.exp(-((grid - shift) ** 2) / 2) / np.sqrt(2 * np.pi) for shift in (0.0, 2.0)]
    mixed = (density[0] + density[1]) / 2
    exact = sum(np.trapezoid(d * np.log(d / mixed) / 2, grid) for d in density)
    states = np.tile(column[:, None], H)
    assert information(states, tokens, n_components=1) == pytest.approx(exact, abs=0.06)


def test_noise_on_the_states_takes_information_away(rng):
    tokens = rng.integers(0, 4, 800)
    clean = np.eye(4)[tokens] @ rng.normal(size=(4, H)) + 0.1 * rng.normal(size=(800, H))
    levels = [information(clean + s * rng.normal(size=(800, H)), tokens) for s in (0.0, 1.0, 5.0)]
    assert levels[0] > levels[1] > levels[2]


def test_the_information_of_a_layer_never_exceeds_the_entropy_of_the_prediction(rng):
    tokens = rng.integers(0, 4, 800)
    states = np.eye(4)[tokens] @ rng.normal(size=(4, H)) + 0.01 * rng.normal(size=(800, H))
    assert 0.5 * np.log(4) < information(states, tokens, n_components=3) <= 1.05 * np.log(4)


def test_a_prediction_that_never_changes_holds_nothing(rng):
    assert information(rng.normal(size=(100, H)), np.zeros(100, dtype=np.int64)) == 0.0


def test_components_are_standard_and_uncorrelated(rng):
    mixed = rng.normal(size=(500, H)) @ rng.normal(size=(H, H)) * 100
    components = standard_components(mixed, 4, seed=0)
    assert components.shape == (500, 4)
    np.testing.assert_allclose(np.cov(components.T), np.eye(4), atol=1e-8)


def test_fewer_components_come_back_when_there_are_fewer_samples(rng):
    assert standard_components(rng.normal(size=(3, H)), 8, seed=0).shape == (3, 2)


def test_rounding_noise_is_no_component(rng):
    plane = (rng.normal(size=(300, 2)) @ rng.normal(size=(2, H)) + 30).astype(np.float32)
    assert standard_components(plane, 8, seed=0).shape == (300, 2)


def test_states_that_are_all_equal_hold_nothing(rng):
    assert information(np.full((200, H), 0.1), rng.integers(0, 3, 200)) < 0.1


def test_rare_tokens_share_the_last_class():
    tokens = np.array([7] * 5 + [2] * 8 + [9, 4, 4, 11])
    classes = frequent_classes(tokens, least=2)
    assert set(classes[tokens == 2]) == {0}
    assert set(classes[tokens == 7]) == {1}
    assert set(classes[(tokens != 2) & (tokens != 7)]) == {2}
    assert set(frequent_classes(tokens, least=2, most_classes=1)) == {0, 1}


def test_positions_are_drawn_apart_from_the_first_of_every_sequence():
    signal = MutualInformation(n_samples=64, seed=5)
    signal.begin(1, 6, 9)
    taken = []
    for first in (0, 4):
        rows = min(4, 6 - first)
        # Every state holds its own sequence and token.
        index = torch.cartesian_prod(torch.arange(first, first + rows), torch.arange(9))
        hidden = index.reshape(rows, 9, 2).double()
        signal.see_output(first, hidden, lambda picked: taken.append(picked) or picked)
    positions = torch.cat(taken)
    assert len(positions) == len(positions.unique(dim=0)) == 6 * 8
    assert positions[:, 1].min() == 1
