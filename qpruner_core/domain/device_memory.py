"""What a device must hold to run or to fine-tune a model: estimates from a layout alone.

These are called *estimated* wherever they are shown. They leave out what a framework takes for
itself (context, allocator slack), which `inspection.fits` reserves per card.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from qpruner_core.domain.footprint import BYTES_16_BIT, PrecisionFormat, plan_bytes
from qpruner_core.domain.layout import LinearLayout, ModelLayout
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.recovery import RecoverySpec

LOGITS_AT_ONCE = 2**22
"""Entries of the logits that gradient checkpointing holds at a time."""
_LOGIT_BYTES = 4 + 4 + 4
"""Bytes per logit at the widest moment of the backward pass of the cross-entropy."""
_WEIGHT_AND_GRADIENT = 4 + 4
"""Bytes per adapter parameter besides the optimiser's state; both are float32."""
_FULL_STATE = 8
"""Bytes per parameter of two float32 moments."""
_SMALL_TENSOR, _BLOCK = 4096, 256
"""8-bit optimisers keep float32 moments of tensors with fewer entries than the first, and of all
others a float32 scale per moment and so many entries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingLoad:
    """What decides the memory of LoRA training besides the model."""

    rank: int = 8
    """Rank of the adapter of every Linear that `layer_ranks` says nothing of; >= 1."""
    batch_size: int = 8
    """Sequences per forward pass; >= 1."""
    sequence_length: int = 128
    """Tokens per sequence; >= 1."""
    compute_bytes: int = BYTES_16_BIT
    """Bytes of one activation: 2 on CUDA, 4 on the CPU."""
    layer_ranks: Mapping[str, int] = field(default_factory=dict)
    """As in `RecoverySpec.layer_ranks`."""
    targets: tuple[str, ...] = ()
    """As in `RecoverySpec.targets`."""
    drops: bool = False
    """Whether adapters have dropout."""
    checkpointing: bool = False
    """Whether layers keep their inputs alone, and logits are taken in pieces."""
    state_bytes: float = _FULL_STATE
    """What the optimiser keeps for one trained parameter: 8 for float32 moments, 2 for 8-bit
    ones."""

    @classmethod
    def of(cls, spec: RecoverySpec, compute_bytes: int, state_bytes: float) -> TrainingLoad:
        """Return the load of a recovery.

        Args:
            spec: How it trains.
            compute_bytes: Bytes of one activation.
            state_bytes: Of its optimiser, as the catalogue says.
        """
        return cls(
            rank=spec.rank,
            batch_size=spec.forward_sequences,
            sequence_length=spec.sequence_length,
            compute_bytes=compute_bytes,
            layer_ranks=spec.layer_ranks,
            targets=spec.targets,
            drops=spec.dropout > 0.0,
            checkpointing=spec.gradient_checkpointing,
            state_bytes=state_bytes,
        )

    def rank_of(self, linear: LinearLayout) -> int:
        """Return the rank of a Linear's adapter; 0 where it gets none."""
        if self.targets and linear.role not in self.targets:
            return 0
        return self.layer_ranks.get(str(linear.layer), self.rank)

    @property
    def tokens(self) -> int:
        """Tokens of one forward pass."""
        return self.batch_size * self.sequence_length


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingBytes:
    """Estimated memory of LoRA training, by what it is spent on; bytes."""

    weights: int
    """Frozen packed weights, and embeddings, norms and head as wide as an activation."""
    adapter: int
    """Adapter weights, gradients and optimiser state."""
    activations: int
    """What the layers keep for the backward pass."""
    logits: int
    """Log-probabilities in float32, their gradient and that of the logits, which by then are let
    go of; with gradient checkpointing, by how much these and what is kept beside them exceed
    ``activations``, as the two are never there at the same time."""
    workspace: int
    """The largest weight, dequantised while it is used."""

    @property
    def total(self) -> int:
        """Bytes of all of them."""
        return self.weights + self.adapter + self.activations + self.logits + self.workspace


def linear_training_bytes(layout: ModelLayout, load: TrainingLoad) -> dict[str, int]:
    """Return what each Linear adds to `TrainingBytes.adapter` and `TrainingBytes.activations`, by
    name.

    With gradient checkpointing its activations belong to no sum: of all layers only the largest
    counts.
    """
    found = {linear.name: _adapter_bytes(linear, load) for linear in layout.linears}
    if not load.checkpointing:
        shares = _shares(layout)
        for linear in layout.linears:
            found[linear.name] += load.tokens * _kept_bytes(linear, load, shares)
    return found


