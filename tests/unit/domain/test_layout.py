from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from qpruner_core.domain.layout import (
    GroupLayout,
    LinearLayout,
    ModelLayout,
    UnitSlice,
    opens_plainly,
)
from qpruner_core.domain.plan import PruningPlan
from qpruner_core.models.architectures import llama, moe

if TYPE_CHECKING:
    from transformers import LlamaConfig


def fused_layout() -> ModelLayout:
    """One layer with a fused gate-and-up projection of eight channels over four inputs."""
    group = GroupLayout(
        name="layers.0.mlp",
        layer=0,
        kind="mlp_channels",
        n_units=8,
        unit_parameters=3 * 4,
        slices=(
            UnitSlice(tensor="layers.0.mlp.gate_up.weight", axis=0, unit_size=1),
            UnitSlice(tensor="layers.0.mlp.gate_up.weight", axis=0, unit_size=1, offset=8),
            UnitSlice(tensor="layers.0.mlp.down.weight", axis=1, unit_size=1),
        ),
    )
    linears = tuple(
        LinearLayout(
            name=f"layers.0.mlp.{role}",
            layer=0,
            role=role,
            block="mlp",
            out_features=out,
            in_features=across,
        )
        for role, out, across in (("gate_up", 16, 4), ("down", 4, 8))
    )
    return ModelLayout(
        model_type="fused",
        n_layers=1,
        hidden_size=4,
        n_heads=1,
        n_kv_heads=1,
        head_dim=4,
        vocab_size=2,
        layer_prefix="layers",
        groups=(group,),
        linears=linears,
        other_parameters=10,
    )


def test_the_identity_plan_changes_nothing(tiny_layout):
    assert tiny_layout.pruned(PruningPlan(kept={})) == tiny_layout


def test_pruning_takes_what_the_units_own(tiny_layout):
    group = next(g for g in tiny_layout.groups if g.kind == "mlp_channels")
    pruned = tiny_layout.pruned(PruningPlan(kept={group.name: tuple(range(group.n_units - 3))}))
    assert tiny_layout.parameters - pruned.parameters == 3 * group.unit_parameters


def test_projections_that_share_a_tensor_move_together():
    pruned = fused_layout().pruned(PruningPlan(kept={"layers.0.mlp": (0, 2, 5)}))
    assert [part.offset for part in pruned.groups[0].slices] == [0, 3, 0]
    assert [(x.out_features, x.in_features) for x in pruned.linears] == [(6, 4), (4, 3)]
    assert pruned.groups[0].unit_parameters == 12


def test_pruned_kv_heads_are_not_cached(tiny_layout):
    heads = next(g for g in tiny_layout.groups if g.kind == "kv_heads")
    pruned = tiny_layout.pruned(PruningPlan(kept={heads.name: (0,)}))
    saved = tiny_layout.kv_cache_bytes(10) - pruned.kv_cache_bytes(10)
    assert saved == 2 * tiny_layout.head_dim * 10 * 2 * (heads.n_units - 1)


@pytest.mark.parametrize(("family", "opens"), [("llama", False), ("mistral", True)])
def test_equal_widths_open_plainly_only_with_heads_that_the_stock_config_accepts(
    tiny_config: LlamaConfig, family: str, opens: bool
) -> None:
    tiny_config.num_attention_heads, tiny_config.num_key_value_heads = 8, 4
    dense = llama.layout({**tiny_config.to_dict(), "model_type": family})
    names = [group.name for group in dense.groups if group.kind == "kv_heads"]
    assert opens_plainly(dense)
    assert opens_plainly(dense.pruned(PruningPlan(kept=dict.fromkeys(names, (0, 3)))))
    assert not opens_plainly(dense.pruned(PruningPlan(kept={names[0]: (0, 3)})))
    three = dense.pruned(PruningPlan(kept=dict.fromkeys(names, (0, 1, 3))))
    assert opens_plainly(three) == opens  # six query heads do not divide a hidden size of 64


