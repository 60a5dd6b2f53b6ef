"""Decoders whose layers differ from what their config can say: the plain class, reshaped.

This file travels with the checkpoint and is named in ``auto_map`` of its ``config.json``; it needs
transformers alone. The config key ``qpruner_modules`` says what differs, module by module:

    {"model.layers.0.mlp.up_proj": {"shape": [320, 192], "bias": false},
     "model.layers.0.self_attn": {"attributes": {"num_key_value_groups": 2},
                                  "config": {"num_key_value_heads": 3}},
     "model.layers.1.mlp": {"experts": {"count": 5, "logits": 8}}}

``shape`` is (outputs, inputs) whatever the module stores. ``attributes`` are set where the module
has them; ``config`` goes into a copy of the config that the module then has to itself, as families
read their numbers of heads there. ``experts`` says how many stay in a sparse block, and how many
logits its router states.

Plain classes keep the experts of a layer in two fused tensors. Here every expert is a gated MLP of
three Linears, so that each can have a width and a precision of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
import transformers
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

MODULES_KEY = "qpruner_modules"
"""Config key: module name -> how it differs from what the plain class builds."""
PREFIX = "QPruner"
"""What our classes put before the name of the plain one."""


FUSED = ("MixtralExperts", "Qwen3MoeExperts")
"""Classes of transformers that fuse gated experts: ``gate_up_proj`` (E, 2 I, H), gate before up,
and ``down_proj`` (E, H, I)."""


SPLIT = "_split"
"""What the type of a live model ends in once its experts are taken apart."""


class Expert(nn.Module):
    """A gated MLP: ``down(act(gate(x)) * up(x))``."""

    def __init__(self, gate: Any, up: Any, down: Any, act_fn: Any) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = gate, up, down
        self.act_fn = act_fn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the expert makes of tokens (..., H); same shape."""
        out: torch.Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return out


class Experts(nn.ModuleList):
    """The experts of a layer as a list: deleting one renumbers the others."""

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Return the weighted sum of what the chosen experts make of every token.

        Args:
            hidden_states: Tokens (T, H).
            top_k_index: Experts chosen for every token (T, K), each at most once.
            top_k_weights: Their weights (T, K).
        """
        out = torch.zeros_like(hidden_states)
        for index in sorted(set(top_k_index.flatten().tolist())):
            token, place = torch.where(top_k_index == index)
            made = self[index](hidden_states[token]) * top_k_weights[token, place, None]
            out.index_add_(0, token, made.to(out.dtype))
        return out


def _linear(weight: torch.Tensor, *, trains: bool) -> nn.Linear:
    """Return a Linear with a copy of that weight, (outputs, inputs), on the same device."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.detach().clone(), requires_grad=trains)
    return linear


def _take_apart(fused: Any) -> Experts:
    """Return the experts of a fused module one by one; the module is left without weights.

    Beside the model itself, one fused tensor of one layer is held twice at most.
    """
    trains = fused.gate_up_proj.requires_grad
    halves = [weight.chunk(2) for weight in fused.gate_up_proj.detach()]
    inward = [[_linear(half, trains=trains) for half in pair] for pair in halves]
    del fused.gate_up_proj, halves
    outward = [_linear(weight, trains=trains) for weight in fused.down_proj.detach()]
    del fused.down_proj
    return Experts(
        Expert(gate, up, down, fused.act_fn)
        for (gate, up), down in zip(inward, outward, strict=True)
    )


def split_fused_(model: Any) -> int:
    """Replace the fused experts of every layer by `Experts`, in place; return how many layers had
    any.

    The live config gets a ``model_type`` of its own, ending in `SPLIT`, which no file ever
    carries: by that name transformers would fuse tensors that it reads, and PEFT would look for
    adapters at the fused ones.
    """
    fused = [name for name, module in model.named_modules() if type(module).__name__ in FUSED]
    for name in fused:
        model.set_submodule(name, _take_apart(model.get_submodule(name)))
    if fused:
        model.config.model_type = type(model.config).model_type + SPLIT
    return len(fused)