def bytes_beyond_16_bit(layout: ModelLayout, load: TrainingLoad) -> int:
    """Return what embeddings, norms and head take beyond 16 bit: on the CPU they lie in
    float32.
    """
    return layout.other_parameters * max(0, load.compute_bytes - BYTES_16_BIT)


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
    """Return the estimated memory of LoRA training.

    Adapters are float32 and attention is fused, as PEFT and PyTorch do by default. With c bytes
    per activation, T tokens per forward pass, hidden width H and in a layer Q query, K key and M
    MLP entries, a layer whose every Linear has an adapter keeps per token

        4 (2 H)            what both norms read, in float32
        c (Q + 2 K + 3 M)  queries, keys, values; gate, its activation, up
        4 (2 H + Q + M)    what the adapters read; where c is not 4, a float32 copy for each of the
                           seven, 4 (5 H + Q + M), and the attention's output, c Q, beside it;
                           with dropout, one for each as well, and its mask, of 4 bytes per entry
                           where c is 4 and of 1 where it is not
        4 r n              the inner results of n adapters of rank r

    and at the end 4 H for the last norm and V (4 + 4 + 4) for the logits. Families without a
    gate or with fused projections keep other multiples, `_KEPT_OUTPUTS`; further norms are in
    `_NORMS` and `_HEAD_NORMS`, attention that is not fused in `_EAGER`. Experts see their share of
    the tokens, as if a router sent as many to each. The model's own dropout is left out. Tests
    compare this with what is really alive, family by family.

    With gradient checkpointing a layer keeps c H, and what stands above only while it is computed
    again, when the layers behind it have let go of theirs: the largest such moment counts, with
    the first gradients of its backward pass beside it, `_first_gradients`. Logits
    are taken `LOGITS_AT_ONCE` entries at a time, when all layers keep c H and the final states
    beside them.
    """
    activations, logits = _activations_and_logits(layout, load)
    return TrainingBytes(
        weights=plan_bytes(layout, plan, formats) + bytes_beyond_16_bit(layout, load),
        adapter=sum(_adapter_bytes(linear, load) for linear in layout.linears),
        activations=activations,
        logits=logits,
        workspace=_dequantised(layout, load.compute_bytes),
    )


def _adapter_bytes(linear: LinearLayout, load: TrainingLoad) -> int:
    """Return the bytes of an adapter's two matrices, their gradients and the optimiser's state."""
    rank = load.rank_of(linear)
    sizes = (rank * linear.in_features, rank * linear.out_features)
    return sum(n * _WEIGHT_AND_GRADIENT + _state_bytes(n, load.state_bytes) for n in sizes)


