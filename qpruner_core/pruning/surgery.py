"""From a plan to a smaller model: the tensors a layout names lose what the plan drops, in place.

All that is to be sliced is known from the layout, so nothing here asks what family a model is of.
Everything is checked before the first tensor changes. When all layers end with equal widths that
the stock config accepts, the config says so and the plain class opens the model; else the config
stays dense and lists what differs (`models.telling`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import nn

from qpruner_core.catalog import ARCHITECTURES
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PruningPlan
from qpruner_core.errors import BadInputError, IncompatibleShapeError
from qpruner_core.models.files.modeling_qpruner import tell_
from qpruner_core.models.telling import tell_config_


@torch.no_grad()
def prune_(
    model: nn.Module,
    layout: ModelLayout,
    plan: PruningPlan,
    biases: Mapping[str, torch.Tensor] | None = None,
) -> ModelLayout:
    """Carry a plan out on a model and return the layout it has then.

    Parameters become new ones on the same device, in the same dtype; Linears, attention and MLP
    modules and the model's config are told their new widths. The identity plan changes nothing at
    all.

    Args:
        model: A dense transformer of Linear or Conv1D modules; changed in place.
        layout: Its layout before pruning.
        plan: The units and layers that stay, and the Linears that get a bias.
        biases: Linear of ``plan.biases`` -> what is added to its bias, (out_features,); zeros for
            those not named.

    Raises:
        BadInputError: The plan names groups, units or layers that the layout does not have.
        IncompatibleShapeError: The model's tensors are not those of the layout, or are packed
            already.
    """
    if plan.is_identity:
        return layout
    _check_plan(layout, plan)
    check_model(model, layout)
    changes = _fewer_layers(model, layout, plan)
    for (tensor, axis), keep in kept_entries(layout, plan):
        _slice_(model, tensor, axis, keep)
    for name in plan.biases:
        _add_bias_(model.get_submodule(name), (biases or {}).get(name))
    _drop_modules_(model, layout, plan)
    pruned = layout.pruned(plan)
    for key, value in changes.items():
        setattr(cast("Any", model).config, key, value)
    _tell_(model, pruned)
    return pruned


def _check_plan(layout: ModelLayout, plan: PruningPlan) -> None:
    n_units = {group.name: group.n_units for group in layout.groups}
    wrong = [name for name, kept in plan.kept.items() if kept[-1] >= n_units.get(name, 0)]
    wrong += [f"layer {i}" for i in plan.dropped_layers if i >= layout.n_layers]
    wrong += sorted(set(plan.biases) - {linear.name for linear in layout.linears})
    if wrong:
        raise BadInputError(
            f"The pruning plan keeps units that this model does not have, in "
            f"{', '.join(map(repr, wrong))}. It was made for another model, or this one is pruned "
            f"already. Make a new plan."
        )
    few = [
        group.name
        for group in layout.groups
        if group.kind == "experts"
        and len(plan.kept.get(group.name, group.members)) < layout.experts_per_token
    ]
    if few:
        raise BadInputError(
            f"The pruning plan leaves too few experts in {', '.join(map(repr, few[:3]))}: every "
            f"token goes through {layout.experts_per_token} of them. Keep at least that many."
        )
    if len(plan.dropped_layers) >= layout.n_layers:
        raise BadInputError(
            f"The pruning plan drops all {layout.n_layers} layers; at least one has to stay. Drop "
            "fewer layers."
        )


def check_model(model: nn.Module, layout: ModelLayout) -> None:
    """Refuse a model whose Linears are not those of a layout.

    Raises:
        IncompatibleShapeError: Shapes or biases differ, or weights are packed already.
    """
    modules = dict(model.named_modules())
    wrong = []
    for linear in layout.linears:
        module: Any = modules.get(linear.name)
        weight = getattr(module, "weight", None)
        fits = (
            weight is not None
            and weight.is_floating_point()
            and tuple(weight.shape) == linear.weight_shape
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


def kept_entries(
    layout: ModelLayout, plan: PruningPlan
) -> Iterator[tuple[tuple[str, int], torch.Tensor]]:
    """Yield (tensor name, axis) and the indices that stay along it, all its slices together.

    Tensors that lose nothing do not come up; those of dropped layers and experts may.
    """
    gone: dict[tuple[str, int], list[torch.Tensor]] = {}
    sizes: dict[tuple[str, int], int] = {}
    for group in layout.groups:
        if len(plan.kept.get(group.name, range(group.n_units))) == group.n_units:
            continue
        leaves = torch.ones(group.n_units, dtype=torch.bool)
        leaves[list(plan.kept[group.name])] = False
        units = leaves.nonzero()
        for part in group.slices:
            entries = part.offset + units * part.unit_size + torch.arange(part.unit_size)
            gone.setdefault((part.tensor, part.axis), []).append(entries.flatten())
            sizes[part.tensor, part.axis] = group.n_units * part.unit_size
    linears = {linear.name: linear for linear in layout.linears}
    for (tensor, axis), parts in gone.items():
        module, _, leaf = tensor.rpartition(".")
        size = sizes[tensor, axis]
        if module in linears:
            linear = linears[module]
            size = linear.weight_shape[axis] if leaf == "weight" else linear.out_features
        stays = torch.ones(size, dtype=torch.bool)
        stays[torch.cat(parts)] = False
        yield (tensor, axis), stays.nonzero().flatten()


def _slice_(model: nn.Module, tensor: str, axis: int, keep: torch.Tensor) -> None:
    """Replace a parameter by the entries of an axis that stay, and tell its Linear."""
    name, _, leaf = tensor.rpartition(".")
    module: Any = model.get_submodule(name)
    old = module.get_parameter(leaf)
    kept = old.index_select(axis, keep.to(old.device))
    setattr(module, leaf, nn.Parameter(kept, requires_grad=old.requires_grad))
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif hasattr(module, "nf"):
        module.nx, module.nf = module.weight.shape  # Conv1D keeps (inputs, outputs)


def _add_bias_(module: Any, values: torch.Tensor | None) -> None:
    """Add values to the bias of a Linear, which is made where there is none."""
    weight = module.weight
    if module.bias is None:
        zeros = torch.zeros(module.out_features, dtype=weight.dtype, device=weight.device)
        module.bias = nn.Parameter(zeros, requires_grad=weight.requires_grad)
    if values is not None:
        wide = torch.promote_types(weight.dtype, torch.float32)
        module.bias.copy_(module.bias.to(wide) + values.to(weight.device, wide))


def _drop_modules_(model: nn.Module, layout: ModelLayout, plan: PruningPlan) -> None:
    """Take whole experts and layers out of their lists; those that stay move up."""
    for group in layout.groups:
        if group.members and group.name in plan.kept:
            experts: Any = model.get_submodule(group.members[0].rpartition(".")[0])
            for unit in sorted(set(range(group.n_units)) - set(plan.kept[group.name]))[::-1]:
                del experts[unit]
    layers: Any = model.get_submodule(layout.layer_prefix)
    for layer in plan.dropped_layers[::-1]:
        del layers[layer]
    if plan.dropped_layers:
        for index, layer in enumerate(layers):
            for module in layer.modules():
                if hasattr(module, "layer_idx"):
                    module.layer_idx = index


def _fewer_layers(model: nn.Module, layout: ModelLayout, plan: PruningPlan) -> dict[str, Any]:
    """Return the config entries that change when the plan's layers leave; a family may refuse."""
    if not plan.dropped_layers:
        return {}
    kept = [i for i in range(layout.n_layers) if i not in plan.dropped_layers]
    config = cast("Any", model).config.to_dict()
    return ARCHITECTURES.target(layout.model_type).fewer_layers(config, kept)


def _tell_(model: nn.Module, pruned: ModelLayout) -> None:
    """Tell modules and config the widths that the model has now."""
    architecture = ARCHITECTURES.target(pruned.model_type)
    for group in pruned.groups:
        tell_(model.get_submodule(group.name), architecture.told(pruned, group))
    tell_(model, architecture.told_model(pruned))
    tell_config_(cast("Any", model).config, pruned)
