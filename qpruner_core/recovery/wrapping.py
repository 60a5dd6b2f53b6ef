"""Adapters put around the Linears of a model, where they start, and taken off without a trace."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from qpruner_core.domain.adapters import adapter_ranks
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.recovery.adapter import ADAPTER
from qpruner_core.recovery.initialization import Start


def add_adapters_(
    model: Any, layout: ModelLayout, spec: RecoverySpec, starts: Mapping[str, Start] | None = None
) -> Any:
    """Wrap Linears and Conv1Ds of the decoder layers with a LoRA adapter, in place, and freeze the
    rest.

    Args:
        model: Pruned decoder, dense or packed.
        layout: Its layout.
        spec: Ranks, alpha, dropout, and which Linears.
        starts: Linear name -> where its adapter starts; of all others B = 0.

    Returns:
        The PEFT model; its adapters are float32 whatever the model computes in.

    Raises:
        BadInputError: A role or a layer is asked for that the model has not.
    """
    for module in model.modules():
        # On CPUs with AVX512_BF16 an evaluating forward of a 4-bit module would repack its weight
        # in place and cut off the gradients of every later training step.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    config = _config(layout, spec)
    # Without this PEFT takes its generic wrapper for 4-bit modules.
    model.is_loaded_in_4bit = True
    with warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5 by a name that it has since changed; it works.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        # It settles module by module which way round a weight is stored, and says so every time.
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to", UserWarning)
        wrapped = get_peft_model(model, config)
    for name, start in (starts or {}).items():
        _begin_(model.get_submodule(name), start)
    return wrapped


@contextmanager
def adapted(
    model: nn.Module,
    layout: ModelLayout,
    spec: RecoverySpec,
    starts: Mapping[str, Start] | None = None,
) -> Iterator[nn.Module]:
    """Let the model compute with adapters in a block; afterwards it is as it was, object by
    object.

    Its Linears are the very same, so that whoever holds them may go on using them. Arguments are
    those of `add_adapters_`.
    """
    attributes, asked = dict(vars(model)), {p: p.requires_grad for p in model.parameters()}
    modes = {module: module.training for module in model.modules()}
    try:
        add_adapters_(model, layout, spec, starts)
        yield model
    finally:
        for linear in layout.linears:
            module: Any = model.get_submodule(linear.name)
            if hasattr(module, "base_layer"):
                model.set_submodule(linear.name, module.base_layer)
        vars(model).clear()
        vars(model).update(attributes)
        for parameter, takes_gradient in asked.items():
            parameter.requires_grad_(takes_gradient)
            parameter.grad = None
        for module, mode in modes.items():
            module.training = mode


def _config(layout: ModelLayout, spec: RecoverySpec) -> LoraConfig:
    """Return PEFT's words for the ranks; every adapter is scaled by alpha over its own."""
    ranks = adapter_ranks(spec, layout)
    by_layer = {x.layer: ranks[x.name] for x in layout.linears if x.name in ranks}
    all_of_them = len(ranks) == len(layout.linears)
    return LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,  # type: ignore[arg-type]  # only ever divided by the rank
        lora_dropout=spec.dropout,
        target_modules=sorted({x.role for x in layout.linears}) if all_of_them else list(ranks),
        rank_pattern={
            rf"{layout.layer_prefix}\.{layer}\..*": rank
            for layer, rank in by_layer.items()
            if rank != spec.rank
        },
        bias="none",
        task_type="CAUSAL_LM",
    )


@torch.no_grad()
def _begin_(module: Any, start: Start) -> None:
    """Write where an adapter starts into it; rows beyond those of the start begin as LoRA's do."""
    if start.adapter is None:
        return
    a, b = module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight
    rank = start.adapter.a.shape[0]
    a[:rank] = start.adapter.a.to(a)
    b.zero_()
    b[:, :rank] = start.adapter.b.to(b)
