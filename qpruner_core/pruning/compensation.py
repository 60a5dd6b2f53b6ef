"""What removed units gave on average stays in the model as a bias of the projection they entered.

Of a projection ``y = W x`` that loses the inputs R, ``b = W[:, R] mean(x[R])`` over calibration
text is added to the bias: the mean of y is then what it was, and of all constants this one leaves
the smallest squared error. FLAP (An et al., arXiv:2312.11983, section 3.3) takes the means of the
dense model. `settled_statistics` takes those of the model as it is pruned so far: the inputs of a
layer are what the layers before it, pruned and compensated already, hand it, so that the mean is
right where the bias is used. docs/decisions/0013 has the comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from qpruner_core.domain.layout import ModelLayout, Renaming
from qpruner_core.domain.plan import PruningPlan
from qpruner_core.models.inputs import (
    InputStats,
    evaluating,
    micro_batches,
    require_finite,
    require_text,
    watching,
)
from qpruner_core.models.trunk import LayerInputs, first_inputs, run_layers
from qpruner_core.pruning.biases import bias_remarks, compensated, with_biases
from qpruner_core.pruning.surgery import kept_entries

__all__ = [
    "bias_remarks",
    "bias_values",
    "compensated",
    "removed_inputs",
    "round_biases_",
    "rounded_bias",
    "settled_statistics",
    "with_biases",
]

_STORED = {"F16": (torch.float16,), "BF16": (torch.bfloat16,)}
_EITHER = (torch.bfloat16, torch.float16)
"""Rounded twice, a value is one of both: the export of a 32-bit model takes either."""


def removed_inputs(layout: ModelLayout, plan: PruningPlan) -> dict[str, torch.Tensor]:
    """Return Linear -> the indices of its inputs that leave, int64 ascending, for those that stay
    and lose some.
    """
    losing = set(compensated(layout, plan))
    sizes = {linear.name: linear.in_features for linear in layout.linears}
    ends = {(p.tensor, p.axis) for group in layout.groups for p in group.slices if p.is_input}
    found = {}
    for key, stays in kept_entries(layout, plan):
        name = key[0].rpartition(".")[0]
        if key in ends and name in losing:
            leaves = torch.ones(sizes[name], dtype=torch.bool)
            leaves[stays] = False
            found[name] = leaves.nonzero().flatten()
    return {name: found[name] for name in compensated(layout, plan)}


@torch.no_grad()
def bias_values(
    model: nn.Module, layout: ModelLayout, plan: PruningPlan, stats: Mapping[str, InputStats]
) -> dict[str, torch.Tensor]:
    """Return Linear -> what its bias gains, float32 (out_features,), on the CPU.

    Args:
        model: The dense model.
        layout: Its layout.
        plan: Units and layers that stay; its ``biases`` are not read.
        stats: Moments of the inputs of every Linear that loses some; an expert that no token
            reached gains zeros.
    """
    transposed = {linear.name: linear.transposed for linear in layout.linears}
    values = {}
    for name, removed in removed_inputs(layout, plan).items():
        weight = model.get_submodule(name).get_parameter("weight")
        columns = weight.index_select(0 if transposed[name] else 1, removed.to(weight.device))
        means = stats[name].mean[removed.to(stats[name].mean.device)].to(weight.device)
        # In float64 where the weights or the means are: tests compare at that precision.
        wide = torch.promote_types(means.dtype, torch.float32)
        rows = columns.T if transposed[name] else columns  # (out, removed)
        values[name] = (rows.to(wide) @ means.to(wide)).float().cpu()
    return values


@torch.no_grad()
def settled_statistics(
    model: nn.Module,
    layout: ModelLayout,
    plan: PruningPlan,
    ids: torch.Tensor,
    on_layer: Callable[[int], None] = lambda layer: None,
) -> dict[str, InputStats]:
    """Return the moments of what enters every Linear that loses inputs, all before it pruned.

    The dense model runs layer by layer. What a projection loses is not cut but replaced by its
    mean on the way in, which is what the bias will do, so no weight is touched. A layer runs up
    to three times: for the mean of attention, that of the MLP given it, and its output; the
    hidden states of the whole text are held. Routers still choose among all experts, also those
    that will leave.

    Args:
        model: The dense model; left as found.
        layout: Its layout.
        plan: Units and layers that stay.
        ids: Calibration tokens, int64 (n, T), on any device.
        on_layer: Told the index of every finished layer.

    Raises:
        DataTooShortError: There is no token.
        NonFiniteLossError: What enters a Linear is not finite.
    """
    ids = require_text(ids.to(next(model.parameters()).device))
    removed = removed_inputs(layout, plan)
    stats: dict[str, InputStats] = {}
    with evaluating(model):
        batches = [first_inputs(model, layout, batch) for _, batch in micro_batches(ids)]
        for layer in range(layout.n_layers):
            if layer not in plan.dropped_layers:
                run = partial(_run, model, layout, layer)
                with ExitStack() as replaced:
                    for names in _stages(layout, layer, removed):
                        found = _watched(model, names, batches, run)
                        stats |= found
                        for name in names:
                            mean = found[name].mean[removed[name].to(found[name].mean.device)]
                            module = model.get_submodule(name)
                            replaced.enter_context(_standing_in(module, removed[name], mean))
                    for index, inputs in enumerate(batches):
                        batches[index] = inputs.at(run(inputs))  # one by one: all are held once
            on_layer(layer)
    return stats


@torch.no_grad()
def round_biases_(
    model: nn.Module, layout: ModelLayout, plan: PruningPlan, stored_dtype: str
) -> None:
    """Round the biases that a plan added to what the model's files can hold, in place.

    The line compares models *at 16 bit*; a sum of a bias and a mean is one only after rounding.

    Args:
        model: The pruned model.
        layout: Its layout before pruning.
        plan: The plan that was carried out.
        stored_dtype: `ModelCard.dtype` of the dense model.
    """
    new_name = Renaming(layout, plan)
    for name in plan.biases:
        bias = model.get_submodule(str(new_name(name))).get_parameter("bias")
        bias.copy_(rounded_bias(bias, stored_dtype))


def rounded_bias(bias: torch.Tensor, stored_dtype: str) -> torch.Tensor:
    """Return a bias as the files of a model of that dtype can hold it, in its own dtype.

    Of a 32-bit model, values beyond float16 stay as bfloat16 has them, which its files then take
    (`export.config.storage_dtype`).
    """
    for dtype in _STORED.get(stored_dtype, _EITHER):
        rounded = bias.to(dtype).to(bias.dtype)
        bias = rounded if stored_dtype in _STORED else torch.where(rounded.isinf(), bias, rounded)
    return bias


def _stages(
    layout: ModelLayout, layer: int, removed: Mapping[str, torch.Tensor]
) -> Iterator[list[str]]:
    """Yield the projections of a layer that lose inputs, block by block."""
    for block in ("attention", "mlp"):
        here = [
            linear.name
            for linear in layout.linears
            if (linear.layer, linear.block) == (layer, block) and linear.name in removed
        ]
        if here:
            yield here


def _run(model: nn.Module, layout: ModelLayout, layer: int, inputs: LayerInputs) -> torch.Tensor:
    return run_layers(model, layout, inputs, layer, layer + 1)


def _watched(
    model: nn.Module,
    names: Sequence[str],
    batches: Sequence[LayerInputs],
    run: Callable[[LayerInputs], torch.Tensor],
) -> dict[str, InputStats]:
    with watching({name: model.get_submodule(name) for name in names}) as stats:
        for inputs in batches:
            run(inputs)
    return require_finite(stats)


@contextmanager
def _standing_in(module: nn.Module, removed: torch.Tensor, mean: torch.Tensor) -> Iterator[None]:
    """Inside, a Linear finds the mean in place of the inputs that leave."""

    def replace_inputs(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        inputs = args[0].clone()
        inputs[..., removed.to(inputs.device)] = mean.to(inputs)
        return (inputs, *args[1:])

    handle = module.register_forward_pre_hook(replace_inputs)
    try:
        yield
    finally:
        handle.remove()
