"""Experts taken apart: the same model as transformers', whole experts and channels removed, opened
again."""

from __future__ import annotations

import copy
import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from qpruner_core.catalog import ARCHITECTURES
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PrecisionPlan, PruningPlan
from qpruner_core.domain.record import ModelCard
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.domain.spec import ModelSpec
from qpruner_core.errors import BadInputError, UnsupportedModelError
from qpruner_core.export import ExportFacts
from qpruner_core.export.hf_16bit import EXPORTER as SIXTEEN_BIT
from qpruner_core.export.hf_mixed import EXPORTER as MIXED
from qpruner_core.inspection.cards import inspect_model
from qpruner_core.models.device import pick_device
from qpruner_core.models.experts import split_experts_, unreached_sentence
from qpruner_core.models.files.modeling_qpruner import Experts
from qpruner_core.models.loader import load
from qpruner_core.pruning.surgery import prune_
from qpruner_core.quantization.packing import pack_
from qpruner_core.recovery.adapter import save_adapter
from qpruner_core.recovery.wrapping import add_adapters_

SIZES = {
    "vocab_size": 128,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}
CASES = {
    "mixtral": ("mixtral", {"num_local_experts": 4, "intermediate_size": 128}),
    "qwen3_moe": (
        "qwen3_moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128},
    ),
    "qwen3_moe with weights that sum to one": (
        "qwen3_moe",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 128,
            "norm_topk_prob": True,
        },
    ),
}
FAMILIES = pytest.mark.parametrize("case", ["mixtral", "qwen3_moe"])
"""For what depends on names and shapes alone."""
IDS = torch.randint(4, 128, (2, 12), generator=torch.Generator().manual_seed(0))
UNEVEN = {
    "model.layers.0.mlp": (0, 2, 3),
    "model.layers.0.mlp.experts.2": tuple(range(64)),
    "model.layers.1.mlp.experts.0": tuple(range(64, 128)),
    "model.layers.1.self_attn": (1,),
}
EVEN = {
    f"model.layers.{layer}.mlp{expert}": kept
    for layer in (0, 1)
    for expert, kept in {
        "": (0, 3),
        **{f".experts.{i}": tuple(range(i, i + 64)) for i in range(4)},
    }.items()
}


