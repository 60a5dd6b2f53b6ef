"""One table of families for the laws of layouts and surgery: what each is built from, and how its
variants differ.

A family added to the catalogue gets its row here. Plans are made from a layout alone, so that no
law names a module.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from qpruner_core.catalog import ARCHITECTURES
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PrecisionPlan, PruningPlan
from qpruner_core.export.checkpoint import FILES
from qpruner_core.export.config import auto_map, config_values
from qpruner_core.export.weights import as_published, stored_tensors, write_weights
from qpruner_core.models.experts import split_experts_

BASE: Mapping[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": None,
    "pad_token_id": 0,
}
"""What most families are built from: two layers, eight query heads on four KV heads of four
entries."""
WINDOW = 5
"""Tokens a sliding layer looks back; `IDS` are longer."""
IDS = torch.randint(1, 48, (2, 12), generator=torch.Generator().manual_seed(0))


def _as_it_is(model: nn.Module) -> nn.Module:
    return model


def _split(model: Any) -> Any:
    layout = ARCHITECTURES.target(model.config.model_type).layout(model.config.to_dict())
    split_experts_(model, layout)
    return model


@dataclass(frozen=True, kw_only=True)
class Family:
    """How a family's models are built for the laws."""

    config: Mapping[str, Any] = field(default_factory=dict)
    """What every variant has beyond the base."""
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"plain": {}})
    """Variant -> what its config has beyond that."""
    base: Mapping[str, Any] = field(default_factory=lambda: BASE)
    """Sizes, where the family calls them otherwise."""
    attention: str = "sdpa"
    """Attention implementation; ``"eager"`` where only that one does all the family can."""
    in_memory: Callable[[nn.Module], nn.Module] = _as_it_is
    """What loading does with a model of stock transformers before the line sees it."""


FAMILIES: Mapping[str, Family] = {
    "mixtral": Family(
        config={"num_local_experts": 6, "intermediate_size": 24},
        variants={"plain": {}, "with a window": {"sliding_window": WINDOW, "head_dim": 8}},
        in_memory=_split,
    ),
    "qwen3_moe": Family(
        config={"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
        variants={
            "plain": {},
            "with weights summing to one": {"norm_topk_prob": True, "attention_bias": True},
            "with a dense layer": {"mlp_only_layers": [0]},
            "with every second layer sparse": {"decoder_sparse_step": 2, "head_dim": 8},
        },
        in_memory=_split,
    ),
    "llama": Family(
        variants={
            "plain": {"head_dim": 8},
            "tied": {"tie_word_embeddings": True},
            "with biases": {"attention_bias": True, "mlp_bias": True},
            "without grouping": {"num_key_value_heads": 8},
            "with one KV head": {"num_key_value_heads": 1},
        }
    ),
    "mistral": Family(
        config={"sliding_window": WINDOW},
        variants={
            "plain": {},
            "with narrow heads": {"head_dim": 2},
            "with wide heads": {"head_dim": 16},
            "with a key it ignores": {"attention_bias": True},
        },
    ),
    "qwen2": Family(
        variants={
            "plain": {},
            "tied": {"tie_word_embeddings": True},
            "with a sliding layer": {
                "use_sliding_window": True,
                "sliding_window": WINDOW,
                "max_window_layers": 1,
            },
        }
    ),
    "qwen3": Family(
        config={"head_dim": 8},
        variants={"plain": {}, "with biases": {"attention_bias": True}},
    ),
    "gemma2": Family(
        config={
            "head_dim": 8,
            "query_pre_attn_scalar": 6,
            "sliding_window": WINDOW,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
        variants={
            "plain": {},
            "untied, with biases": {"tie_word_embeddings": False, "attention_bias": True},
            "with one KV head and no caps": {
                "num_key_value_heads": 1,
                "attn_logit_softcapping": None,
                "final_logit_softcapping": None,
            },
        },
        attention="eager",
    ),
    "gemma3_text": Family(
        config={
            "head_dim": 8,
            "query_pre_attn_scalar": 6,
            "sliding_window": WINDOW,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
                "full_attention": {"rope_type": "default", "rope_theta": 1000.0},
            },
        },
        variants={
            "plain": {"layer_types": ["sliding_attention", "full_attention"]},
            "with a full layer first": {
                "layer_types": ["full_attention", "sliding_attention"],
                "final_logit_softcapping": 3.0,
            },
            "by its own pattern": {"attention_bias": True},
        },
    ),
    "phi3": Family(
        variants={
            "plain": {},
            "with a window and half-turned heads": {
                "sliding_window": WINDOW,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 100.0,
                    "partial_rotary_factor": 0.5,
                },
            },
            "with long rotary factors": {
                "original_max_position_embeddings": 8,
                "rope_parameters": {
                    "rope_type": "longrope",
                    "rope_theta": 100.0,
                    "short_factor": [1.0, 1.5],
                    "long_factor": [2.0, 3.0],
                },
            },
            "tied, without grouping": {"tie_word_embeddings": True, "num_key_value_heads": 8},
        }
    ),
    "olmo2": Family(
        variants={
            "plain": {},
            "with biases and no grouping": {"attention_bias": True, "num_key_value_heads": 8},
            "tied": {"tie_word_embeddings": True},
        }
    ),
    "smollm3": Family(
        config={"no_rope_layers": [1, 0]},
        variants={
            "plain": {},
            "untied, with biases": {
                "tie_word_embeddings": False,
                "attention_bias": True,
                "mlp_bias": True,
            },
            "with a sliding layer": {
                "no_rope_layers": [0, 1],
                "use_sliding_window": True,
                "sliding_window": WINDOW,
            },
        },
    ),
    "granite": Family(
        config={
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.4,
            "logits_scaling": 2.0,
        },
        variants={
            "plain": {},
            "tied, with biases": {
                "tie_word_embeddings": True,
                "attention_bias": True,
                "mlp_bias": True,
            },
        },
    ),
    "gpt_neox": Family(
        variants={
            "plain": {},
            "one block after the other": {"use_parallel_residual": False, "rotary_pct": 1.0},
            "tied and without attention biases": {
                "attention_bias": False,
                "tie_word_embeddings": True,
            },
        }
    ),
    "opt": Family(
        config={"ffn_dim": 64, "init_std": 0.3},
        variants={
            "plain": {},
            "with later norms and a narrow embedding": {
                "do_layer_norm_before": False,
                "word_embed_proj_dim": 16,
            },
            "bare": {
                "enable_bias": False,
                "layer_norm_elementwise_affine": False,
                "tie_word_embeddings": False,
            },
        },
    ),
    "gpt2": Family(
        base={
            "vocab_size": 48,
            "n_embd": 32,
            "n_inner": 64,
            "n_layer": 2,
            "n_head": 8,
            "n_positions": 64,
            "initializer_range": 0.3,
            "bos_token_id": 0,
            "eos_token_id": None,
            "pad_token_id": 0,
        },
        variants={
            "plain": {},
            "with its own MLP width": {"n_inner": None},
            "untied": {"tie_word_embeddings": False},
        },
    ),
}
CASES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    f"{name} {variant}": (name, {**family.base, **family.config, **changes})
    for name, family in FAMILIES.items()
    for variant, changes in family.variants.items()
}
"""Name of a case -> family, config."""


