"""Laws of every importance criterion and layer signal of the catalogue."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import numpy as np
import pytest
import torch

from qpruner_core.catalog import CRITERIA
from qpruner_core.domain.spec import ImportanceSpec
from qpruner_core.importance import score

UNITS = [entry.name for entry in CRITERIA if entry.facts["scores"] == "units"]
LAYERS = [entry.name for entry in CRITERIA if entry.facts["scores"] == "layers"]
DATA_DRIVEN = [
    (entry.name, dict(zip((option.name for option in texts), chosen, strict=True)))
    for entry in CRITERIA
    if entry.name in UNITS and not entry.facts.get("takes_seed")
    for texts in [[option for option in entry.options if option.choices]]
    for chosen in itertools.product(*(option.choices for option in texts))
]
"""Unit criteria that look at the model, with every choice among texts that their options give."""


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(4, 128, (20, 16), generator=torch.Generator().manual_seed(1))


def measured(
    name: str,
    model: Any,
    layout: Any,
    ids: torch.Tensor,
    seed: int = 0,
    options: dict[str, Any] | None = None,
) -> Any:
    spec = ImportanceSpec(criteria=(name,), seed=seed, options={name: options or {}})
    scores = score(model, layout, ids, spec)
    return scores.unit_scores.get(name) or scores.layer_scores[name]


@pytest.mark.parametrize("name", CRITERIA.names())
def test_the_options_are_the_constructor_with_its_defaults(name):
    entry = CRITERIA.entry(name)
    parameters = dict(inspect.signature(CRITERIA.target(name)).parameters)
    seed = parameters.pop("seed", None)
    assert (seed is not None) == bool(entry.facts.get("takes_seed"))
    assert {option.name: option.default for option in entry.options} == {
        key: parameter.default for key, parameter in parameters.items()
    }


@pytest.mark.parametrize("name", CRITERIA.names())
def test_what_needs_gradients_does_not_stream(name):
    facts = CRITERIA.entry(name).facts
    assert facts["needs"] in ("weights", "gradients", "inputs", "activations")
    assert (facts["needs"] == "activations") == (name in LAYERS)
    assert not (facts["needs"] == "gradients" and facts["streams"])


@pytest.mark.parametrize("name", UNITS)
def test_unit_scores_are_finite_float32_of_every_unit(name, tiny_model, tiny_layout, ids):
    values = measured(name, tiny_model, tiny_layout, ids)
    assert list(values) == [group.name for group in tiny_layout.groups]
    for group in tiny_layout.groups:
        assert values[group.name].shape == (group.n_units,)
        assert values[group.name].dtype == np.float32
        assert np.isfinite(values[group.name]).all()
        assert (values[group.name] >= 0.0).all()
        assert np.unique(values[group.name]).size > 1


@pytest.mark.parametrize("name", LAYERS)
def test_layer_signals_are_finite_float32_of_every_layer(name, tiny_model, tiny_layout, ids):
    values = measured(name, tiny_model, tiny_layout, ids)
    assert values.shape == (tiny_layout.n_layers,)
    assert values.dtype == np.float32
    assert np.isfinite(values).all()
    assert (values >= 0.0).all()
    assert values.any()


@pytest.mark.parametrize("name", CRITERIA.names())
def test_the_same_seed_gives_the_same_scores(name, tiny_model, tiny_layout, ids):
    once, again = (measured(name, tiny_model, tiny_layout, ids, seed=3) for _ in range(2))
    if name in LAYERS:
        assert np.array_equal(once, again)
    else:
        assert all(np.array_equal(once[group], again[group]) for group in once)


@pytest.mark.parametrize(("name", "options"), DATA_DRIVEN)
def test_scores_move_with_their_units(name, options, tiny_model, tiny_layout, ids):
    tiny_model.double()
    before = measured(name, tiny_model, tiny_layout, ids, options=options)
    generator = torch.Generator().manual_seed(2)
    orders = {}
    with torch.no_grad():
        for group in tiny_layout.groups:
            order = torch.randperm(group.n_units, generator=generator)
            orders[group.name] = order.numpy()
            for part in group.slices:
                entries = order[:, None] * part.unit_size + torch.arange(part.unit_size)
                tensor = tiny_model.get_parameter(part.tensor)
                tensor.copy_(tensor.index_select(part.axis, entries.flatten()))
    after = measured(name, tiny_model, tiny_layout, ids, options=options)
    for group_name, order in orders.items():
        np.testing.assert_allclose(after[group_name], before[group_name][order], rtol=2e-4)


@pytest.mark.parametrize(("name", "options"), DATA_DRIVEN)
def test_a_unit_without_weights_is_worth_nothing(name, options, tiny_model, tiny_layout, ids):
    group = tiny_layout.group("model.layers.1.mlp")
    with torch.no_grad():
        for part in group.slices:
            tiny_model.get_parameter(part.tensor).select(part.axis, 5).zero_()
    values = measured(name, tiny_model, tiny_layout, ids, options=options)[group.name]
    assert values.argmin() == 5
    assert values[5] == 0.0


@pytest.mark.parametrize("name", CRITERIA.names())
def test_the_model_is_left_as_it_was_found(name, tiny_model, tiny_layout, ids):
    frozen = tiny_model.get_parameter("model.layers.0.mlp.up_proj.weight").requires_grad_(False)
    tiny_model.model.layers[1].train()
    weights = {key: value.clone() for key, value in tiny_model.state_dict().items()}
    modes = [module.training for module in tiny_model.modules()]
    flags = [parameter.requires_grad for parameter in tiny_model.parameters()]
    measured(name, tiny_model, tiny_layout, ids)
    assert not frozen.requires_grad
    assert [parameter.requires_grad for parameter in tiny_model.parameters()] == flags
    assert [module.training for module in tiny_model.modules()] == modes
    assert all(parameter.grad is None for parameter in tiny_model.parameters())
    assert all(torch.equal(value, weights[key]) for key, value in tiny_model.state_dict().items())
