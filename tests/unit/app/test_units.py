"""The matrices behind the picture of kept units, against counting by hand."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from app import charts_units, units
from qpruner_core.catalog import ARCHITECTURES
from qpruner_core.domain.plan import PruningPlan

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 250,
    "vocab_size": 100,
}
MIXTRAL = {**LLAMA, "model_type": "mixtral", "intermediate_size": 10, "num_local_experts": 4}


@pytest.fixture
def dense():
    return ARCHITECTURES.target("llama").layout(LLAMA)


@pytest.fixture
def sparse():
    return ARCHITECTURES.target("mixtral").layout(MIXTRAL)


def group(layout, layer, kind, place=0):
    return [g for g in layout.groups if (g.layer, g.kind) == (layer, kind)][place]


def test_nothing_removed_is_one_everywhere(dense):
    heads, channels = units.panels(dense, PruningPlan(kept={}))
    assert heads.title == "KV heads"
    assert (heads.kept == 1.0).all()
    assert (channels.kept == 1.0).all()
    assert heads.kept.shape == (3, 4)
    assert channels.kept.shape == (3, units.N_BINS)


def test_a_removed_head_is_a_hole_at_its_place(dense):
    name = group(dense, 1, "kv_heads").name
    heads, _ = units.panels(dense, PruningPlan(kept={name: (0, 2, 3)}))
    np.testing.assert_array_equal(heads.kept[1], [1, 0, 1, 1])
    assert heads.words == ("4/4", "3/4", "4/4")
    assert heads.is_single


def test_a_column_of_many_channels_holds_their_kept_share(dense):
    name = group(dense, 0, "mlp_channels").name
    kept = tuple(sorted(np.random.default_rng(0).choice(250, 100, replace=False).tolist()))
    _, channels = units.panels(dense, PruningPlan(kept={name: kept}))
    stays = np.isin(np.arange(250), kept)
    edges = channels.edges.astype(int)
    expected = [stays[a:b].mean() for a, b in pairwise(edges)]
    np.testing.assert_allclose(channels.kept[0], expected)
    assert edges[-1] == 250
    assert not channels.is_single


def test_a_layer_that_leaves_whole_keeps_nothing_and_has_no_count(dense):
    for panel in units.panels(dense, PruningPlan(kept={}, dropped_layers=(2,))):
        assert (panel.kept[2] == 0.0).all()
        assert panel.words[2] == ""


def test_experts_are_shaded_by_the_channels_they_keep(sparse):
    plan = PruningPlan(
        kept={
            group(sparse, 0, "experts").name: (0, 1, 3),
            group(sparse, 0, "expert_channels", 1).name: (0, 1, 2, 3, 4),
        }
    )
    heads, experts = units.panels(sparse, plan)
    assert heads.title == "KV heads"
    np.testing.assert_allclose(experts.kept[0], [1.0, 0.5, 0.0, 1.0])
    np.testing.assert_allclose(experts.kept[1], 1.0)
    assert experts.words[0] == "3/4, 83 %"


def test_a_family_without_heads_that_leave_has_one_panel():
    olmo = {**LLAMA, "model_type": "olmo2", "num_key_value_heads": 8}
    layout = ARCHITECTURES.target("olmo2").layout(olmo)
    assert [panel.title for panel in units.panels(layout, PruningPlan(kept={}))] == [
        "MLP channels"
    ]


def test_a_layer_narrower_than_the_widest_is_empty_beyond_its_end(dense):
    name = group(dense, 0, "mlp_channels").name
    narrow = dense.pruned(PruningPlan(kept={name: tuple(range(125))}))
    _, channels = units.panels(narrow, PruningPlan(kept={}))
    assert np.isnan(channels.kept[0]).any()
    assert not np.isnan(channels.kept[1]).any()


def test_the_number_of_experts_is_that_of_the_fullest_layer(dense, sparse):
    assert units.n_experts(dense) == 0
    assert units.n_experts(sparse) == 4


def test_every_panel_has_axes_of_its_own_and_the_first_names_the_layers(dense):
    figure = charts_units.kept_units(units.panels(dense, PruningPlan(kept={})), (1,), 3)
    assert [trace.xaxis for trace in figure.data if trace.type == "heatmap"] == ["x", "x2"]
    assert figure.layout.xaxis.domain[1] < figure.layout.xaxis2.domain[0]
    assert (figure.layout.yaxis2.matches, figure.layout.yaxis2.showticklabels) == ("y", False)
    leaving = [note for note in figure.layout.annotations if note.text == "layer leaves"]
    assert [(note.xref, note.y) for note in leaving] == [("x", 1), ("x2", 1)]


def test_the_picture_of_a_wide_model_stays_small():
    wide = {
        **LLAMA,
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "intermediate_size": 11008,
    }
    layout = ARCHITECTURES.target("llama").layout(wide)
    plan = PruningPlan(
        kept={g.name: tuple(range(g.n_units // 2)) for g in layout.groups}, dropped_layers=(5,)
    )
    figure = charts_units.kept_units(units.panels(layout, plan), plan.dropped_layers, 32)
    middles = [note.x for note in figure.layout.annotations if note.text == "layer leaves"]
    assert middles == [(32 - 1) / 2, (11008 - 1) / 2]  # unit 0 is drawn from -0.5 to 0.5
    assert [trace.z.size for trace in figure.data if trace.type == "heatmap"] == [1024, 32 * 96]
    assert sum(note.text == "layer leaves" for note in figure.layout.annotations) == 2
