"""What the entries make of states and logits, and the stability of their rankings."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qpruner_core.catalog import CRITERIA, check_spec
from qpruner_core.domain.record import RunRecord
from qpruner_core.domain.spec import ImportanceSpec, ModelSpec, RunSpec, SearchSpec
from qpruner_core.errors import BadInputError, UnknownNameError
from qpruner_core.importance import layer_signal, measured_signal
from qpruner_core.importance.mutual_information_binned import BinnedInformation, equal_cells
from qpruner_core.importance.mutual_information_gaussian import (
    GaussianInformation,
    gaussian_information,
)
from qpruner_core.importance.stability import half_agreement, rank_correlation

INFORMATION = [name for name in CRITERIA.names() if name.startswith("mutual_information")]
H, V = 6, 20


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(4, 128, (20, 16), generator=torch.Generator().manual_seed(1))


def shown(signal, layers: list[np.ndarray], logits: np.ndarray, n_batches: int = 1):
    """A signal that saw layers of given states (n, H) with given logits (n, V), one sequence per
    micro-batch."""
    per = len(logits) // n_batches
    signal.begin(len(layers), n_batches, per + 1)
    for batch in range(n_batches):
        part = slice(batch * per, (batch + 1) * per)

        def with_sink(values: np.ndarray, part: slice = part) -> torch.Tensor:
            padded = np.concatenate([np.zeros((1, values.shape[1])), values[part]])
            return torch.as_tensor(padded)[None]

        for index, states in enumerate(layers):
            signal.see_layer(index, batch, with_sink(states), with_sink(states))
        signal.see_output(batch, with_sink(logits), lambda hidden: hidden)
    return signal


def noisy_layers(rng: np.random.Generator, source: np.ndarray) -> list[np.ndarray]:
    """Layers that know less and less of what the prediction is made of."""
    return [source + s * rng.normal(size=source.shape) for s in (0.3, 1.0, 3.0, 10.0)]


@pytest.mark.parametrize("name", INFORMATION)
def test_layers_that_know_more_of_the_prediction_come_first(name, rng):
    source = rng.normal(size=(900, 2))
    logits = source @ rng.normal(size=(2, V))
    signal = shown(CRITERIA.target(name)(n_samples=900, seed=1), noisy_layers(rng, source), logits)
    values = signal.values()
    assert values.dtype == np.float32
    assert list(np.argsort(-values)) == [0, 1, 2, 3]
    assert signal.stability() > 0.8


@pytest.mark.parametrize("name", INFORMATION)
def test_layers_that_know_nothing_have_no_stable_ranking(name, rng):
    layers = [rng.normal(size=(600, 3)) for _ in range(12)]
    signal = shown(CRITERIA.target(name)(n_samples=600), layers, rng.normal(size=(600, V)))
    assert signal.values().max() < 0.25
    assert abs(signal.stability(30)) < 0.4


@pytest.mark.parametrize("name", INFORMATION)
def test_micro_batches_add_up_to_the_whole(name, rng):
    source = rng.normal(size=(400, 2))
    logits = source @ rng.normal(size=(2, V))
    layers = noisy_layers(rng, source)
    signal = CRITERIA.target(name)(n_samples=300)
    parts = shown(signal, layers, logits, n_batches=8).values()
    # The same object begins again; positions are others, as sequences have another length.
    whole = shown(signal, layers, logits, n_batches=1).values()
    np.testing.assert_allclose(parts, whole, atol=0.35)
    again = shown(CRITERIA.target(name)(n_samples=300), layers, logits, n_batches=8).values()
    assert np.array_equal(parts, again)


def test_the_gaussian_prediction_takes_no_notice_of_a_shift_of_all_logits(rng):
    source = rng.normal(size=(400, 2))
    logits = source @ rng.normal(size=(2, V))
    shifted = logits + 100 * rng.normal(size=(400, 1))
    layers = noisy_layers(rng, source)[:1]
    one, other = (
        shown(GaussianInformation(n_samples=400), layers, each).values()
        for each in (logits, shifted)
    )
    np.testing.assert_allclose(one, other, rtol=1e-3)


def test_the_gaussian_sketch_holds_what_all_log_probabilities_hold(rng):
    source = rng.normal(size=(800, 3))
    logits = source @ rng.normal(size=(3, 500)) + 0.1 * rng.normal(size=(800, 500))
    layer = source + rng.normal(size=source.shape)
    signal = GaussianInformation(n_components=3, n_outputs=3, n_samples=800)
    found = float(shown(signal, [layer], logits).values()[0])
    centred = logits - logits.mean(axis=1, keepdims=True)
    left, sizes, _ = np.linalg.svd(centred - centred.mean(axis=0), full_matrices=False)
    expected = gaussian_information(layer, left[:, :3] * sizes[:3])
    assert found == pytest.approx(expected, rel=0.02)


def test_few_positions_take_fewer_gaussian_columns(rng):
    few = shown(
        GaussianInformation(), [rng.normal(size=(12, H))] * 2, rng.normal(size=(12, V))
    ).values()
    assert np.isfinite(few).all()
    assert few.max() < 1.5  # sixteen columns would explain twelve samples altogether


def test_samples_too_few_for_one_column_tell_nothing_of_gaussians(rng):
    signal = shown(GaussianInformation(), [rng.normal(size=(7, H))] * 2, rng.normal(size=(7, V)))
    assert np.isfinite(signal.values()).all()
    assert signal.stability() == 0.0  # halves of three samples


def test_columns_that_repeat_others_add_nothing_to_the_gaussian_form(rng):
    x = rng.normal(size=(300, 2))
    y = x[:, :1] + rng.normal(size=(300, 1))
    repeated = np.hstack([x, x @ rng.normal(size=(2, 3)), np.full((300, 1), 5.0)])
    assert gaussian_information(repeated, y) == pytest.approx(gaussian_information(x, y))


def test_a_constant_holds_nothing_and_a_copy_a_finite_amount(rng):
    x = rng.normal(size=(100, 1))
    assert gaussian_information(np.full((100, 1), 3.3), x) == 0.0
    assert 10.0 < gaussian_information(x, 2 * x) < 15.0


def test_too_few_samples_for_the_columns_are_refused(rng):
    with pytest.raises(ValueError, match="more than 7 samples, got 7"):
        gaussian_information(rng.normal(size=(7, 3)), rng.normal(size=(7, 3)))


def test_bins_hold_equal_numbers_and_equal_values_share_one(rng):
    cells = equal_cells(rng.normal(size=(120, 2)), 4)
    assert cells.max() == 15
    assert np.bincount(equal_cells(rng.normal(size=(120, 1)), 4)).tolist() == [30] * 4
    assert len(np.unique(equal_cells(np.repeat([[1.0], [2.0]], 50, axis=0), 4))) == 2


def test_a_prediction_that_never_changes_holds_nothing_in_bins(rng):
    logits = np.zeros((200, V))
    assert shown(BinnedInformation(), [rng.normal(size=(200, H))], logits).values()[0] == 0.0


def test_rank_correlation_is_that_of_spearman():
    rising = np.array([1.0, 2.0, 9.0])
    assert rank_correlation(rising, np.array([0.1, 0.2, 0.3])) == pytest.approx(1.0)
    assert rank_correlation(rising, np.array([3.0, 2.0, 1.0])) == pytest.approx(-1.0)
    # ranks 1.5, 1.5, 3 against 1, 2, 3
    tied = rank_correlation(np.array([1.0, 1.0, 2.0]), np.array([1.0, 2.0, 3.0]))
    assert tied == pytest.approx(np.corrcoef([1.5, 1.5, 3], [1, 2, 3])[0, 1])
    assert rank_correlation(np.ones(3), np.arange(3.0)) == 0.0


def test_halves_share_no_sample_and_hold_all():
    seen: list[np.ndarray] = []

    def estimate(samples: np.ndarray) -> np.ndarray:
        seen.append(samples)
        return np.array([1.0, 2.0, 3.0])

    assert half_agreement(estimate, 10, 3, seed=0) == pytest.approx(1.0)
    assert len(seen) == 6
    for one, other in zip(seen[::2], seen[1::2], strict=True):
        assert sorted([*one, *other]) == list(range(10))
    assert not np.array_equal(seen[0], seen[2])


def test_one_layer_or_three_samples_have_no_ranking_to_speak_of():
    assert half_agreement(lambda _: np.ones(1), 10, 3, seed=0) is None
    assert half_agreement(lambda _: np.ones(4), 3, 3, seed=0) is None


@pytest.mark.parametrize("name", INFORMATION)
def test_the_signal_of_a_model_comes_with_its_stability(name, tiny_model, tiny_layout, ids):
    options = {"n_samples": 256}
    found = measured_signal(name, tiny_model, tiny_layout, ids, options, seed=2)
    alone = layer_signal(name, tiny_model, tiny_layout, ids, options, seed=2)
    assert np.array_equal(found.values, alone)
    assert found.stability is not None
    assert -1.0 <= found.stability <= 1.0


def test_a_signal_without_positions_has_no_stability(tiny_model, tiny_layout, ids):
    assert measured_signal("block_influence", tiny_model, tiny_layout, ids).stability is None


def test_a_unit_criterion_is_refused_as_information(tiny_model, tiny_layout, ids):
    with pytest.raises(BadInputError, match="mutual_information_gaussian, block_influence"):
        measured_signal("taylor", tiny_model, tiny_layout, ids)


def asked(information: str, **options: int) -> RunSpec:
    return RunSpec(
        model=ModelSpec(source="demo"),
        importance=ImportanceSpec(options={information: options}),
        search=SearchSpec(information=information),
    )


def test_a_spec_may_ask_for_any_layer_signal_with_its_options():
    check_spec(asked("mutual_information_binned", n_bins=4))
    check_spec(asked("block_influence"))
    with pytest.raises(BadInputError, match="scores units"):
        check_spec(asked("wanda"))
    with pytest.raises(UnknownNameError, match="mutual_information"):
        check_spec(asked("mutual_informatoin"))
    with pytest.raises(BadInputError, match="n_bins"):
        check_spec(asked("mutual_information_binned", n_bins=1))


def test_only_another_information_gives_a_study_another_name():
    def name(spec: RunSpec) -> str:
        return RunRecord(run_id="r", created_at="2026-01-01T00:00:00Z", spec=spec).study_name

    plain = name(RunSpec(model=ModelSpec(source="demo")))
    assert name(asked("mutual_information")) == plain
    assert name(asked("mutual_information_gaussian")) != plain