@pytest.fixture(params=CASES, ids=lambda name: name.replace(" ", "-"))
def case(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def stock(case: str) -> Any:
    """The model as transformers builds it, in float64."""
    return build(case)


def build(case: str, dtype: torch.dtype = torch.float64) -> Any:
    family, changes = CASES[case]
    config = AutoConfig.for_model(family, experts_implementation="eager", **SIZES, **changes)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


@pytest.fixture
def layout(stock: Any) -> ModelLayout:
    return layout_of(stock)


def layout_of(model: Any) -> ModelLayout:
    config = model.config.to_dict()
    return ARCHITECTURES.target(config["model_type"]).layout(config)


@pytest.fixture
def model(stock: Any, layout: ModelLayout) -> Any:
    split_experts_(stock, layout)
    return stock


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        answer: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return answer


# Taking apart ---------------------------------------------------------------------------------


def test_experts_taken_apart_compute_what_the_fused_ones_do(stock, layout):
    expected = logits(stock)
    split_experts_(stock, layout)
    torch.testing.assert_close(logits(stock), expected, rtol=0.0, atol=1e-12)


def test_every_weight_is_a_matrix_of_a_linear_and_none_is_lost(stock, layout):
    before = sum(p.numel() for p in stock.parameters())
    split_experts_(stock, layout)
    assert before == sum(p.numel() for p in stock.parameters()) == layout.parameters
    assert max(p.dim() for p in stock.parameters()) == 2
    for linear in layout.linears:
        assert isinstance(stock.get_submodule(linear.name), torch.nn.Linear)


def test_the_fused_tensors_are_freed(stock, layout):
    fused = [weakref.ref(p) for p in stock.parameters() if p.dim() == 3]
    assert len(fused) == 4
    split_experts_(stock, layout)
    gc.collect()
    assert [ref() for ref in fused] == [None] * 4
    storages = [p.untyped_storage().data_ptr() for p in stock.parameters()]
    assert len(set(storages)) == len(storages)


def test_splitting_twice_is_splitting_once(model, layout):
    before = dict(model.named_parameters())
    split_experts_(model, layout)
    assert all(p is before[name] for name, p in model.named_parameters())


def test_a_model_without_experts_stays_as_it_is(tiny_model, tiny_layout):
    modules = list(tiny_model.modules())
    split_experts_(tiny_model, tiny_layout)
    assert list(tiny_model.modules()) == modules
    assert tiny_model.config.model_type == "llama"


def test_weights_that_were_frozen_stay_frozen(stock, layout):
    stock.requires_grad_(requires_grad=False)
    split_experts_(stock, layout)
    assert not any(p.requires_grad for p in stock.parameters())


def test_deleting_an_expert_renumbers_the_others(model):
    experts = model.model.layers[0].mlp.experts
    third = experts[2]
    del experts[1]
    assert isinstance(experts, Experts)
    assert len(experts) == 3
    assert experts[1] is third


# Removing -------------------------------------------------------------------------------------


def without_experts(model: Any, gone: dict[int, list[int]]) -> Any:
    """Return a copy in which the router logits of those experts of a layer are minus infinity."""
    masked = copy.deepcopy(model)
    for layer, experts in gone.items():
        router = masked.model.layers[layer].mlp.gate
        divided = getattr(router, "norm_topk_prob", True)

        def route(hidden, router=router, experts=experts, divided=divided):
            scores = functional.linear(hidden, router.weight)
            scores[:, experts] = -torch.inf
            weights, chosen = scores.softmax(-1, dtype=torch.float32).topk(router.top_k)
            if divided:
                weights = weights / weights.sum(-1, keepdim=True)
            return scores, weights.to(scores.dtype), chosen

        router.forward = route
    return masked


def test_removing_experts_is_setting_their_router_logits_to_minus_infinity(model, layout):
    expected = logits(without_experts(model, {0: [1], 1: [0, 3]}))
    assert (expected - logits(model)).abs().max() > 1e-3
    kept = {"model.layers.0.mlp": (0, 2, 3), "model.layers.1.mlp": (1, 2)}
    pruned = prune_(model, layout, PruningPlan(kept=kept))
    # The router's softmax is float32, where sums over fewer terms differ in the last bits.
    torch.testing.assert_close(logits(model), expected, rtol=0.0, atol=1e-6)
    assert [len(layer.mlp.experts) for layer in model.model.layers] == [3, 2]
    assert [layer.mlp.gate.weight.shape[0] for layer in model.model.layers] == [3, 2]
    assert sum(p.numel() for p in model.parameters()) == pruned.parameters


def test_channels_and_experts_leave_together(model, layout):
    masked = without_experts(model, {0: [1]})
    with torch.no_grad():
        masked.model.layers[0].mlp.experts[2].down_proj.weight[:, 64:] = 0.0
        masked.model.layers[1].mlp.experts[0].down_proj.weight[:, :64] = 0.0
    plan = PruningPlan(kept={k: v for k, v in UNEVEN.items() if "attn" not in k})
    pruned = prune_(model, layout, plan)
    torch.testing.assert_close(logits(model), logits(masked), rtol=0.0, atol=1e-6)
    widths = [group.n_units for group in pruned.groups if group.kind == "expert_channels"]
    assert widths == [128, 64, 128, 64, 128, 128, 128]
    assert layout_of(model) == pruned


def test_the_balance_of_the_router_is_that_of_the_masked_model(model, layout):
    masked = without_experts(model, {0: [3]})
    prune_(model, layout, PruningPlan(kept={"model.layers.0.mlp": (0, 1, 2)}))
    with torch.no_grad():
        now = model(input_ids=IDS, labels=IDS, output_router_logits=True)
        then = masked(input_ids=IDS, labels=IDS, output_router_logits=True)
    assert [scores.shape[-1] for scores in now.router_logits] == [4, 4]
    torch.testing.assert_close(now.aux_loss, then.aux_loss, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(now.loss, then.loss, rtol=1e-5, atol=0.0)


def test_the_balance_is_over_the_experts_that_are_left(model, layout):
    kept = {f"model.layers.{i}.mlp": (0, 2, 3) for i in (0, 1)}
    prune_(model, layout, PruningPlan(kept=kept))
    now = model(input_ids=IDS, output_router_logits=True)
    assert model.num_experts == 3
    assert [scores.shape[-1] for scores in now.router_logits] == [3, 3]
    assert torch.isfinite(now.aux_loss)


def test_fewer_experts_than_a_token_goes_through_are_refused(model, layout):
    before = logits(model)
    plan = PruningPlan(kept={"model.layers.1.mlp": (2,)})
    with pytest.raises(BadInputError, match=r"through 2 of them\. Keep at least"):
        prune_(model, layout, plan)
    assert torch.equal(logits(model), before)
    assert layout.experts_per_token == 2


def test_a_config_that_chooses_more_experts_than_there_are_is_refused():
    config = AutoConfig.for_model("mixtral", **SIZES, num_local_experts=2).to_dict()
    with pytest.raises(UnsupportedModelError, match="3 of 2 experts"):
        ARCHITECTURES.target("mixtral").layout({**config, "num_experts_per_tok": 3})


# On disk --------------------------------------------------------------------------------------


def test_a_live_model_saves_the_names_that_its_stock_class_saves(stock, layout, tmp_path):
    stock.save_pretrained(tmp_path / "stock")
    split_experts_(stock, layout)
    stock.save_pretrained(tmp_path / "split")
    expected = load_file(tmp_path / "stock" / "model.safetensors")
    found = load_file(tmp_path / "split" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_the_names_on_disk_are_those_of_published_checkpoints():
    name = ARCHITECTURES.target("mixtral").disk_name
    expert = "model.layers.3.mlp.experts.11"
    published = "model.layers.3.block_sparse_moe.experts.11"
    assert name(f"{expert}.gate_proj.weight") == f"{published}.w1.weight"
    assert name(f"{expert}.down_proj.weight") == f"{published}.w2.weight"
    assert name(f"{expert}.up_proj.weight") == f"{published}.w3.weight"
    assert name("model.layers.3.mlp.gate.weight") == "model.layers.3.block_sparse_moe.gate.weight"
    same = "model.layers.3.mlp.experts.11.gate_proj.weight"
    assert ARCHITECTURES.target("qwen3_moe").disk_name(same) == same


def test_a_stock_folder_is_inspected_and_counted_exactly(stock, layout, tmp_path):
    stock.save_pretrained(tmp_path)
    card = inspect_model(ModelSpec(source=str(tmp_path)))
    assert card.layout == layout
    assert card.parameters == layout.parameters


def test_a_folder_with_fused_experts_is_inspected_and_counted_exactly(stock, layout, tmp_path):
    stock.save_pretrained(tmp_path, save_original_format=False)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert "model.layers.0.mlp.experts.gate_up_proj" in file.keys()  # noqa: SIM118
    card = inspect_model(ModelSpec(source=str(tmp_path)))
    assert card.parameters == layout.parameters


@FAMILIES
@pytest.mark.parametrize("fused", [False, True])
def test_experts_of_another_width_than_the_config_says_are_refused(case, tmp_path, fused):
    stock = build(case)
    stock.config.update({ARCHITECTURES.target(CASES[case][0]).width_key: 96})
    stock.save_pretrained(tmp_path, save_original_format=not fused)
    with pytest.raises(BadInputError, match="128 x 64 where the config means 96 x 64"):
        inspect_model(ModelSpec(source=str(tmp_path)))


def test_a_missing_expert_is_named(stock, tmp_path):
    stock.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    gone = [name for name in tensors if ".1." in name and ".experts.3." in name]
    save_file({k: v for k, v in tensors.items() if k not in gone}, path, {"format": "pt"})
    with pytest.raises(
        BadInputError, match=r"layers\.1\.mlp\.experts\.3\.gate_proj.*config means"
    ):
        inspect_model(ModelSpec(source=str(tmp_path)))


def test_loading_gives_experts_taken_apart(case, tiny_tokenizer, tmp_path):
    stock = build(case, torch.bfloat16)
    stock.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    loaded = load(ModelSpec(source=str(tmp_path)), pick_device("cpu"))
    assert loaded.layout == layout_of(stock)
    assert isinstance(loaded.model.model.layers[0].mlp.experts, Experts)
    expected = logits(stock.float())
    torch.testing.assert_close(logits(loaded.model).float(), expected, rtol=1e-4, atol=1e-4)


def exported(case: str, kept: Any, folder: Path, exporter: Any) -> tuple[Any, Any, ModelLayout]:
    """Return the packed model behind an export of mixed precisions, its reference and layout."""
    model = build(case, torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))
    dense = layout_of(model)
    split_experts_(model, dense)
    plan = PruningPlan(kept=kept)
    layout = prune_(model, dense, plan)
    names = ("nf4", "int8", "bf16", "fp4")
    mixed = {linear.name: names[i % 4] for i, linear in enumerate(layout.linears)}
    written = exporter.plan_written(layout, PrecisionPlan(precisions=mixed))
    card = ModelCard(
        source="org/tiny",
        revision=None,
        title="Tiny",
        layout=dense,
        parameters=dense.parameters,
        file_bytes=2 * dense.parameters,
        dtype="BF16",
        max_positions=64,
    )
    pack_(model, layout, written, torch.float32)
    facts = ExportFacts(card=card, layout=layout, pruning=plan, plan=written, adapter=None)
    exporter.export(model, None, facts, folder)
    return model, facts, layout


@FAMILIES
@pytest.mark.parametrize("kept", [UNEVEN, EVEN], ids=["uneven", "even"])
@pytest.mark.usefixtures("code_cache")
def test_a_mixed_export_opens_bit_for_bit_and_takes_adapters(case, kept, tmp_path):
    model, _, layout = exported(case, kept, tmp_path / "out", MIXED)
    again = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", trust_remote_code=True, dtype=torch.float32
    ).eval()
    assert torch.equal(logits(again), logits(model))
    adapted = add_adapters_(again, layout, RecoverySpec(rank=2))
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * len(layout.linears)
    assert save_adapter(adapted, tmp_path / "adapter") > 0


@FAMILIES
@pytest.mark.usefixtures("code_cache")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_on_experts_opens_on_a_fresh_copy_of_the_export(case, tmp_path):
    from peft import PeftModel

    def opened() -> Any:
        return AutoModelForCausalLM.from_pretrained(
            tmp_path / "out", trust_remote_code=True, dtype=torch.float32
        ).eval()

    _, _, layout = exported(case, UNEVEN, tmp_path / "out", MIXED)
    adapted = add_adapters_(opened(), layout, RecoverySpec(rank=2)).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    save_adapter(adapted, tmp_path / "adapter")
    again = PeftModel.from_pretrained(opened(), str(tmp_path / "adapter")).eval()
    assert (logits(again) - logits(opened())).abs().max() > 1e-3
    assert torch.equal(logits(again), logits(adapted))


@FAMILIES
@pytest.mark.usefixtures("code_cache")
def test_a_16_bit_export_of_even_widths_opens_with_the_stock_class(case, tmp_path):
    model, facts, layout = exported(case, EVEN, tmp_path / "out", SIXTEEN_BIT)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    assert type(again).__name__ == ARCHITECTURES.target(layout.model_type).class_name(
        layout.model_type
    )
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-4, atol=1e-5)
    assert inspect_model(ModelSpec(source=str(tmp_path / "out"))).layout.linears == layout.linears
    assert facts.layout is layout


