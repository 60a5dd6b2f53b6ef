"""What a device must hold to run or to fine-tune a model: estimates from a layout alone.

These are called *estimated* wherever they are shown. They leave out what a framework takes for
itself (context, allocator slack), which `inspection.fits` reserves per card.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qpruner_core.domain.footprint import BYTES_16_BIT, PrecisionFormat, plan_bytes
from qpruner_core.domain.layout import LinearLayout, ModelLayout
from qpruner_core.domain.plan import PrecisionPlan

_ADAPTER_BYTES = 4 + 4 + 8
"""Bytes per adapter parameter: float32 weight, its gradient, and Adam's two moments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingLoad:
    """What decides the memory of LoRA training besides the model."""

    rank: int = 8
    """Rank of the adapter of every Linear; >= 1."""
    batch_size: int = 8
    """Sequences per step; >= 1."""
    sequence_length: int = 128
    """Tokens per sequence; >= 1."""
    compute_bytes: int = BYTES_16_BIT
    """Bytes of one activation: 2 on CUDA, 4 on the CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingBytes:
    """Estimated memory of LoRA training, by what it is spent on; bytes."""

    weights: int
    """Frozen packed weights."""
    adapter: int
    """Adapter weights, gradients and optimiser state."""
    activations: int
    """What the layers keep for the backward pass."""
    logits: int
    """Logits in the compute dtype, their log-probabilities in float32, and the gradient of
    those."""
    workspace: int
    """The largest weight, dequantised while it is used."""

    @property
    def total(self) -> int:
        """Bytes of all of them."""
        return self.weights + self.adapter + self.activations + self.logits + self.workspace


def linear_training_bytes(linear: LinearLayout, load: TrainingLoad) -> int:
    """Return what one Linear adds to `TrainingBytes.adapter` and `TrainingBytes.activations`."""
    kept = _kept_bytes(linear, load.compute_bytes, load.rank)
    adapter = load.rank * (linear.in_features + linear.out_features) * _ADAPTER_BYTES
    return load.batch_size * load.sequence_length * kept + adapter


def inference_bytes_estimate(
    layout: ModelLayout,
    plan: PrecisionPlan,
    formats: Mapping[str, PrecisionFormat],
    n_tokens: int = 2048,
) -> int:
    """Return the bytes to read a prompt of ``n_tokens`` and go on from it, one sequence at 16 bit.

    Packed weights + KV cache + the largest moment of a layer: residual, its norm, and the widest
    pair of intermediates (gate and up, or queries and attention output), plus one row of float32
    logits.
    """
    widest = max(linear.out_features for linear in layout.linears)
    moment = n_tokens * (2 * layout.hidden_size + 2 * widest) * BYTES_16_BIT
    return (
        plan_bytes(layout, plan, formats)
        + layout.kv_cache_bytes(n_tokens)
        + moment
        + _dequantised(layout, BYTES_16_BIT)
        + 4 * layout.vocab_size
    )


def training_bytes_estimate(
    layout: ModelLayout,
    plan: PrecisionPlan,
    formats: Mapping[str, PrecisionFormat],
    load: TrainingLoad,
) -> TrainingBytes:
    """Return the estimated memory of LoRA training on every Linear, without gradient
    checkpointing.

    Adapters are float32 and attention is fused, as PEFT and PyTorch do by default. With c bytes
    per activation, T tokens per step, hidden width H and in a layer Q query, K key and M MLP
    entries, the layers keep per token

        4 (2 H)            what both norms read, in float32
        c (Q + 2 K + 3 M)  queries, keys, values; gate, its activation, up
        4 (2 H + Q + M)    what the adapters read; where c is not 4, a float32 copy for each of the
                           seven, 4 (5 H + Q + M), and the attention's output, c Q, beside it
        4 r n              the inner results of n adapters of rank r

    and at the end 4 H for the last norm and V (c + 4 + 4) for the logits. Families without a
    gate or with fused projections keep other multiples, `_KEPT_OUTPUTS`; masks of dropout and
    norms beyond two a layer are left out. A test compares this with what the graph really keeps.
    """
    tokens, c = load.batch_size * load.sequence_length, load.compute_bytes
    kept = sum(_kept_bytes(linear, c, load.rank) for linear in layout.linears)
    norms = 4 * layout.hidden_size * (2 * layout.n_layers + 1)
    adapter = load.rank * sum(x.in_features + x.out_features for x in layout.linears)
    return TrainingBytes(
        weights=plan_bytes(layout, plan, formats),
        adapter=adapter * _ADAPTER_BYTES,
        activations=tokens * (kept + norms),
        logits=tokens * layout.vocab_size * (c + 4 + 4),
        workspace=_dequantised(layout, c),
    )


_KEPT_OUTPUTS: Mapping[str, float] = {
    "q_proj": 1,
    "k_proj": 1,
    "v_proj": 1,
    "gate_proj": 2,
    "up_proj": 1,
    # Parts of a fused output are seen in it: it stays whole beside what is made of its parts.
    "qkv_proj": 5 / 3,
    "query_key_value": 5 / 3,
    "c_attn": 1,
    "gate_up_proj": 1.5,
    # Input of a GELU in one step; of one written out in four. A ReLU needs its result alone.
    "dense_h_to_4h": 1,
    "c_fc": 4,
}
"""Role -> how often entries as many as its output are kept in the compute dtype."""
_ATTENTION_OUT = ("o_proj", "dense", "out_proj", "c_proj")
"""Roles that read attention's output, where their block is attention."""
_SHARES_INPUT = ("k_proj", "v_proj", "up_proj")
"""Roles that read the very tensor that the Linear before them reads."""


def _kept_bytes(linear: LinearLayout, compute_bytes: int, rank: int) -> int:
    """Return what one Linear and its adapter keep per token."""
    entries = int(_KEPT_OUTPUTS.get(linear.role, 0) * linear.out_features)
    kept = compute_bytes * entries + 4 * rank
    if compute_bytes < 4:
        reads_attention = linear.block == "attention" and linear.role in _ATTENTION_OUT
        beside = compute_bytes * linear.in_features if reads_attention else 0
        return kept + 4 * linear.in_features + beside
    return kept if linear.role in _SHARES_INPUT else kept + 4 * linear.in_features


def _dequantised(layout: ModelLayout, compute_bytes: int) -> int:
    return compute_bytes * max(x.out_features * x.in_features for x in layout.linears)
