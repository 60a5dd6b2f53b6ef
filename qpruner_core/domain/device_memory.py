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
    """What the forward pass keeps for the backward pass, logits included."""
    workspace: int
    """The largest weight, dequantised while it is used."""

    @property
    def total(self) -> int:
        """Bytes of all of them."""
        return self.weights + self.adapter + self.activations + self.workspace


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

    With c bytes per activation, T tokens per step, hidden width H and per layer Q query, K
    key-value and M MLP entries, the forward pass keeps per token and layer

        c (4 H)             the inputs of both norms and their outputs, which the projections read
        + 4 (2 H)           the norms' own float32 copies, where c is not 4 already
        + c (2 Q + 2 K) rotated queries and keys, values, and the attention output that `o_proj`
        reads + c (4 M) gate, its activation, up and their product, which `down_proj` reads + c r n
        the inner results of n adapters of rank r

    and once per token the logits: V (c + 4 + 4) for the compute dtype, the float32 copy and its
    gradient.
    """
    tokens = load.batch_size * load.sequence_length
    c, hidden = load.compute_bytes, layout.hidden_size
    norms = 4 * hidden * c + (8 * hidden if c < 4 else 0)
    inner = sum(_kept_outputs(linear) for linear in layout.linears)
    per_token = (
        layout.n_layers * norms
        + c * inner
        + c * load.rank * len(layout.linears)
        + layout.vocab_size * (c + 8)
    )
    adapter = load.rank * sum(x.in_features + x.out_features for x in layout.linears)
    return TrainingBytes(
        weights=plan_bytes(layout, plan, formats),
        adapter=adapter * _ADAPTER_BYTES,
        activations=tokens * per_token,
        workspace=_dequantised(layout, c),
    )


def _kept_outputs(linear: LinearLayout) -> int:
    """Entries per token kept on account of a Linear: its own output, or what is computed from
    it.
    """
    copies = {"q_proj": 2, "k_proj": 1, "v_proj": 1, "gate_proj": 2, "up_proj": 2}
    return copies.get(linear.role, 0) * linear.out_features


def _dequantised(layout: ModelLayout, compute_bytes: int) -> int:
    return compute_bytes * max(x.out_features * x.in_features for x in layout.linears)