@FAMILIES
@pytest.mark.usefixtures("code_cache")
def test_a_16_bit_export_of_uneven_widths_is_loaded_and_inspected_like_any_other(
    case, tiny_tokenizer, tmp_path
):
    model, _, layout = exported(case, UNEVEN, tmp_path / "out", SIXTEEN_BIT)
    tiny_tokenizer.save_pretrained(tmp_path / "out")
    spec = ModelSpec(source=str(tmp_path / "out"), trust_remote_code=True)
    loaded = load(spec, pick_device("cpu"))
    assert loaded.layout.linears == layout.linears
    assert loaded.card.parameters == layout.parameters
    found = logits(loaded.model.float())
    torch.testing.assert_close(found, logits(model), rtol=1e-4, atol=1e-5)
    aux = loaded.model(input_ids=IDS, output_router_logits=True).aux_loss
    assert torch.isfinite(aux)


def test_layers_that_stay_keep_being_sparse_or_dense():
    changes = {**CASES["qwen3_moe"][1], "num_hidden_layers": 4, "intermediate_size": 96}
    config = AutoConfig.for_model("qwen3_moe", **{**SIZES, **changes}, decoder_sparse_step=2)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    dense = layout_of(model)
    split_experts_(model, dense)
    pruned = prune_(model, dense, PruningPlan(kept={}, dropped_layers=(0,)))
    kinds = [group.kind for group in pruned.groups if group.name.endswith(".mlp")]
    assert kinds == ["experts", "mlp_channels", "experts"]
    assert layout_of(model) == pruned
    assert model.config.mlp_only_layers == [1]


# What is said ---------------------------------------------------------------------------------


def test_experts_that_no_token_reached_are_named(layout):
    idle = ("model.layers.1.mlp.experts.1", "model.layers.1.mlp.experts.3")
    said = unreached_sentence(idle, layout, IDS.numel())
    assert "2 of 8 experts saw none of the 24 calibration tokens" in said
    assert "'model.layers.1.mlp.experts.1'" in said
    assert "more calibration tokens" in said
