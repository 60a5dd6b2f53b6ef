"""Layout laws, over every architecture in the catalogue and the configs that move biases and
heads.

The reference is always the real `transformers` model built from the same config.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from qpruner_core.catalog import ARCHITECTURES
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PruningPlan
from qpruner_core.errors import UnsupportedModelError
from qpruner_core.models.coupled import coupled_groups

BASE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
DERIVED = ("num_key_value_heads", "head_dim")
VARIANTS = {
    "llama": {},
    "llama tied": {"tie_word_embeddings": True},
    "llama with biases": {"attention_bias": True, "mlp_bias": True},
    "llama without grouping": {"num_key_value_heads": 4},
    "llama with one KV head": {"num_key_value_heads": 1},
    "mistral": {},
    "mistral with narrow heads": {"head_dim": 4},
    "mistral with a key it ignores": {"attention_bias": True},
    "qwen2": {},
    "qwen2 tied": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 16},
    "qwen3 with biases": {"head_dim": 16, "attention_bias": True},
}


def test_every_architecture_in_the_catalogue_is_tried():
    assert {name.split()[0] for name in VARIANTS} == set(ARCHITECTURES.names())


@pytest.fixture(params=VARIANTS, ids=lambda name: name.replace(" ", "-"))
def case(request) -> tuple[dict[str, Any], PreTrainedModel, ModelLayout]:
    name = request.param
    family = name.split()[0]
    config = AutoConfig.for_model(family, **{**BASE, **VARIANTS[name]})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    return config.to_dict(), model, ARCHITECTURES.target(family).layout(config.to_dict())


def test_the_layout_counts_the_parameters_of_the_model(case):
    _, model, layout = case
    assert layout.parameters == sum(p.numel() for p in model.parameters())


def test_every_linear_has_the_shape_and_bias_of_the_model(case):
    _, model, layout = case
    found = {
        name: (module.out_features, module.in_features, module.bias is not None)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.startswith(layout.layer_prefix)
    }
    told = {x.name: (x.out_features, x.in_features, x.has_bias) for x in layout.linears}
    assert told == found
    assert [x.name for x in layout.linears] == list(found), "forward order"


def test_slices_cover_their_axis_without_gap_or_overlap(case):
    _, model, layout = case
    for group in layout.groups:
        for part in group.slices:
            extent = model.get_parameter(part.tensor).shape[part.axis]
            assert (part.offset, group.n_units * part.unit_size) == (0, extent), part


def test_every_bias_beside_a_sliced_weight_is_sliced_too(case):
    _, model, layout = case
    for group in layout.groups:
        sliced = {part.tensor for part in group.slices}
        for part in group.slices:
            module = part.tensor.rpartition(".")[0]
            has_bias = model.get_submodule(module).bias is not None
            assert (f"{module}.bias" in sliced) == (has_bias and part.axis == 0), part


def test_a_unit_owns_as_many_parameters_as_its_views_hold(case):
    _, model, layout = case
    for group in coupled_groups(model, layout):
        per_unit = sum(weight.shape[1] for weight in group.weights)
        assert per_unit == group.layout.unit_parameters


def test_pruning_the_layout_equals_the_layout_of_the_pruned_config(case):
    config, _, layout = case
    kept = {"model.layers.0.mlp": 40, "model.layers.1.self_attn": 1, "model.layers.1.mlp": 8}
    plan = PruningPlan(kept={name: tuple(range(n)) for name, n in kept.items()})
    stated = ARCHITECTURES.target(layout.model_type).layout({**config, "qpruner_widths": kept})
    assert layout.pruned(plan) == stated


def test_removed_units_times_their_size_is_what_the_layout_loses(case):
    _, _, layout = case
    group = layout.groups[1]
    left = layout.pruned(PruningPlan(kept={group.name: tuple(range(group.n_units - 5))}))
    assert layout.parameters - left.parameters == 5 * group.unit_parameters


def test_keys_that_a_config_leaves_out_get_the_family_default(case):
    config, _, layout = case
    sparse = {k: v for k, v in config.items() if k not in DERIVED}
    sparse |= {"num_attention_heads": 32, "hidden_size": 1024}
    filled = AutoConfig.for_model(**sparse)
    told = ARCHITECTURES.target(layout.model_type).layout(sparse)
    head_dim = getattr(filled, "head_dim", None) or 1024 // 32
    assert (told.n_kv_heads, told.head_dim) == (filled.num_key_value_heads, head_dim)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": None}, "hidden_size as None"),
        ({"num_hidden_layers": 0}, "num_hidden_layers as 0"),
        ({"vocab_size": "many"}, "vocab_size as 'many'"),
        ({"num_key_value_heads": 3}, "4 query heads and 3 KV heads"),
        ({"qpruner_widths": {"model.layers.7.mlp": 4}}, "model.layers.7.mlp"),
        ({"qpruner_widths": {"model.layers.0.mlp": 0}}, "model.layers.0.mlp as 0"),
        ({"qpruner_widths": [4]}, "holds a list"),
    ],
)
def test_a_config_that_cannot_be_is_refused_with_a_sentence(change, words):
    config = {"model_type": "llama", **BASE, **change}
    with pytest.raises(UnsupportedModelError, match=words):
        ARCHITECTURES.target("llama").layout(config)


def test_layouts_load_no_torch():
    code = (
        "import sys; from qpruner_core.catalog import ARCHITECTURES as A; "
        "[A.target(n) for n in A.names()]; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