FIRST = [f"{name} {next(iter(family.variants))}" for name, family in FAMILIES.items()]
"""One case of every family, for laws that no variant could break alone."""


@cache
def built(case: str) -> Any:
    """Return the model of a case, the same one every time: a copy is for a test to change."""
    return build(case)


def build(case: str, **changes: Any) -> Any:
    """Return the model of a case, as the line has it in memory; changes go into its config."""
    name, values = CASES[case]
    config = AutoConfig.for_model(name, **{**values, **changes})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation=FAMILIES[name].attention, dtype=torch.float64
    )
    stir_(model)
    return FAMILIES[name].in_memory(model).eval()


@torch.no_grad()
def stir_(model: nn.Module) -> None:
    """Move biases and norms off the zeros and ones they start with, so that all of them matter."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.normal_()
        elif parameter.dim() == 1:
            parameter.add_(0.3 * torch.randn_like(parameter))


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    """Return the logits of a full forward, without a cache."""
    with torch.no_grad():
        answer: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return answer


def uneven(layout: ModelLayout) -> PruningPlan:
    """Return a plan after which no two layers agree on a width they share a kind of."""
    kept = {}
    for group in layout.groups:
        n = group.n_units
        if group.layer % 2:
            units = range(n * 5 // 8) if n > 8 else range(n // 2 if n > 2 else 0, n)
        else:
            units = range(1, n, 3) if n > 8 else range(min(1, n - 1), n)
        kept[group.name] = tuple(units)
    return _thinned(layout, kept)


def even(layout: ModelLayout, kinds: tuple[str, ...] | None = None) -> PruningPlan:
    """Return a plan that keeps half the units of every group, others in every layer.

    Args:
        layout: Layout before pruning.
        kinds: Kinds that lose units; None for all.
    """
    kept = {}
    for group in layout.groups:
        n = group.n_units
        if kinds is None or group.kind in kinds:
            half = range(n // 2, n // 2 + (n + 1) // 2) if group.layer % 2 else range(0, n, 2)
            kept[group.name] = tuple(half) if n > 1 else (0,)
    return _thinned(layout, kept, shape="uniform")


def _thinned(
    layout: ModelLayout, kept: Mapping[str, tuple[int, ...]], shape: str = "per-layer"
) -> PruningPlan:
    """Return the plan without groups that lose nothing."""
    loses = {
        name: units for name, units in kept.items() if len(units) < layout.group(name).n_units
    }
    return PruningPlan(kept=loses, shape=shape)


def outputs(layout: ModelLayout) -> list[str]:
    """Return the Linears through which units enter the residual stream, in forward order."""
    ends = {part.tensor for group in layout.groups for part in group.slices if part.is_input}
    return [linear.name for linear in layout.linears if f"{linear.name}.weight" in ends]


def save(model: Any, pruned: ModelLayout, folder: Path, *, remote_code: bool) -> Path:
    """Write weights in float64, config and, if asked, the code that travels with a checkpoint."""
    folder.mkdir()
    stored = stored_tensors(model, PrecisionPlan(precisions={}), torch.float64)
    write_weights(stored if remote_code else as_published(stored, pruned.model_type), folder)
    values = config_values(model, pruned, torch.float64)
    if remote_code:
        values["auto_map"] = auto_map(pruned.model_type, "modeling_qpruner")
        shutil.copyfile(FILES / "modeling_qpruner.py", folder / "modeling_qpruner.py")
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def reopen(
    folder: Path, family: str, *, remote_code: bool, dtype: torch.dtype = torch.float64
) -> Any:
    """Return the model that stock transformers opens, in eval mode."""
    again, report = AutoModelForCausalLM.from_pretrained(
        folder,
        trust_remote_code=remote_code,
        dtype=dtype,
        attn_implementation=FAMILIES[family].attention,
        output_loading_info=True,
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    if dtype == torch.float64 and again._can_set_experts_implementation():
        again.set_experts_implementation("eager")  # the usual one knows no float64
    return again.eval()
