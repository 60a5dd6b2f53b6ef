from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from trained_models import FAMILIES, build, texts

from qpruner_core.domain.adapters import adapter_ranks
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.recovery import PRESETS, RecoverySpec
from qpruner_core.errors import BadInputError
from qpruner_core.quantization.packing import pack_
from qpruner_core.recovery.adapter import save_adapter
from qpruner_core.recovery.initialization import Factors, Start
from qpruner_core.recovery.wrapping import adapted, add_adapters_

SPEC = RecoverySpec(rank=3, alpha=6.0)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=texts(2).ids, use_cache=False).logits
    return found


def found_ranks(model: Any, layout: ModelLayout) -> dict[str, int]:
    modules = {x.name: model.get_submodule(x.name) for x in layout.linears}
    return {n: m.r["default"] for n, m in modules.items() if hasattr(m, "base_layer")}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layer_ranks": {"1": 5}},
        {"layer_ranks": {"0": 0, "1": 2}},
        {"targets": ("v_proj", "down_proj")},
        {"targets": ("q_proj",), "layer_ranks": {"1": 1}},
    ],
    ids=str,
)
def test_every_linear_has_the_rank_it_was_asked_for_and_its_own_scaling(
    changes: dict[str, Any],
) -> None:
    model, layout = build("llama", torch.float32)
    spec = replace(SPEC, **changes)
    add_adapters_(model, layout, spec)
    wanted = {x.name: spec.rank_of(x.layer, x.role) for x in layout.linears}
    assert found_ranks(model, layout) == {name: rank for name, rank in wanted.items() if rank}
    assert found_ranks(model, layout) == adapter_ranks(spec, layout)
    for name, rank in adapter_ranks(spec, layout).items():
        module = model.get_submodule(name)
        assert module.scaling["default"] == spec.alpha / rank
        assert module.lora_A["default"].weight.dtype == torch.float32
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * len(adapter_ranks(spec, layout))
    assert all("lora_" in name for name in trained)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_of_several_ranks_opens_again_with_equal_logits(tmp_path: Path) -> None:
    model, layout = build("llama", torch.float32)
    fresh, _ = build("llama", torch.float32)
    spec = replace(SPEC, layer_ranks={"1": 5}, targets=("q_proj", "up_proj"))
    wrapped = add_adapters_(model, layout, spec)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    save_adapter(wrapped, tmp_path / "adapter")
    again = PeftModel.from_pretrained(fresh, str(tmp_path / "adapter")).eval()
    assert torch.equal(logits(again), logits(wrapped))
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == 3


def test_roles_that_the_model_has_not_are_refused_with_those_it_has() -> None:
    _, layout = build("gpt2")
    with pytest.raises(BadInputError, match=r"gate_proj.* are c_attn, c_proj, c_fc\. .*--targets"):
        adapter_ranks(PRESETS["paper"], layout)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layer_ranks": {"7": 2}}, "layers 7, but the model has the layers 0 to 1"),
        ({"layer_ranks": {"0": 0, "1": 0}}, "nothing to train"),
    ],
)
def test_ranks_that_cannot_be_are_refused(changes: dict[str, Any], said: str) -> None:
    _, layout = build("llama")
    with pytest.raises(BadInputError, match=said):
        adapter_ranks(replace(SPEC, **changes), layout)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_start_is_what_the_adapter_adds_at_first(family: str) -> None:
    model, layout = build(family, torch.float32)
    before = logits(model)
    linear = layout.linears[-1]
    factors = Factors(a=torch.randn(2, linear.in_features), b=torch.randn(linear.out_features, 2))
    dense = model.get_submodule(linear.name).weight.data
    added = SPEC.alpha / SPEC.rank * factors.b @ factors.a
    dense += added.T if linear.transposed else added
    wanted = logits(model)
    dense -= added.T if linear.transposed else added
    add_adapters_(model, layout, SPEC, {linear.name: Start(adapter=factors)}).eval()
    torch.testing.assert_close(logits(model), wanted, rtol=1e-3, atol=1e-3)
    assert (wanted - before).abs().max() > 0.1
    # The row beyond the start's begins as LoRA's do: it learns, and adds nothing yet.
    module = model.get_submodule(linear.name)
    assert module.lora_A["default"].weight[2].abs().sum() > 0
    assert module.lora_B["default"].weight[:, 2].abs().sum() == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_are_taken_off_without_a_trace(family: str) -> None:
    model, layout = build(family, torch.float32)
    next(model.parameters()).requires_grad_(False)
    asked = {n: p.requires_grad for n, p in model.named_parameters()}
    modules, attributes = dict(model.named_modules()), dict(vars(model))
    forwards = {name: dict(vars(module)) for name, module in modules.items()}
    before = logits(model)
    with adapted(model, layout, SPEC):
        assert len(found_ranks(model, layout)) == len(layout.linears)
        model.train()
    assert dict(model.named_modules()) == modules
    assert vars(model) == attributes
    assert {n: p.requires_grad for n, p in model.named_parameters()} == asked
    for name, module in modules.items():
        assert vars(module) == forwards[name], name
    assert torch.equal(logits(model), before)


def test_adapters_can_be_put_on_again_and_again_without_a_warning() -> None:
    model, layout = build("llama", torch.float32, hidden_size=64, num_attention_heads=4)
    model_plan = PrecisionPlan.uniform(layout, "int8")
    pack_(model, layout, model_plan, torch.float32)
    before = logits(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            with adapted(model, layout, SPEC):
                pass
    assert torch.equal(logits(model), before)
