"""Ladders of widths and protected layers, written down."""

from __future__ import annotations

import pytest
from shapes_to_prune import experts, model

from qpruner_core.domain.spec import PruningSpec
from qpruner_core.pruning.selection import protected_layers
from qpruner_core.pruning.widths import fitting_multiple, group_ladder, least_units, width_ladder


@pytest.mark.parametrize(
    ("width", "multiple", "fitting"),
    [(512, 64, 64), (256, 64, 64), (255, 64, 32), (128, 64, 32), (3, 64, 1), (1, 1, 1)],
)
def test_a_multiple_fits_when_four_of_them_fit_the_width(width, multiple, fitting):
    assert fitting_multiple(width, multiple) == fitting


@pytest.mark.parametrize(
    ("width", "multiple", "ladder"),
    [
        (200, 48, [200, 192, 144, 96, 48, 32, 16, 8, 4, 2, 1]),
        (4, 1, [4, 3, 2, 1]),
        (1, 1, [1]),
        (1, 64, [1]),
    ],
)
def test_a_ladder_has_multiples_and_then_powers_of_two(width, multiple, ladder):
    assert width_ladder(width, multiple).tolist() == ladder


def test_a_ladder_that_is_shared_cannot_be_written():
    with pytest.raises(ValueError, match="read-only"):
        width_ladder(64, 8)[0] = 3


def test_uniform_ladders_of_heads_hold_what_a_stock_config_accepts():
    layout = model(hidden_size=256)
    heads = layout.groups[0]
    uniform = PruningSpec(shape="uniform")
    assert group_ladder(layout, heads, uniform).tolist() == [4, 2, 1]  # 6 do not divide 256
    assert group_ladder(layout, heads, PruningSpec()).tolist() == [4, 3, 2, 1]


def test_as_many_experts_stay_as_a_token_asks_for():
    layout = experts()
    group = next(group for group in layout.groups if group.kind == "experts")
    assert least_units(layout, group) == 2
    assert group_ladder(layout, group, PruningSpec()).tolist() == [4, 3, 2]
    assert least_units(layout, layout.groups[0]) == 1


@pytest.mark.parametrize(
    ("n_layers", "protected"),
    [
        (1, set()),
        (2, set()),
        (3, {0}),
        (12, {0, 1, 11}),
        (20, {0, 1, 2, 3, 18, 19}),
        (32, {0, 1, 2, 3, 30, 31}),
    ],
)
def test_first_and_last_layers_are_protected_in_proportion(n_layers, protected):
    assert protected_layers(n_layers, PruningSpec()) == protected


def test_by_default_at_least_half_of_the_layers_stay_prunable():
    assert all(2 * len(protected_layers(n, PruningSpec())) <= n for n in range(1, 200))


def test_protection_asked_for_is_taken_as_it_is():
    assert protected_layers(4, PruningSpec(protect_first=3, protect_last=0)) == {0, 1, 2}
