"""One width per kind for the whole model."""

from __future__ import annotations

from dataclasses import replace

import pytest
from shapes_to_prune import build, experts, model, rising, share_removed, widths

from qpruner_core.domain.layout import opens_plainly
from qpruner_core.domain.plan import PruningPlan
from qpruner_core.domain.spec import PruningSpec
from qpruner_core.errors import InfeasibleRatioError
from qpruner_core.pruning.selection import largest_ratio, select

UNPROTECTED = PruningSpec(shape="uniform", protect_first=0, protect_last=0)


def pair(layout, spec):
    left = select(layout, None, spec).layout
    (heads,), (channels,) = ({*widths(left, kind)} for kind in ("kv_heads", "mlp_channels"))
    return heads, channels


@pytest.mark.parametrize(
    ("ratio", "multiple", "found"),
    [
        # A head of all layers is a twelfth, and so are 64 channels: the grid is coarse.
        (0.2, 64, (3, 448)),
        (0.3, 64, (3, 320)),
        (0.5, 64, (2, 256)),
        # Single channels meet the ratio beside whichever number of heads loses the nearest share.
        (0.2, 1, (3, 422)),
        (0.3, 1, (3, 345)),
        (0.5, 1, (2, 256)),
    ],
)
def test_heads_and_channels_lose_the_most_equal_shares_that_meet_the_ratio(ratio, multiple, found):
    spec = replace(UNPROTECTED, ratio=ratio, width_multiple=multiple)
    assert pair(model(), spec) == found
    left = select(model(), None, spec).layout
    assert share_removed(model(), left) == pytest.approx(
        ratio, abs=1 / 24 if multiple > 1 else 1e-3
    )


def test_uniform_shape_says_that_protection_is_off():
    selection = select(model(), None, PruningSpec(ratio=0.25, shape="uniform"))
    assert selection.warnings == (
        "Uniform widths are the same in every layer, so no layer is protected.",
    )


@pytest.mark.parametrize("scope", ["global", "standardised"])
def test_uniform_shape_says_that_another_scope_is_idle(scope):
    (warning,) = select(model(), None, replace(UNPROTECTED, ratio=0.25, scope=scope)).warnings
    assert f"{scope} scope" in warning


def test_uniform_shape_says_that_ratios_by_hand_are_not_followed():
    spec = replace(UNPROTECTED, ratio=0.25, layer_ratios={"3": 0.5})
    selection = select(model(), None, spec)
    assert selection.layout == select(model(), None, replace(spec, layer_ratios={})).layout
    assert any("ratios by hand are not followed" in warning for warning in selection.warnings)


def test_a_llama_keeps_only_heads_that_its_stock_config_accepts():
    layout = model(hidden_size=256, num_attention_heads=8, num_key_value_heads=4)
    selection = select(layout, None, replace(UNPROTECTED, ratio=0.25))
    heads = widths(selection.layout, "kv_heads")[0]
    assert heads in (4, 2)  # 6 query heads do not divide 256
    assert opens_plainly(selection.layout)
    assert any("divide its hidden size of 256" in warning for warning in selection.warnings)
    free = model(hidden_size=256, model_type="mistral")
    left = select(free, None, replace(UNPROTECTED, ratio=0.25)).layout
    assert set(widths(left, "kv_heads")) == {3}


def test_kinds_that_a_stock_config_cannot_state_stay_whole_and_it_says_so():
    layout = replace(model(), plain_kinds=("mlp_channels",))
    selection = select(layout, None, replace(UNPROTECTED, ratio=0.25))
    assert set(widths(selection.layout, "kv_heads")) == {4}
    assert share_removed(layout, selection.layout) == pytest.approx(0.25, abs=1 / 24)
    assert any(warning.startswith("All KV heads stay") for warning in selection.warnings)
    largest = largest_ratio(layout, UNPROTECTED)
    assert largest < 2 / 3
    with pytest.raises(InfeasibleRatioError, match=r"0 of 12 layers are protected"):
        select(layout, None, replace(UNPROTECTED, ratio=0.7))
    heads_alone = replace(UNPROTECTED, ratio=0.1, kinds=("kv_heads",))
    with pytest.raises(InfeasibleRatioError, match=r"in uniform shape all KV heads stay, as a "):
        select(layout, None, heads_alone)


def test_models_with_uneven_layers_become_uniform():
    base = model(num_hidden_layers=2)
    uneven = base.pruned(PruningPlan(kept={"model.layers.1.mlp": tuple(range(256))}))
    assert pair(uneven, replace(UNPROTECTED, ratio=0.4)) == (2, 256)


def test_layers_leave_whole_before_widths_become_uniform():
    layout = model()
    spec = PruningSpec(ratio=0.3, shape="uniform", drop_layers=2, width_multiple=1)
    selection = select(layout, rising(layout), spec, layer_scores=range(12))
    assert selection.plan.dropped_layers == (2, 3)
    assert len(set(widths(selection.layout, "mlp_channels"))) == 1
    assert share_removed(layout, selection.layout) == pytest.approx(0.3, abs=1e-3)


def test_every_layer_keeps_as_many_experts_and_channels():
    layout = experts()
    spec = replace(
        UNPROTECTED, ratio=0.5, kinds=("kv_heads", "expert_channels", "experts"), width_multiple=1
    )
    selection = select(layout, rising(layout), spec)
    for kind in spec.kinds:
        assert len(set(widths(selection.layout, kind))) == 1
    assert share_removed(layout, selection.layout) == pytest.approx(0.5, abs=0.02)
    assert opens_plainly(selection.layout)


def test_a_model_of_another_size_answers_alike():
    layout = build(
        {
            "model_type": "qwen2",
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "intermediate_size": 300,
            "vocab_size": 16,
        }
    )
    spec = replace(UNPROTECTED, ratio=0.35, width_multiple=1)
    left = select(layout, None, spec).layout
    assert share_removed(layout, left) == pytest.approx(0.35, abs=0.002)
