"""Decoders whose layers differ from what their config can say: the plain class, reshaped.

This file travels with the checkpoint and is named in ``auto_map`` of its ``config.json``; it needs
transformers alone. The config key ``qpruner_modules`` says what differs, module by module:

    {"model.layers.0.mlp.up_proj": {"shape": [320, 192], "bias": false},
     "model.layers.0.self_attn": {"attributes": {"num_key_value_groups": 2},
                                  "config": {"num_key_value_heads": 3}}}

``shape`` is (outputs, inputs) whatever the module stores. ``attributes`` are set where the module
has them; ``config`` goes into a copy of the config that the module then has to itself, as families
read their numbers of heads there.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cache
from typing import Any

import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

MODULES_KEY = "qpruner_modules"
"""Config key: module name -> how it differs from what the plain class builds."""
PREFIX = "QPruner"
"""What our classes put before the name of the plain one."""


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
