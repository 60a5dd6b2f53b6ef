from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from qpruner_core.catalog import PRECISIONS
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PrecisionPlan, PruningPlan
from qpruner_core.domain.record import ModelCard
from qpruner_core.export import ExportFacts
from qpruner_core.models.architectures import llama
from qpruner_core.models.files import modeling_qpruner
from qpruner_core.models.telling import tell_config_
from qpruner_core.quantization.packing import pack_

CONFIGS = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
}
SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "initializer_range": 0.1,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}
PRUNING = PruningPlan(
    kept={"model.layers.1.self_attn": (0,), "model.layers.1.mlp": tuple(range(64))}
)


class Sample:
    """A pruned random model, dense and packed, with what an exporter wants to know of it."""

    def __init__(
        self,
        family: str = "llama",
        pruning: PruningPlan = PRUNING,
        precisions: tuple[str, ...] = ("nf4", "int8", "bf16", "fp4"),
        dtype: torch.dtype = torch.bfloat16,
        **changes: Any,
    ) -> None:
        config = CONFIGS[family](**{**SIZES, **changes})
        dense = llama.layout(config.to_dict())
        layout = dense.pruned(pruning)
        names = [linear.name for linear in layout.linears]
        self.plan = PrecisionPlan(
            precisions={name: precisions[i % len(precisions)] for i, name in enumerate(names)}
        )
        self.reference = random_model(family, config, layout, dtype)
        self.packed = random_model(family, config, layout, dtype)
        pack_(self.packed, layout, self.plan, torch.float32)
        for name, precision in self.plan.precisions.items():
            weight = self.reference.get_submodule(name).weight
            weight.data = PRECISIONS.target(precision).fake_quantize(weight.data)
        self.facts = ExportFacts(
            card=ModelCard(
                source="org/tiny",
                revision="abc",
                title="Tiny",
                layout=dense,
                parameters=dense.parameters,
                file_bytes=2 * dense.parameters,
                dtype={torch.float16: "F16", torch.bfloat16: "BF16"}[dtype],
                max_positions=256,
            ),
            layout=layout,
            pruning=pruning,
            plan=self.plan,
            command="qpruner run --model org/tiny",
        )


def random_model(family: str, config: Any, layout: ModelLayout, dtype: torch.dtype) -> nn.Module:
    tell_config_(config, layout)
    torch.manual_seed(0)
    name = f"QPruner{llama.FAMILY.class_name(family)}"
    model: nn.Module = modeling_qpruner.model_class(name)(config).eval()
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape) * 0.1 + (1.0 if "norm" in name else 0.0)
        parameter.data = values.to(dtype).float()
    return model


@pytest.fixture
def sample() -> Callable[..., Sample]:
    return Sample


@pytest.fixture(autouse=True)
def own_code_cache(code_cache: None) -> None:
    """Every test of an export opens folders with code."""
