"""The whole line on mixtures of experts: scored, pruned of channels and whole experts, searched,
trained and exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from qpruner_core.domain.record import STEPS
from qpruner_core.domain.spec import (
    DataSpec,
    ImportanceSpec,
    ModelSpec,
    PruningSpec,
    RecoverySpec,
    RunSpec,
    SearchSpec,
)
from qpruner_core.models.device import pick_device
from qpruner_core.pipeline import Line
from qpruner_core.store.records import RunStore

FAMILIES = {
    "mixtral": {"num_local_experts": 4, "intermediate_size": 256},
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 256,
        "intermediate_size": 256,
        "mlp_only_layers": [0],
    },
}


def mixture(family: str, path: Path) -> Path:
    config = AutoConfig.for_model(
        family,
        vocab_size=128,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=256,
        initializer_range=0.1,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        **FAMILIES[family],
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("family", "shape"),
    [("mixtral", "per-layer"), pytest.param("qwen3_moe", "uniform", marks=pytest.mark.slow)],
)
def test_a_mixture_goes_down_the_whole_line(
    family: str, shape: str, tiny_data: DataSpec, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    folder = mixture(family, tmp_path / "mixture")
    tiny_tokenizer.save_pretrained(folder)
    spec = RunSpec(
        model=ModelSpec(source=str(folder)),
        data=tiny_data,
        importance=ImportanceSpec(criteria=("taylor", "mutual_information")),
        pruning=PruningSpec(
            ratio=0.3,
            criterion="taylor",
            kinds=("expert_channels", "experts"),
            shape=shape,
            protect_first=0,
            protect_last=0,
        ),
        search=SearchSpec(memory_budget="0.9", n_trials=2, strategy="random"),
        recovery=RecoverySpec(steps=2, rank=2, batch_size=2, sequence_length=16),
    )
    store = RunStore(tmp_path / "home")
    line = Line(store, store.create(spec).run_id, pick_device("cpu"))
    line.begin(spec, STEPS)
    for step in STEPS:
        line.run(step)
    record = line.record()
    pruned = record.prune.layout
    experts = [group.n_units for group in pruned.groups if group.kind == "experts"]
    assert all(2 <= n <= 4 for n in experts)
    lost = sum(record.load.layout.layer_parameters) - sum(pruned.layer_parameters)
    assert lost > 0.25 * sum(record.load.layout.layer_parameters)
    assert record.prune.parameters_after == pruned.parameters
    assert record.recover.trainable_parameters > 0
    assert record.export.reload_logits_equal, record.export.max_logit_difference
