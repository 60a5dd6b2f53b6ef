"""Units-first views show exactly the weights that leave with a unit."""

from __future__ import annotations

import torch
from torch import nn

from qpruner_core.domain.layout import GroupLayout, UnitSlice
from qpruner_core.models.coupled import coupled_group, coupled_groups, units_first


def test_groups_come_in_layout_order(tiny_model, tiny_layout):
    groups = coupled_groups(tiny_model, tiny_layout)
    assert [(g.name, g.layer, g.kind, g.n_units) for g in groups] == [
        (g.name, g.layer, g.kind, g.n_units) for g in tiny_layout.groups
    ]
    assert groups[0].device == torch.device("cpu")


def test_a_kv_head_sees_its_query_rows_and_its_output_columns(tiny_model, tiny_layout):
    group = coupled_groups(tiny_model, tiny_layout)[0]
    attention = tiny_model.model.layers[0].self_attn
    query, key, value, output = (piece.weights for piece in group.pieces())
    assert torch.equal(query[1], attention.q_proj.weight[32:64])
    assert torch.equal(key[1], attention.k_proj.weight[16:32])
    assert torch.equal(value[0], attention.v_proj.weight[0:16])
    assert torch.equal(output[1], attention.o_proj.weight[:, 32:64].t())


def test_an_mlp_channel_sees_two_rows_and_one_column(tiny_model, tiny_layout):
    group = coupled_groups(tiny_model, tiny_layout)[3]
    mlp = tiny_model.model.layers[1].mlp
    gate, up, down = (piece.weights for piece in group.pieces())
    assert torch.equal(gate[7, 0], mlp.gate_proj.weight[7])
    assert torch.equal(up[7, 0], mlp.up_proj.weight[7])
    assert torch.equal(down[7, 0], mlp.down_proj.weight[:, 7])


def test_slices_with_an_offset_read_their_own_part_of_a_fused_tensor():
    fused = torch.arange(24.0).reshape(8, 3)
    part = UnitSlice(tensor="qkv.weight", axis=0, unit_size=2, offset=4)
    assert torch.equal(units_first(fused, part, 2)[1], fused[6:8].flatten())


def test_gradients_are_shaped_like_weights_and_belong_to_the_same_entries(tiny_model, tiny_layout):
    ids = torch.arange(8)[None]
    tiny_model(ids, labels=ids).loss.backward()
    for group in coupled_groups(tiny_model, tiny_layout):
        assert all(piece.gradients.shape == piece.weights.shape for piece in group.pieces())
    *_, down = coupled_groups(tiny_model, tiny_layout)[1].pieces()
    expected = tiny_model.model.layers[0].mlp.down_proj.weight.grad.t()
    assert torch.equal(down.gradients[:, 0], expected)


def test_weights_carry_no_history(tiny_model, tiny_layout):
    groups = coupled_groups(tiny_model, tiny_layout)
    assert not any(piece.weights.requires_grad for g in groups for piece in g.pieces())


def test_pieces_are_all_that_leaves_with_a_unit(tiny_model, tiny_layout):
    for group in coupled_groups(tiny_model, tiny_layout):
        pieces = list(group.pieces())
        assert len(pieces) == len(group.layout.slices)
        for piece in pieces:
            assert piece.units == slice(0, group.n_units)
            assert piece.gradients.shape == piece.weights.shape
            assert not piece.gradients.any()
        assert sum(p.weights[0].numel() for p in pieces) == group.layout.unit_parameters


def test_whole_modules_own_every_tensor_below_them():
    model = nn.ModuleDict({"router": nn.Linear(3, 2, bias=False)})
    model["experts"] = nn.ModuleList([nn.Linear(3, 4), nn.Linear(3, 5)])
    layout = GroupLayout(
        name="experts",
        layer=0,
        kind="experts",
        n_units=2,
        unit_parameters=21,
        slices=(UnitSlice(tensor="router.weight", axis=0, unit_size=1),),
        members=("experts.0", "experts.1"),
    )
    group = coupled_group(model, layout)
    model["experts"][1](torch.ones(1, 3)).sum().backward()
    owned = [(piece.units.start, piece.weights.numel()) for piece in group.pieces()]
    assert owned == [(0, 6), (0, 12), (0, 4), (1, 15), (1, 5)]
    assert [bool(piece.gradients.any()) for piece in group.pieces()] == [False] * 3 + [True] * 2
    assert len(group.parameters) == 5
    assert list(group.members[1]) == ["experts.1.weight", "experts.1.bias"]
