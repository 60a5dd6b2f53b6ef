"""What the comparison with peers rests on: the meter of memory, and torch-pruning at work."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

FOLDER = Path(__file__).parents[3] / "benchmarks"
IDS = torch.arange(8).view(1, -1)


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[f"benchmark_{name}"] = found
    spec.loader.exec_module(found)
    return found


@pytest.fixture
def model() -> Any:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=16,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_peak_of_a_piece_of_work_is_what_it_held() -> None:
    memory = module("memory")
    with memory.peak_memory() as peak:
        held = torch.ones(32, 2**20)  # 128 MiB
        del held
    assert 120 * 2**20 < peak.bytes < 200 * 2**20
    with memory.peak_memory() as nothing:
        pass
    assert nothing.bytes < 16 * 2**20


def test_torch_pruning_takes_as_many_parameters_as_it_is_asked_for(model: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package warns of norms that it prunes by itself
        peer = module("torch_pruning_peer")
        before = peer.layer_parameters(model)
        ratio = peer.ratio_for(model, IDS, before // 2)
        assert peer.layer_parameters(model) == before
        peer.step_(model, IDS, ratio)
    assert abs(peer.layer_parameters(model) - before / 2) < 0.2 * before
    assert model(IDS).logits.shape == (1, 8, 64)
    assert model.config.hidden_size < 64
