"""Selection on layouts where the answer can be written down."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PruningPlan
from qpruner_core.domain.spec import PruningSpec
from qpruner_core.errors import BadInputError, InfeasibleRatioError, NotReadyError
from qpruner_core.models.architectures import llama
from qpruner_core.pruning.selection import largest_ratio, protected_layers, select
from qpruner_core.pruning.widths import fitting_multiple, width_ladder

LLAMA_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "vocab_size": 32000,
}


def model(**changes: object) -> ModelLayout:
    """Twelve layers, eight query heads on four KV heads, 512 channels: the shape of the demo."""
    config: dict[str, object] = {
        "model_type": "llama",
        "hidden_size": 192,
        "head_dim": 32,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "intermediate_size": 512,
        "vocab_size": 2048,
    }
    return llama.layout(config | changes)


def rising(layout: ModelLayout) -> dict[str, np.ndarray]:
    """Scores that rise with the layer and, inside it, with the index."""
    return {
        g.name: (g.layer + np.arange(g.n_units) / g.n_units).astype(np.float32)
        for g in layout.groups
    }


def widths(layout: ModelLayout, kind: str) -> list[int]:
    return [group.n_units for group in layout.groups if group.kind == kind]


def test_ratio_zero_keeps_everything():
    selection = select(model(), None, PruningSpec(ratio=0.0))
    assert selection.plan.is_identity
    assert selection.layout == model()
    assert selection.warnings == ()


def test_the_least_important_units_leave_and_the_least_important_layers_take_the_remainder():
    layout = model()
    selection = select(layout, rising(layout), PruningSpec(ratio=0.2))
    # 9 unprotected layers: 7.2 of 36 heads, 921.6 of 4608 channels in steps of 64.
    assert widths(selection.layout, "kv_heads") == [4, 4, 3, 3, 3, 3, 3, 3, 3, 4, 4, 4]
    channels = widths(selection.layout, "mlp_channels")
    assert channels == [512, 512, *[384] * 5, *[448] * 4, 512]
    assert selection.plan.kept["model.layers.2.self_attn"] == (1, 2, 3)
    assert selection.plan.kept["model.layers.2.mlp"] == tuple(range(128, 512))
    assert selection.warnings == ()


def test_global_scope_takes_units_where_they_are_worth_least():
    layout = model()
    selection = select(layout, rising(layout), PruningSpec(ratio=0.25, scope="global"))
    # Scores rise by 1 per layer: the first unprotected layers lose all but one unit.
    assert widths(selection.layout, "kv_heads") == [4, 4, 1, 1, 1, 4, 4, 4, 4, 4, 4, 4]
    assert sum(widths(model(), "mlp_channels")) - sum(
        widths(selection.layout, "mlp_channels")
    ) == pytest.approx(0.25 * 9 * 512, abs=32)


def test_equal_scores_let_the_last_units_and_layers_go_first():
    layout = model(num_hidden_layers=2)
    flat = {g.name: np.ones(g.n_units, np.float32) for g in layout.groups}
    spec = PruningSpec(ratio=1 / 8)
    selection = select(layout, flat, spec)
    assert selection == select(layout, None, spec)
    assert selection.plan.kept["model.layers.1.self_attn"] == (0, 1, 2)
    assert "model.layers.0.self_attn" not in selection.plan.kept


def test_uniform_shape_gives_every_layer_one_width_and_says_that_protection_is_off():
    layout = model()
    selection = select(layout, rising(layout), PruningSpec(ratio=0.25, shape="uniform"))
    assert set(widths(selection.layout, "kv_heads")) == {3}
    assert set(widths(selection.layout, "mlp_channels")) == {384}
    assert selection.warnings == (
        "Uniform widths are the same in every layer, so no layer is protected.",
    )


def test_uniform_shape_with_global_scope_says_that_the_scope_is_idle():
    spec = PruningSpec(
        ratio=0.25, shape="uniform", scope="global", protect_first=0, protect_last=0
    )
    (warning,) = select(model(), None, spec).warnings
    assert "global scope" in warning


def test_uniform_llama_keeps_only_heads_that_its_stock_config_accepts():
    layout = model(hidden_size=256, num_attention_heads=8, num_key_value_heads=4)
    selection = select(layout, None, PruningSpec(ratio=0.25, shape="uniform"))
    assert set(widths(selection.layout, "kv_heads")) == {4}  # 6 heads do not divide 256
    assert any("divide its hidden size of 256" in warning for warning in selection.warnings)
    free = model(hidden_size=256, model_type="mistral")
    assert set(
        widths(select(free, None, PruningSpec(ratio=0.25, shape="uniform")).layout, "kv_heads")
    ) == {3}


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


def test_a_ratio_that_would_empty_a_layer_is_refused_with_the_largest_possible():
    with pytest.raises(InfeasibleRatioError, match=r"largest possible ratio .* is 0\.75\b"):
        select(model(), None, PruningSpec(ratio=0.8))
    largest = largest_ratio(model(), PruningSpec())
    assert largest == 0.75
    left = select(model(), None, PruningSpec(ratio=largest)).layout
    assert min(widths(left, "kv_heads")) == 1


def test_the_largest_ratio_that_is_named_is_possible():
    layout = model(num_attention_heads=3, num_key_value_heads=3)
    with pytest.raises(InfeasibleRatioError, match=r"is 0\.6666\b"):
        select(layout, None, PruningSpec(ratio=0.7))
    assert set(widths(select(layout, None, PruningSpec(ratio=0.6666)).layout, "kv_heads")) == {
        1,
        3,
    }


def test_a_model_protected_from_end_to_end_is_refused():
    with pytest.raises(InfeasibleRatioError, match="12 of 12 layers are protected"):
        select(model(), None, PruningSpec(ratio=0.1, protect_first=12))


def test_a_single_kv_head_stays_and_only_channels_leave():
    layout = model(num_attention_heads=4, num_key_value_heads=1)
    selection = select(layout, None, PruningSpec(ratio=0.5))
    assert set(widths(selection.layout, "kv_heads")) == {1}
    assert set(widths(selection.layout, "mlp_channels")) == {256, 512}
    assert selection.warnings == ("No KV heads leave, as every layer has just one of them.",)


def test_a_narrow_model_gets_the_largest_power_of_two_that_fits_and_says_so():
    selection = select(model(intermediate_size=128), None, PruningSpec(ratio=0.25))
    assert set(widths(selection.layout, "mlp_channels")) == {96, 128}
    assert any("multiples of 32, not of 64" in warning for warning in selection.warnings)


def test_below_one_multiple_widths_are_powers_of_two_and_it_says_so():
    layout = model(num_attention_heads=16, num_key_value_heads=16)
    selection = select(layout, None, PruningSpec(ratio=0.9))
    assert set(widths(selection.layout, "mlp_channels")) == {32, 64, 512}
    assert any("powers of two" in warning for warning in selection.warnings)


def test_a_ratio_too_small_for_any_unit_says_that_nothing_is_removed():
    selection = select(model(num_hidden_layers=1), None, PruningSpec(ratio=0.01))
    assert selection.plan.is_identity
    assert "nothing is removed" in selection.warnings[0]


def test_a_share_far_from_the_ratio_is_named():
    layout = model(num_hidden_layers=1)
    selection = select(layout, None, PruningSpec(ratio=0.3))
    assert selection.warnings[0].startswith("25.0% of the KV heads leave rather than 30.0%")


@pytest.mark.parametrize(
    ("width", "multiple", "fitting"),
    [(512, 64, 64), (256, 64, 64), (255, 64, 32), (128, 64, 32), (3, 64, 1), (1, 1, 1)],
)
def test_a_multiple_fits_when_four_of_them_fit_the_width(width, multiple, fitting):
    assert fitting_multiple(width, multiple) == fitting


def test_a_ladder_has_multiples_and_then_powers_of_two():
    assert width_ladder(200, 48) == (200, 192, 144, 96, 48, 32, 16, 8, 4, 2, 1)
    assert width_ladder(4, 1) == (4, 3, 2, 1)
    assert width_ladder(1, 1) == (1,)


def test_layers_of_different_width_lose_the_same_share_and_can_become_uniform():
    base = model(num_hidden_layers=2)
    uneven = base.pruned(PruningPlan(kept={"model.layers.1.mlp": tuple(range(256))}))
    spec = PruningSpec(ratio=0.5)
    assert widths(select(uneven, None, spec).layout, "mlp_channels") == [256, 128]
    uniform = replace(spec, shape="uniform")
    assert widths(select(uneven, None, uniform).layout, "mlp_channels") == [192, 192]


def test_missing_scores_say_to_score_first():
    with pytest.raises(NotReadyError, match="Score the model"):
        select(model(), {}, PruningSpec())


@pytest.mark.parametrize("wrong", [np.ones(3), np.full(4, -1.0), np.array([1, 2, np.nan, 3])])
def test_scores_that_do_not_fit_are_refused(wrong):
    layout = model()
    scores = rising(layout) | {"model.layers.5.self_attn": wrong}
    with pytest.raises(BadInputError, match=r"layers\.5\.self_attn"):
        select(layout, scores, PruningSpec())


def test_negative_zero_ranks_like_zero():
    layout = model(num_hidden_layers=1)
    zeros = {g.name: np.zeros(g.n_units, np.float32) for g in layout.groups}
    negative = {name: -values for name, values in zeros.items()}
    spec = PruningSpec(ratio=0.5)
    assert select(layout, negative, spec) == select(layout, zeros, spec)


@pytest.mark.parametrize("with_scores", [False, True])
def test_a_7b_model_is_answered_fast_enough_for_a_slider(with_scores):
    layout = llama.layout(LLAMA_7B)
    rng = np.random.default_rng(0)
    scores = {g.name: rng.random(g.n_units, np.float32) for g in layout.groups}
    seconds = []
    for ratio in np.linspace(0.05, 0.9, 12):
        start = time.thread_time()
        select(layout, scores if with_scores else None, PruningSpec(ratio=float(ratio)))
        seconds.append(time.thread_time() - start)
    # The best of twelve in time of this thread alone: other work on the machine must not decide.
    assert min(seconds) < 0.020


def test_selection_loads_no_torch():
    code = "import sys, qpruner_core.pruning.selection; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "False"
