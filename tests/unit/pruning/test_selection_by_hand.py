"""Ratios by hand, whole layers, and rounds: what is settled before the ratio has its say."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from shapes_to_prune import STEP, model, rising, share_removed

from qpruner_core.domain.plan import PruningPlan
from qpruner_core.domain.spec import PruningSpec
from qpruner_core.errors import BadInputError, InfeasibleRatioError, NotReadyError
from qpruner_core.pruning.selection import largest_ratio, select

layerwise = partial(PruningSpec, scope="per-layer")


SIZE = model().layer_parameters[0]


def lost(before, after):
    """Steps that every layer loses."""
    pairs = zip(before.layer_parameters, after.layer_parameters, strict=True)
    return [(whole - left) // STEP for whole, left in pairs]


@pytest.mark.parametrize("scope", ["per-layer", "global", "balanced", "standardised"])
def test_a_layer_loses_what_is_asked_by_hand_and_the_others_make_up_the_rest(scope):
    layout = model()
    spec = PruningSpec(ratio=0.2, scope=scope, layer_ratios={"5": 0.5, "6": 0.0})
    selection = select(layout, rising(layout), spec)
    steps = lost(layout, selection.layout)
    assert (steps[5], steps[6]) == (6, 0)
    assert share_removed(layout, selection.layout) == pytest.approx(0.2, abs=0.004)
    assert selection.warnings == ()


def test_a_ratio_by_hand_outranks_protection_and_it_says_so():
    layout = model()
    spec = layerwise(ratio=0.2, layer_ratios={"0": 0.25, "11": 0.5})
    selection = select(layout, None, spec)
    steps = lost(layout, selection.layout)
    assert (steps[0], steps[1], steps[11], sum(steps)) == (3, 0, 6, 29)
    assert selection.warnings == (
        "Ratios by hand outrank protection, so layers 0, 11 lose units although protected.",
    )


def test_when_every_layer_has_its_ratio_by_hand_the_ratio_has_no_say():
    layout = model()
    by_hand = {str(layer): 0.25 for layer in range(2, 11)}
    selection = select(layout, None, layerwise(ratio=0.6, layer_ratios=by_hand))
    assert lost(layout, selection.layout) == [0, 0, *[3] * 9, 0]
    assert selection.warnings == (
        "The ratios by hand decide all that can leave; the ratio of 0.6 has no say.",
    )


def test_a_ratio_that_the_ratios_by_hand_rule_out_is_refused_with_what_can_be_reached():
    layout = model()
    by_hand = {str(layer): 0.75 for layer in range(2, 8)}
    spec = layerwise(ratio=0.2, layer_ratios=by_hand)
    with pytest.raises(InfeasibleRatioError, match=r"only 0\.375 to 0\.6\d+ can be reached"):
        select(layout, None, spec)
    largest = largest_ratio(layout, spec)
    for ratio in (0.375, np.floor(largest * 1e4) / 1e4):
        spec = layerwise(ratio=ratio, layer_ratios=by_hand)
        assert share_removed(layout, select(layout, None, spec).layout) == pytest.approx(
            ratio, abs=0.005
        )


def test_more_by_hand_than_a_layer_can_lose_is_refused_with_what_it_can():
    with pytest.raises(InfeasibleRatioError, match=r"0\.99 for layer 4 \(at most 0\.914\d\)"):
        select(model(), None, layerwise(layer_ratios={"4": 0.99, "3": 0.1}))


def test_a_ratio_by_hand_for_a_layer_that_is_not_there_is_refused():
    with pytest.raises(
        BadInputError, match="name the layers 12, but the model has layers 0 to 11"
    ):
        select(model(), None, layerwise(layer_ratios={"12": 0.1}))


def test_the_least_influential_layers_leave_whole_and_count_towards_the_ratio():
    layout = model()
    influence = [0, 0, 5, 1, 5, 5, 2, 5, 5, 5, 5, 0]
    spec = layerwise(ratio=0.3, drop_layers=2)
    selection = select(layout, rising(layout), spec, layer_scores=influence)
    assert selection.plan.dropped_layers == (3, 6)  # 0, 1 and 11 are protected
    assert selection.layout.n_layers == 10
    assert share_removed(layout, selection.layout) == pytest.approx(0.3, abs=0.005)
    assert selection.warnings == ()


def test_without_scores_the_last_unprotected_layers_leave():
    plan = select(model(), None, layerwise(ratio=0.3, drop_layers=2)).plan
    assert plan.dropped_layers == (9, 10)


def test_when_dropped_layers_hold_more_than_the_ratio_nothing_else_leaves_and_it_says_so():
    selection = select(model(), None, layerwise(ratio=0.1, drop_layers=3))
    assert selection.plan == PruningPlan(kept={}, dropped_layers=(8, 9, 10))
    assert selection.warnings == (
        "25.0% of the parameters of the layers leave rather than 10.0%, as the dropped layers "
        "alone take that much; nothing else leaves.",
    )


def test_when_dropped_layers_and_ratios_by_hand_take_more_than_the_ratio_it_says_so():
    spec = layerwise(ratio=0.18, drop_layers=2, layer_ratios={"5": 0.5, "6": 0.0})
    selection = select(model(), None, spec)
    assert selection.plan.dropped_layers == (9, 10)
    assert selection.warnings == (
        "20.8% of the parameters of the layers leave rather than 18.0%, as the dropped layers "
        "and the ratios by hand alone take that much; nothing else leaves.",
    )
    # Where others lose units too, it is rounding.
    few = model(num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
    spec = layerwise(ratio=0.4, kinds=("mlp_channels",), width_multiple=128)
    by_hand = replace(spec, layer_ratios={"1": 0.2})
    assert "nearest" in select(few, None, by_hand).warnings[0]


def test_with_no_kind_of_unit_only_layers_leave_and_the_ratio_has_no_say():
    selection = select(model(), None, layerwise(ratio=0.2, kinds=(), drop_layers=1))
    assert selection.plan == PruningPlan(kept={}, dropped_layers=(10,))
    assert selection.warnings == (
        "The number of layers to drop decides all that can leave; the ratio of 0.2 has no say.",
    )


def test_layers_by_hand_are_not_dropped():
    spec = layerwise(ratio=0.3, drop_layers=2, layer_ratios={"10": 0.1})
    assert select(model(), None, spec).plan.dropped_layers == (8, 9)


def test_more_layers_than_can_leave_are_refused_with_how_many_can():
    with pytest.raises(InfeasibleRatioError, match="at most 9 of 12 can be"):
        select(model(), None, layerwise(drop_layers=10))
    bare = layerwise(drop_layers=12, protect_first=0, protect_last=0)
    with pytest.raises(InfeasibleRatioError, match="at most 11 of 12 can be"):
        select(model(), None, bare)


def test_dropping_by_scores_needs_those_of_the_layers():
    layout = model()
    spec = layerwise(drop_layers=1)
    with pytest.raises(NotReadyError, match="block_influence"):
        select(layout, rising(layout), spec)
    with pytest.raises(BadInputError, match="one finite number for each of 12 layers"):
        select(layout, rising(layout), spec, layer_scores=[0.5] * 11)
    with pytest.raises(BadInputError, match="finite"):
        select(layout, rising(layout), spec, layer_scores=[np.nan] * 12)


def test_a_later_round_takes_what_an_earlier_one_took_and_chooses_the_rest_anew():
    layout = model(num_hidden_layers=1)
    first = select(layout, rising(layout), layerwise(ratio=0.25)).plan
    assert first.kept["model.layers.0.mlp"] == tuple(range(128, 512))
    # Scored again, what is left ranks the other way round.
    anew = {name: values[::-1].copy() for name, values in rising(layout).items()}
    anew["model.layers.0.mlp"][:128] = np.inf
    second = select(layout, anew, layerwise(ratio=0.5), removed=first).plan
    assert second.kept["model.layers.0.self_attn"] == (1, 2)
    assert second.kept["model.layers.0.mlp"] == tuple(range(128, 384))


def test_what_left_before_does_not_disturb_the_balance():
    layout = model(num_hidden_layers=1, intermediate_size=8)
    heads, channels = layout.groups
    removed = PruningPlan(kept={channels.name: (4, 5, 6, 7)})
    scores = {
        heads.name: np.array([0, 10, 10, 10], np.float32),  # the first at -1.7 deviations
        channels.name: np.array([0, 0, 0, 0, 9.6, 9.7, 9.8, 9.9], np.float32),  # left: -1.3
    }
    gone = 4 * channels.unit_parameters + heads.unit_parameters
    spec = PruningSpec(ratio=gone / layout.layer_parameters[0], scope="standardised")
    plan = select(layout, scores, spec, removed=removed).plan
    assert plan.kept == {heads.name: (1, 2, 3), channels.name: (4, 5, 6, 7)}


def test_layers_that_left_before_stay_away_and_count():
    layout = model()
    first = PruningPlan(kept={"model.layers.5.mlp": (7,)}, dropped_layers=(4,))
    spec = layerwise(ratio=0.3, drop_layers=2)
    selection = select(
        layout, rising(layout), spec, layer_scores=[9, 9, 9, 9, 9, 1, *[9] * 6], removed=first
    )
    assert selection.plan.dropped_layers == (4, 5)
    assert "model.layers.5.mlp" not in selection.plan.kept
    assert share_removed(layout, selection.layout) == pytest.approx(0.3, abs=0.005)


def test_what_left_before_is_kept_away_even_where_the_spec_now_protects():
    first = PruningPlan(kept={"model.layers.0.mlp": tuple(range(64))})
    selection = select(model(), None, layerwise(ratio=0.0), removed=first)
    assert selection.plan.kept == first.kept
    assert selection.warnings == (
        "4.9% of the parameters of the layers leave rather than 0.0%, as earlier rounds "
        "alone take that much; nothing else leaves.",
    )


def test_an_earlier_round_of_another_model_is_refused():
    foreign = PruningPlan(kept={"model.layers.0.mlp": (512,)}, dropped_layers=(12,))
    with pytest.raises(BadInputError, match=r"layers\.0\.mlp.*layer 12"):
        select(model(), None, PruningSpec(), removed=foreign)