class StatesMore:
    """Mixin before a router class: logits of experts that left are stated as minus infinity, so
    that every layer states equally many.
    """

    n_logits: int

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return logits (T, n_logits), weights (T, K) and indices (T, K)."""
        logits, *chosen = super().forward(hidden_states)  # type: ignore[misc]
        gone = self.n_logits - logits.shape[-1]
        return functional.pad(logits, (0, gone), value=-torch.inf), *chosen


@cache
def stating_more(router_class: type) -> type:
    """Return a router class that states as many logits as its ``n_logits`` says."""
    return type(router_class.__name__, (StatesMore, router_class), {"__module__": __name__})


def tell_experts_(block: Any, count: int, logits: int) -> None:
    """Leave so many experts in a sparse block, and rows in its router, in place.

    Rows that were not sliced before are empty then.
    """
    del block.experts[count:]
    router = block.gate
    rows, hidden = router.weight.shape
    if rows != count:
        router.weight = nn.Parameter(router.weight.new_empty(count, hidden))
    router.num_experts = count
    if logits > count and not isinstance(router, StatesMore):
        plain: Any = type(router)
        router.__class__ = stating_more(plain)
    router.n_logits = logits


def resized(linear: Any, out_features: int, in_features: int, *, bias: bool) -> Any:
    """Return a Linear or Conv1D of that shape with the dtype and device of another, its weights
    empty; the same one when nothing differs.
    """
    transposed = isinstance(linear, Conv1D)
    shape = (in_features, out_features) if transposed else (out_features, in_features)
    if tuple(linear.weight.shape) == shape and (linear.bias is not None) == bias:
        return linear
    place = {"device": linear.weight.device, "dtype": linear.weight.dtype}
    if not transposed:
        return nn.Linear(in_features, out_features, bias, **place)
    plain: Any = Conv1D(out_features, in_features)  # type: ignore[no-untyped-call]
    return plain.to(**place)


def tell_(module: Any, told: Mapping[str, Any]) -> None:
    """Set the attributes a module has, and the entries of a config of its own, in place."""
    for attribute, value in told.get("attributes", {}).items():
        if hasattr(module, attribute):
            setattr(module, attribute, value)
    if "experts" in told:
        tell_experts_(module, **told["experts"])
    if told.get("config") and hasattr(module, "config"):
        module.config = copy.copy(module.config)
        for key, value in told["config"].items():
            setattr(module.config, key, value)


def reshape_(model: Any, modules: Mapping[str, Mapping[str, Any]]) -> None:
    """Give every named module the shape or the attributes that it is told, in place."""
    for name, told in modules.items():
        parent, _, leaf = name.rpartition(".")
        module = model.get_submodule(name)
        if "shape" in told:
            owner = model.get_submodule(parent)
            setattr(owner, leaf, resized(module, *told["shape"], bias=told["bias"]))
        else:
            tell_(module, told)


class Reshaped:
    """Mixin before a plain decoder class: reshapes it by its config once it is built."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        split_fused_(self)
        reshape_(self, getattr(config, MODULES_KEY, None) or {})


@cache
def model_class(name: str) -> type:
    """Return the reshaped class of that name, such as ``QPrunerLlamaForCausalLM``.

    Raises:
        AttributeError: The name has another form, or transformers has no such plain class.
    """
    if not name.startswith(PREFIX):
        raise AttributeError(f"There is no {name!r} here, only {PREFIX}<class of transformers>.")
    plain = getattr(transformers, name.removeprefix(PREFIX))
    text = f"{plain.__name__} with a width of its own in every layer."
    return type(name, (Reshaped, plain), {"__module__": __name__, "__doc__": text})


def __getattr__(name: str) -> Any:
    """Make the class that ``auto_map`` names when it is asked for."""
    return model_class(name)