MOE = {
    "model_type": "qwen3_moe",
    "hidden_size": 8,
    "intermediate_size": 12,
    "moe_intermediate_size": 6,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "mlp_only_layers": [1],
    "vocab_size": 10,
}
"""Two sparse layers around a dense one; an expert has 3 * 6 * 8 parameters, a row of the router
8."""


def test_an_expert_takes_its_weights_and_its_row_of_the_router():
    dense = moe.QWEN3_MOE.layout(MOE)
    pruned = dense.pruned(PruningPlan(kept={"model.layers.0.mlp": (0, 3)}))
    assert dense.group("model.layers.0.mlp").unit_parameters == 3 * 6 * 8 + 8
    assert dense.parameters - pruned.parameters == 2 * (3 * 6 * 8 + 8)
    assert dense.layer_parameters[0] - pruned.layer_parameters[0] == 2 * (3 * 6 * 8 + 8)
    assert pruned.group("model.layers.0.mlp").members == tuple(
        f"model.layers.0.mlp.experts.{i}" for i in (0, 1)
    )
    inside = [group.name for group in pruned.groups if group.kind == "expert_channels"]
    assert inside == [
        f"model.layers.{i}.mlp.experts.{j}" for i, n in ((0, 2), (2, 4)) for j in range(n)
    ]


def test_channels_that_leave_an_expert_make_the_mean_expert_smaller():
    dense = moe.QWEN3_MOE.layout(MOE)
    kept = {"model.layers.0.mlp.experts.1": (0, 5), "model.layers.0.mlp.experts.2": (1, 2, 3)}
    pruned = dense.pruned(PruningPlan(kept=kept))
    assert dense.parameters - pruned.parameters == (4 + 3) * 3 * 8
    widths = 6 + 2 + 3 + 6
    assert pruned.group("model.layers.0.mlp").unit_parameters == widths * 3 * 8 // 4 + 8
    assert pruned.group("model.layers.0.mlp.experts.1").unit_parameters == 3 * 8


def test_channels_and_whole_experts_leave_at_once():
    dense = moe.QWEN3_MOE.layout(MOE)
    kept = {
        "model.layers.2.mlp": (1, 3),
        "model.layers.2.mlp.experts.0": (0,),  # leaves whole all the same
        "model.layers.2.mlp.experts.3": (0, 1, 2, 3),
    }
    plan = PruningPlan(kept=kept, dropped_layers=(0,))
    pruned = dense.pruned(plan)
    widths = {group.name: group.n_units for group in pruned.groups}
    assert widths["model.layers.1.mlp.experts.0"] == 6
    assert widths["model.layers.1.mlp.experts.1"] == 4
    assert pruned.group("model.layers.1.mlp").unit_parameters == (6 + 4) * 3 * 8 // 2 + 8
    lost = dense.layer_parameters[0] + 2 * (3 * 6 * 8 + 8) + 2 * 3 * 8
    assert dense.parameters - pruned.parameters == lost
    entries = {"qpruner_widths": widths, **moe.QWEN3_MOE.fewer_layers(MOE, (1, 2))}
    assert moe.QWEN3_MOE.layout({**MOE, **entries}) == pruned


def test_experts_open_plainly_only_when_all_layers_keep_as_many():
    dense = moe.QWEN3_MOE.layout(MOE)
    one = {"model.layers.0.mlp": (0, 3)}
    assert not opens_plainly(dense.pruned(PruningPlan(kept=one)))
    assert opens_plainly(dense.pruned(PruningPlan(kept={**one, "model.layers.2.mlp": (1, 2)})))


def test_published_mixtures_are_counted_to_the_parameter():
    mixtral = {
        "model_type": "mixtral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
    }
    assert moe.MIXTRAL.layout(mixtral).parameters == 46_702_792_704
    qwen = {
        "model_type": "qwen3_moe",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "head_dim": 128,
        "vocab_size": 151936,
    }
    assert moe.QWEN3_MOE.layout(qwen).parameters == 30_532_122_624