def _state_bytes(n_entries: int, state_bytes: float) -> int:
    if state_bytes >= _FULL_STATE or n_entries < _SMALL_TENSOR:
        return _FULL_STATE * n_entries
    return int(state_bytes * n_entries) + 2 * 4 * -(-n_entries // _BLOCK)


def _activations_and_logits(layout: ModelLayout, load: TrainingLoad) -> tuple[int, int]:
    layers, last_norm = _kept_by_layer(layout, load), _norm_bytes(layout, load)
    gradients = _first_gradients(layout, load)
    all_logits = load.tokens * layout.vocab_size
    logit_bytes = _LOGIT_BYTES + (load.compute_bytes if layout.model_type in _CAPPED else 0)
    if not load.checkpointing:
        at_the_end = max(all_logits * logit_bytes, load.tokens * gradients[-1])
        return load.tokens * (sum(layers) + last_norm), at_the_end
    entering = load.compute_bytes * layout.hidden_size
    # In float32 the first norm of a layer reads the very tensor that enters it.
    shared = entering if load.compute_bytes >= 4 else 0
    moments = zip(layers, gradients, strict=True)
    largest = max(entering * n + sum(moment) - shared for n, moment in enumerate(moments, 1))
    at_the_head = load.tokens * (entering * (len(layers) + 1) + last_norm)
    at_once = min(all_logits, max(layout.vocab_size, LOGITS_AT_ONCE)) * logit_bytes
    activations = load.tokens * largest
    return activations, max(0, at_the_head + at_once - activations)


def _kept_by_layer(layout: ModelLayout, load: TrainingLoad) -> list[int]:
    """Return what every layer keeps for one token, from the first with an adapter: what lies below
    that needs no gradient.
    """
    first, shares = _first_layer(layout, load), _shares(layout)
    norms = _NORMS.get(layout.model_type, 2) * _norm_bytes(layout, load)
    layers = [norms] * (layout.n_layers - first)
    for linear in layout.linears:
        if linear.layer >= first:
            kept = _kept_bytes(linear, load, shares) + _beside_bytes(linear, layout, load)
            layers[linear.layer - first] += kept
    return layers


def _first_gradients(layout: ModelLayout, load: TrainingLoad) -> list[int]:
    """Return what the backward pass of every layer begins with, per token, from the first with an
    adapter: the gradient that comes in, and twice what its last Linear reads, as the gradients of
    weight and adapter are added up.
    """
    first, shares = _first_layer(layout, load), _shares(layout)
    last = {linear.layer: linear for linear in layout.linears}
    # Where a norm passes its gradient on in float32, that stands beside the one in 16 bit.
    copies = 1 if load.compute_bytes >= 4 else 2
    incoming = copies * _norm_bytes(layout, load)
    return [
        incoming + int(2 * load.compute_bytes * _share(last[i], shares) * last[i].in_features)
        for i in range(first, layout.n_layers)
    ]


def _norm_bytes(layout: ModelLayout, load: TrainingLoad) -> int:
    """Return what a norm over the residual stream keeps per token."""
    in_float32 = layout.model_type not in _LAYER_NORMS
    return (4 if in_float32 else load.compute_bytes) * layout.hidden_size


def _first_layer(layout: ModelLayout, load: TrainingLoad) -> int:
    return min((x.layer for x in layout.linears if load.rank_of(x)), default=0)


def _shares(layout: ModelLayout) -> dict[str, float]:
    """Return module of an expert -> share of the tokens that it sees on average."""
    experts = [group for group in layout.groups if group.kind == "expert_channels"]
    n_in_layer = Counter(group.layer for group in experts)
    chosen = layout.experts_per_token
    return {x.name: min(1.0, chosen / n_in_layer[x.layer]) if chosen else 1.0 for x in experts}


def _share(linear: LinearLayout, shares: Mapping[str, float]) -> float:
    return shares.get(linear.name.rpartition(".")[0], 1.0)


_NORMS: Mapping[str, int] = {"gemma2": 4, "gemma3_text": 4}
"""Family -> norms per layer over the residual stream or what enters it, where not two."""
_HEAD_NORMS = ("gemma3_text", "olmo2", "qwen3", "qwen3_moe")
"""Families with norms over queries and keys, which read them in float32."""
_LAYER_NORMS = ("gpt2", "gpt_neox")
"""Families whose norms are one operation, which keeps what it read; others widen it to float32.
OPT, whose norms are such too, was measured to keep as much as the others in 16 bit."""
_EAGER = ("gemma2",)
"""Families whose attention is not fused, as its logits are capped: it keeps the capped logits and
the weights, and keys and values once for every query head."""
_CAPPED = ("gemma2",)
"""Families that cap the logits of the head and keep the capped ones."""
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
_SHARES_INPUT: Mapping[str, tuple[str, ...]] = {
    "k_proj": ("q_proj",),
    "v_proj": ("q_proj", "k_proj"),
    "up_proj": ("gate_proj",),
}
"""Role -> roles that read the very tensor that it reads."""


def _beside_bytes(linear: LinearLayout, layout: ModelLayout, load: TrainingLoad) -> int:
    """Return what attention keeps per token beside what its projections say themselves."""
    c, entries = load.compute_bytes, linear.out_features
    kept = 0
    if layout.model_type in _HEAD_NORMS and linear.role in ("q_proj", "k_proj"):
        kept += 4 * entries
    if layout.model_type in _EAGER and linear.role == "q_proj":
        # Capped logits, and weights in float32 with, where c is not 4, a copy in 16 bit.
        per_weight = c + 4 + (c if c < 4 else 0)
        n_heads = entries // layout.head_dim
        repeated = 2 * entries
        kept += per_weight * n_heads * load.sequence_length + c * repeated
    return kept


def _kept_bytes(linear: LinearLayout, load: TrainingLoad, shares: Mapping[str, float]) -> int:
    """Return what one Linear and its adapter keep per token of the model."""
    return int(_share(linear, shares) * _kept_of_its_own(linear, load))


def _kept_of_its_own(linear: LinearLayout, load: TrainingLoad) -> int:
    """Return what one Linear and its adapter keep per token that it sees."""
    c, rank = load.compute_bytes, load.rank_of(linear)
    kept = c * int(_KEPT_OUTPUTS.get(linear.role, 0) * linear.out_features) + 4 * rank
    if c < 4 and linear.block == "attention" and linear.role in _ATTENTION_OUT:
        kept += c * linear.in_features
    if not rank:
        return kept
    if load.drops:
        return kept + (4 + (4 if c >= 4 else 1)) * linear.in_features
    beside = _SHARES_INPUT.get(linear.role, ())
    is_kept = any(role in load.targets for role in beside) if load.targets else bool(beside)
    return kept if is_kept and c >= 4 else kept + 4 * linear.in_features


def _dequantised(layout: ModelLayout, compute_bytes: int) -> int:
    return compute_bytes * max(x.out_features * x.in_features for x in layout.linears)
