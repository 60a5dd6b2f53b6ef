"""The estimate of training memory, held to what is alive at a time in every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import CASES, FAMILIES, FIRST
from transformers import AutoConfig, AutoModelForCausalLM

from qpruner_core.catalog import ARCHITECTURES
from qpruner_core.data.training import TrainingSet
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.quantization.packing import pack_
from qpruner_core.recovery.memory import estimated_bytes
from qpruner_core.recovery.training import Steering, Trainer
from qpruner_core.recovery.wrapping import add_adapters_

SIZES = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_hidden_layers": 4,
    "max_position_embeddings": 256,
}
"""Large enough that activations, not single numbers, decide."""
OTHERWISE: dict[str, dict[str, Any]] = {
    "gpt2": {
        "vocab_size": 512,
        "n_embd": 128,
        "n_inner": 512,
        "n_layer": 4,
        "n_positions": 256,
        # Its own dropout is estimated for no family.
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
    "mixtral": {**SIZES, "intermediate_size": 192},
    "qwen3_moe": {**SIZES, "moe_intermediate_size": 192},
    "opt": {**SIZES, "ffn_dim": 512, "word_embed_proj_dim": 128, "dropout": 0.0},
    "smollm3": {**SIZES, "no_rope_layers": [1, 0, 1, 0]},
    "gemma3_text": {**SIZES, "layer_types": 2 * ["sliding_attention", "full_attention"]},
}
IDS = torch.randint(0, 512, (4, 64), generator=torch.Generator().manual_seed(0))


def larger(case: str) -> Any:
    """Return the config of a case in these sizes."""
    name, values = CASES[case]
    sizes = {**values, **OTHERWISE.get(name, SIZES)}
    if "head_dim" in values:
        sizes["head_dim"] = 16
    return AutoConfig.for_model(name, **sizes)


@pytest.mark.parametrize(
    ("dtype", "checkpointing"),
    [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False)],
    ids=["float32", "checkpointing", "bfloat16"],
)
@pytest.mark.parametrize("case", FIRST)
def test_the_estimate_is_within_a_tenth_of_what_is_alive_at_a_time(
    case: str, dtype: torch.dtype, checkpointing: bool
) -> None:
    name, config = CASES[case][0], larger(case)
    family, layout = FAMILIES[name], ARCHITECTURES.target(name).layout(config.to_dict())
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation=family.attention, dtype=dtype
    )
    model = family.in_memory(model).eval()
    plan = PrecisionPlan.uniform(layout, "nf4")
    pack_(model, layout, plan, dtype)
    spec = RecoverySpec(
        steps=2, batch_size=4, sequence_length=64, rank=4, gradient_checkpointing=checkpointing
    )
    add_adapters_(model, layout, spec)
    standing = Trainer(model, layout, spec).run(TrainingSet.of_text(IDS), Steering())
    estimate = estimated_bytes(layout, plan, spec, dtype)
    assert standing.peak_bytes == pytest.approx(estimate, rel=0.1)
