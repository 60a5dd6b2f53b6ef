import pytest

from qpruner_core.domain.plan import PrecisionPlan, PruningPlan
from qpruner_core.errors import BadInputError


def test_a_plan_by_layer_gives_every_linear_its_layers_precision(tiny_layout):
    plan = PrecisionPlan.by_layer(tiny_layout, ["nf4", "int8"])
    assert {
        plan.precisions[linear.name] for linear in tiny_layout.linears if linear.layer == 1
    } == {"int8"}


def test_a_plan_by_layer_needs_one_precision_per_layer(tiny_layout):
    with pytest.raises(ValueError, match="need 2 precisions, got 1"):
        PrecisionPlan.by_layer(tiny_layout, ["nf4"])


def test_keys_are_equal_exactly_for_equal_plans(tiny_layout):
    one = PrecisionPlan.uniform(tiny_layout, "nf4")
    again = PrecisionPlan(precisions=dict(reversed(list(one.precisions.items()))))
    assert one.key == again.key
    assert one.key != PrecisionPlan.uniform(tiny_layout, "int8").key


def test_a_pruning_plan_that_empties_a_group_is_refused():
    with pytest.raises(BadInputError, match=r"leaves no unit in 'model\.layers\.0\.mlp'"):
        PruningPlan(kept={"model.layers.0.mlp": ()})


@pytest.mark.parametrize("kept", [(1, 0), (0, 0), (-1, 2)])
def test_kept_units_are_ascending_indices(kept):
    with pytest.raises(ValueError, match="ascending"):
        PruningPlan(kept={"model.layers.0.mlp": kept})


def test_a_plan_without_groups_is_the_identity():
    assert PruningPlan(kept={}).is_identity
