"""Mixtures of experts: Mixtral and Qwen3-MoE, attention as in Llama and Qwen3.

In memory every expert is a gated MLP of three Linears (`models.files.modeling_qpruner.Experts`),
so a sparse block has two kinds of unit: the channels of each expert, and whole experts with their
rows of the router. Removing an expert is setting its router logit to minus infinity: softmax over
what is left renormalises by itself, whether the model divides the chosen weights by their sum
(Mixtral, ``norm_topk_prob``) or not. At least ``num_experts_per_tok`` experts have to stay.

On disk the stock classes read experts under the names in which they were published; `disk_name`
gives them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from qpruner_core.domain.layout import GroupLayout, LinearLayout, ModelLayout, UnitSlice
from qpruner_core.errors import UnsupportedModelError
from qpruner_core.models.architectures import Told
from qpruner_core.models.architectures.decoder import Block, Decoder, Part, Shape, positive

_ROLES = ("gate_proj", "up_proj", "down_proj")
_EXPERT_WEIGHT = re.compile(r"(.+\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj)\.weight")


@dataclass(frozen=True, kw_only=True)
class SparseDecoder(Decoder):
    """A decoder in whose layers a router sends every token through a few of many gated MLPs."""

    plain_kinds: tuple[str, ...] = ("kv_heads", "mlp_channels", "expert_channels", "experts")
    count_keys: tuple[str, ...] = ("num_local_experts",)
    """What configs call the number of experts; all are written, the first found is read."""
    width_key: str = "intermediate_size"
    """What configs call the channels of an expert."""
    router_name: str = "gate"
    """Name of the router inside its block."""
    head_norms: bool = False
    """Whether every query and key head is normalised."""
    can_have_biases: bool = False
    """Whether the config may ask for biases in attention."""
    disk_names: tuple[tuple[str, str], ...] = field(default=())
    """Pattern of a name in memory -> what the published checkpoints call it."""

    # What the line asks of a family -----------------------------------------------------------

    def layout(self, config: Mapping[str, Any]) -> ModelLayout:
        """Return the units and Linears that a config describes; see `Architecture.layout`."""
        shape = self.read(config)
        chosen, present = positive(shape.config, "num_experts_per_tok"), self.n_experts(shape)
        if chosen > present:
            raise UnsupportedModelError(
                f"The config sends every token through {chosen} of {present} experts, but no more "
                "than there are can be chosen. Correct num_experts_per_tok in config.json."
            )
        return replace(super().layout(config), experts_per_token=chosen)

    def told(self, pruned: ModelLayout, group: GroupLayout) -> Told:
        """Return what the module of a group has to know of its number of units.

        Routers of layers with fewer experts than the most state as many logits as those, so that
        what is recorded of all layers fits together.
        """
        if group.kind == "expert_channels":
            return {}
        if group.kind != "experts":
            return super().told(pruned, group)
        return {"experts": {"count": group.n_units, "logits": most_experts(pruned)}}

    def told_model(self, pruned: ModelLayout) -> Told:
        """Return what the whole model has to know: the experts its balance is computed over."""
        most = most_experts(pruned)
        return {"attributes": {"num_experts": most}} if most else {}

    def stock_config(self, pruned: ModelLayout) -> dict[str, Any]:
        """Return the config entries by which the stock class builds a plain layout."""
        units = {group.kind: group.n_units for group in pruned.groups}
        values = super().stock_config(pruned)
        if "experts" in units:
            values[self.width_key] = units["expert_channels"]
            values |= dict.fromkeys(self.count_keys, units["experts"])
        return values

    def fewer_layers(self, config: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
        """Return the config entries that change when only these layers stay, in this order.

        Which of them are dense is listed layer by layer then, as a step no longer tells it.
        """
        shape = self.read(config)
        entries = super().fewer_layers(config, kept)
        if not {"decoder_sparse_step", "mlp_only_layers"}.isdisjoint(config):
            dense = [new for new, old in enumerate(kept) if not self.is_sparse(shape, old)]
            entries |= {"mlp_only_layers": dense, "decoder_sparse_step": 1}
        return entries

    def disk_name(self, name: str) -> str:
        """Return what checkpoints of the stock class call a tensor."""
        for pattern, published in self.disk_names:
            name = re.sub(pattern, published, name)
        return name

    def shape_on_disk(
        self, name: str, shapes: Mapping[str, tuple[int, ...]]
    ) -> tuple[int, ...] | None:
        """Return the shape of a tensor in a checkpoint, which may also hold all experts of a
        layer in one tensor, as transformers does in memory.
        """
        found = super().shape_on_disk(name, shapes)
        part = _EXPERT_WEIGHT.fullmatch(name)
        if found is not None or part is None:
            return found
        block, index, role = part.groups()
        fused = shapes.get(f"{block}.{'down_proj' if role == 'down_proj' else 'gate_up_proj'}", ())
        if len(fused) != 3 or int(index) >= fused[0]:
            return None
        return (fused[1] if role == "down_proj" else fused[1] // 2, fused[2])

    # What a block consists of -----------------------------------------------------------------

    def is_sparse(self, shape: Shape, layer: int) -> bool:
        """Whether a layer has experts; the others have one gated MLP."""
        step = shape.config.get("decoder_sparse_step", 1)
        return layer not in (shape.config.get("mlp_only_layers") or ()) and not (layer + 1) % step

    def n_experts(self, shape: Shape) -> int:
        """Experts per sparse layer as the config states them."""
        stated = [key for key in self.count_keys if shape.config.get(key) is not None]
        return positive(shape.config, (stated or self.count_keys)[0])

    def mlp(self, shape: Shape, layer: int) -> Block:
        """Return the channels of a layer's experts and the experts themselves, or of its one
        MLP.
        """
        if not self.is_sparse(shape, layer):
            return super().mlp(shape, layer)
        name = self._block(layer)
        groups: list[GroupLayout] = []
        linears: list[LinearLayout] = []
        members = tuple(f"{name}.experts.{i}" for i in range(self._experts_in(shape, layer)))
        for member in members:
            group, inside = self._expert(shape, member, layer)
            groups.append(group)
            linears += inside
        per_unit = sum(linear.parameters for linear in linears) // len(members) + shape.hidden
        row = UnitSlice(tensor=f"{name}.{self.router_name}.weight", axis=0, unit_size=1)
        whole = GroupLayout(
            name=name,
            layer=layer,
            kind="experts",
            n_units=len(members),
            unit_parameters=per_unit,
            slices=(row,),
            members=members,
        )
        return (*groups, whole), tuple(linears)

    def layer_others(self, shape: Shape, layer: int) -> int:
        """Count norms, those over heads among them, and the router."""
        heads = 2 * shape.head_dim if self.head_norms else 0
        sparse = self.is_sparse(shape, layer)
        router = self._experts_in(shape, layer) * shape.hidden if sparse else 0
        return super().layer_others(shape, layer) + heads + router

    def qkv_bias(self, shape: Shape) -> bool:
        """Mixtral ignores the key even where a config carries it."""
        return self.can_have_biases and super().qkv_bias(shape)

    def o_bias(self, shape: Shape) -> bool:
        """As the projections into attention."""
        return self.can_have_biases and super().o_bias(shape)

    def mlp_bias(self, shape: Shape) -> bool:
        """Neither experts nor dense MLPs have any."""
        del shape
        return False

    def _expert(
        self, shape: Shape, name: str, layer: int
    ) -> tuple[GroupLayout, list[LinearLayout]]:
        width = shape.units(name, positive(shape.config, self.width_key))
        sizes = ((width, shape.hidden), (width, shape.hidden), (shape.hidden, width))
        linears = [
            self.linear(shape, name, role, size, False, layer)
            for role, size in zip(_ROLES, sizes, strict=True)
        ]
        parts = [Part(role=role, unit_size=1, is_input=role == "down_proj") for role in _ROLES]
        return self.group(name, layer, "expert_channels", width, parts, linears), linears

    def _block(self, layer: int) -> str:
        return f"{self.prefix}.{layer}.{self.mlp_name}"

    def _experts_in(self, shape: Shape, layer: int) -> int:
        return shape.units(self._block(layer), self.n_experts(shape))


def most_experts(layout: ModelLayout) -> int:
    """Return the largest number of experts in a layer; 0 when no layer has any."""
    return max((group.n_units for group in layout.groups if group.kind == "experts"), default=0)


MIXTRAL = SparseDecoder(
    classes={"mixtral": "MixtralForCausalLM"},
    defaults={
        "mixtral": {"num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2}
    },
    disk_names=(
        (r"\.mlp\.experts\.(\d+)\.gate_proj\.", r".block_sparse_moe.experts.\1.w1."),
        (r"\.mlp\.experts\.(\d+)\.down_proj\.", r".block_sparse_moe.experts.\1.w2."),
        (r"\.mlp\.experts\.(\d+)\.up_proj\.", r".block_sparse_moe.experts.\1.w3."),
        (r"\.mlp\.gate\.", ".block_sparse_moe.gate."),
    ),
)
QWEN3_MOE = SparseDecoder(
    classes={"qwen3_moe": "Qwen3MoeForCausalLM"},
    defaults={
        "qwen3_moe": {
            "num_key_value_heads": 4,
            "moe_intermediate_size": 768,
            "num_experts": 128,
            "num_experts_per_tok": 8,
        }
    },
    count_keys=("num_local_experts", "num_experts"),
    width_key="moe_intermediate_size",
    head_norms=True,
    can_have_biases=True,
)
