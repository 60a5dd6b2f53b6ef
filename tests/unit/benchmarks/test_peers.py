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

from qpruner_core.models.architectures import llama

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


def test_flap_takes_the_least_of_all_layers_until_the_ratio_is_reached(model: Any) -> None:
    peer = module("flap_peer")
    layout = llama.layout(model.config.to_dict())
    scores = {
        group.name: torch.arange(group.n_units).double().numpy() + group.layer
        for group in layout.groups
    }
    plan = peer.leaving(layout, scores, 0.3)
    before = sum(layout.layer_parameters)
    assert abs(sum(layout.pruned(plan).layer_parameters) / before - 0.7) < 0.02
    first, second = (set(plan.kept[f"model.layers.{i}.mlp"]) for i in (0, 1))
    assert first < second, "the second layer's units are all worth one more"
    assert plan.kept["model.layers.0.self_attn"] == (3,), "heads compete with channels"


def test_flap_ranks_channels_by_their_standardised_fluctuation(model: Any) -> None:
    peer = module("flap_peer")
    layout = llama.layout(model.config.to_dict())
    ids = torch.randint(64, (6, 8), generator=torch.Generator().manual_seed(0))
    seen = {}
    down = model.model.layers[1].mlp.down_proj
    handle = down.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    with torch.no_grad():
        model(ids)
    handle.remove()
    inputs = seen["x"].flatten(0, 1).double()
    fluctuation = (
        inputs.var(dim=0, unbiased=False) * down.weight.detach().double().norm(dim=0) ** 2
    )
    expected = (fluctuation - fluctuation.mean()) / fluctuation.std()
    name = "model.layers.1.mlp"
    stats = peer.input_statistics(model, layout, ids, [f"{name}.down_proj"])[f"{name}.down_proj"]
    found = peer.standardised(layout.group(name), stats, down.weight.detach())
    torch.testing.assert_close(torch.from_numpy(found), expected)
    peer.flap_(model, layout, ids, 0.3)
    assert model(ids).logits.isfinite().all()
    assert model.model.layers[0].mlp.down_proj.bias is not None
