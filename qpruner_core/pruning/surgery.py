"""From a plan to a smaller model: the tensors a layout names lose what the plan drops, in place.

All that is to be sliced is known from the layout, so nothing here asks what family a model is of.
Everything is checked before the first tensor changes. When all layers end with equal widths that
the stock config accepts, the config says so and the plain class opens the model; else the config
stays dense and lists the units of every group under ``qpruner_widths``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn

from qpruner_core.domain.layout import WIDTHS_KEY, GroupLayout, ModelLayout, opens_plainly
from qpruner_core.domain.plan import PruningPlan
from qpruner_core.errors import BadInputError, IncompatibleShapeError


@torch.no_grad()
def prune_(model: nn.Module, layout: ModelLayout, plan: PruningPlan) -> ModelLayout:
    """Carry a plan out on a model and return the layout it has then.

    Parameters become new ones on the same device, in the same dtype; Linears, attention and MLP
    modules and the model's config are told their new widths. The identity plan changes nothing at
    all.

    Args:
        model: A dense transformer of nn.Linear modules; changed in place.
        layout: Its layout before pruning.
        plan: The units that stay.

    Raises:
        BadInputError: The plan names groups or units that the layout does not have.
        IncompatibleShapeError: The model's tensors are not those of the layout, or are packed
            already.
    """
    if plan.is_identity:
        return layout
    _check_plan(layout, plan)
    _check_model(model, layout)
    for (tensor, axis), keep in _kept_entries(layout, plan):
        _slice_(model, tensor, axis, keep)
    pruned = layout.pruned(plan)
    for group in pruned.groups:
        _tell_module_(model.get_submodule(group.name), pruned, group)
    _tell_config_(cast("Any", model).config, pruned)
    return pruned


def _check_plan(layout: ModelLayout, plan: PruningPlan) -> None:
    n_units = {group.name: group.n_units for group in layout.groups}
    wrong = [name for name, kept in plan.kept.items() if kept[-1] >= n_units.get(name, 0)]
    if wrong:
        raise BadInputError(
            f"The pruning plan keeps units that this model does not have, in "
            f"{', '.join(map(repr, wrong))}. It was made for another model, or this one is pruned "
            f"already. Make a new plan."
        )


def _check_model(model: nn.Module, layout: ModelLayout) -> None:
    modules = dict(model.named_modules())
    wrong = []
    for linear in layout.linears:
        module = modules.get(linear.name)
        fits = (
            isinstance(module, nn.Linear)
            and tuple(module.weight.shape) == (linear.out_features, linear.in_features)
            and (module.bias is not None) == linear.has_bias
        )
        if not fits:
            wrong.append(linear.name)
    if wrong:
        raise IncompatibleShapeError(
            f"{len(wrong)} Linears do not have the shape that the model's config implies, or are "
            f"packed already: {', '.join(wrong[:3])}{' and more' if len(wrong) > 3 else ''}. Load "
            f"the dense model again, then prune it."
        )


def _kept_entries(
    layout: ModelLayout, plan: PruningPlan
) -> Iterator[tuple[tuple[str, int], torch.Tensor]]:
    """Yield (tensor name, axis) and the indices that stay along it, all its slices together."""
    gone: dict[tuple[str, int], list[torch.Tensor]] = {}
    for group in layout.groups:
        if len(plan.kept.get(group.name, range(group.n_units))) == group.n_units:
            continue
        leaves = torch.ones(group.n_units, dtype=torch.bool)
        leaves[list(plan.kept[group.name])] = False
        units = leaves.nonzero()
        for part in group.slices:
            entries = part.offset + units * part.unit_size + torch.arange(part.unit_size)
            gone.setdefault((part.tensor, part.axis), []).append(entries.flatten())
    sizes = {linear.name: linear for linear in layout.linears}
    for (tensor, axis), parts in gone.items():
        linear = sizes[tensor.rpartition(".")[0]]
        stays = torch.ones((linear.out_features, linear.in_features)[axis], dtype=torch.bool)
        stays[torch.cat(parts)] = False
        yield (tensor, axis), stays.nonzero().flatten()


def _slice_(model: nn.Module, tensor: str, axis: int, keep: torch.Tensor) -> None:
    """Replace a parameter by the entries of an axis that stay, and tell its Linear."""
    name, _, leaf = tensor.rpartition(".")
    linear = cast("nn.Linear", model.get_submodule(name))
    old = linear.get_parameter(leaf)
    kept = old.index_select(axis, keep.to(old.device))
    setattr(linear, leaf, nn.Parameter(kept, requires_grad=old.requires_grad))
    linear.out_features, linear.in_features = linear.weight.shape


def _tell_module_(module: nn.Module, pruned: ModelLayout, group: GroupLayout) -> None:
    """Set the width attributes that an attention or MLP module carries.

    The families of the catalogue read no widths from the config in their forward pass, so the
    modules go on sharing the model's; a family that does needs a config of its own per attention
    here.
    """
    if group.kind == "kv_heads":
        queries = pruned.n_heads // pruned.n_kv_heads
        told = {
            "num_key_value_groups": queries,
            "num_key_value_heads": group.n_units,
            "num_heads": group.n_units * queries,
        }
    else:
        told = {"intermediate_size": group.n_units}
    for attribute, value in told.items():
        if hasattr(module, attribute):
            setattr(module, attribute, value)


def _tell_config_(config: Any, pruned: ModelLayout) -> None:
    """Write the widths where loading will look for them."""
    if opens_plainly(pruned):
        units = {group.kind: group.n_units for group in pruned.groups}
        config.head_dim = pruned.head_dim
        config.num_key_value_heads = units["kv_heads"]
        config.num_attention_heads = units["kv_heads"] * (pruned.n_heads // pruned.n_kv_heads)
        config.intermediate_size = units["mlp_channels"]
        if hasattr(config, WIDTHS_KEY):
            delattr(config, WIDTHS_KEY)
    else:
        setattr(config, WIDTHS_KEY, {group.name: group.n_units for group in pruned.groups})
