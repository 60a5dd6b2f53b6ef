"""The bank of a joint search: a plan of mixed levels computes what the model cut that way
computes."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from qpruner_core.catalog import precision_formats
from qpruner_core.domain.footprint import plan_bytes
from qpruner_core.domain.joint import Level, composed
from qpruner_core.domain.plan import PrecisionPlan, PruningPlan
from qpruner_core.domain.spec import PruningSpec
from qpruner_core.errors import BadInputError, IncompatibleShapeError
from qpruner_core.inspection.cards import ModelCard
from qpruner_core.models.architectures import llama
from qpruner_core.models.device import Device
from qpruner_core.models.loader import LoadedModel
from qpruner_core.pipeline.joint import level_models, with_layers_of_its_own
from qpruner_core.pruning.selection import select
from qpruner_core.pruning.surgery import prune_
from qpruner_core.quantization.bank import Bank
from qpruner_core.quantization.level_bank import LevelBank
from qpruner_core.quantization.packing import pack_, packed_bytes

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM

    from qpruner_core.domain.layout import ModelLayout

CPU = Device(kind="cpu", index=0, name="cpu", compute_dtype=torch.float32)
PRECISIONS = ("nf4", "int8", "bf16")
RATIOS = (0.3, 0.0, 0.5)
"""The run's own first: lower and higher ones beside it."""


@pytest.fixture
def tiny_config(tiny_config: LlamaConfig) -> LlamaConfig:
    """Three layers with biases; a KV head with its query heads is one block of 64 columns."""
    tiny_config.head_dim = 32
    tiny_config.num_hidden_layers = 3
    tiny_config.intermediate_size = 256
    tiny_config.attention_bias = True
    tiny_config.mlp_bias = True
    return tiny_config


@dataclass(frozen=True, slots=True)
class Joint:
    """A dense model, its levels and the bank that holds them."""

    dense: LlamaForCausalLM
    layout: ModelLayout
    levels: tuple[Level, ...]
    bank: LevelBank

    def cut(self, levels: tuple[int, ...]) -> tuple[LlamaForCausalLM, ModelLayout]:
        """Return the model freshly cut by the composed plan."""
        model = copy.deepcopy(self.dense)
        return model, prune_(model, self.layout, composed(self.layout, self.levels, levels))


def levels_of(layout: ModelLayout, shape: str = "per-layer") -> tuple[Level, ...]:
    draw = np.random.default_rng(0)
    scores = {group.name: draw.random(group.n_units) for group in layout.groups}
    spec = PruningSpec(protect_first=0, protect_last=0, width_multiple=64, shape=shape)
    chosen = [select(layout, scores, replace(spec, ratio=ratio)) for ratio in RATIOS]
    return tuple(
        Level(ratio=ratio, plan=found.plan, layout=found.layout)
        for ratio, found in zip(RATIOS, chosen, strict=True)
    )


def loaded(model: LlamaForCausalLM, layout: ModelLayout) -> LoadedModel:
    card = ModelCard(
        source="tiny",
        revision=None,
        title="tiny",
        layout=layout,
        parameters=layout.parameters,
        file_bytes=0,
        dtype="F32",
        max_positions=256,
    )
    return LoadedModel(model=model, tokenizer=None, card=card, layout=layout, device=CPU)  # type: ignore[arg-type]


def joint_of(
    model: LlamaForCausalLM, shape: str = "per-layer", packed: bool = False, host: bool = False
) -> Joint:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))  # biases that are not zero
    layout = llama.layout(model.config.to_dict())
    levels = levels_of(layout, shape)
    models = (m.model for m in level_models(loaded(copy.deepcopy(model), layout), levels))
    layouts = [level.layout for level in levels]
    bank = LevelBank(models, layouts, PRECISIONS, CPU, packed=packed, on_host=host)
    return Joint(model, layout, levels, bank)


def random_plan(layout: ModelLayout, levels: tuple[int, ...], seed: int) -> PrecisionPlan:
    draw = np.random.default_rng(seed)
    chosen = {linear.name: str(draw.choice(PRECISIONS)) for linear in layout.linears}
    return PrecisionPlan(precisions=chosen, levels=levels)


def logits(model: LlamaForCausalLM) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.arange(24).reshape(2, 12)).logits
    return found


MIXED = [(0, 1, 2), (2, 0, 0), (1, 2, 1), (2, 2, 2), (0, 0, 0)]


@pytest.mark.parametrize("shape", ["per-layer", "uniform"])
@pytest.mark.parametrize(("packed", "host"), [(False, False), (True, False), (True, True)])
def test_a_plan_of_mixed_levels_equals_the_model_cut_that_way_bit_for_bit(
    tiny_model: LlamaForCausalLM, shape: str, packed: bool, host: bool
) -> None:
    joint = joint_of(tiny_model, shape, packed, host)
    for seed, levels in enumerate(MIXED):
        plan = random_plan(joint.layout, levels, seed)
        joint.bank.apply(plan)
        found = logits(joint.bank.model)
        model, layout = joint.cut(levels)
        Bank(model, layout, PRECISIONS, CPU).apply(replace(plan, levels=()))
        assert torch.equal(found, logits(model))


def test_bytes_of_a_mixed_plan_are_those_of_the_packed_model(tiny_model: LlamaForCausalLM) -> None:
    joint = joint_of(tiny_model)
    for seed, levels in enumerate(MIXED):
        plan = random_plan(joint.layout, levels, seed)
        counted = joint.bank.packed_bytes(plan)
        model, layout = joint.cut(levels)
        pack_(model, layout, plan, torch.float32)
        assert counted == packed_bytes(model) == plan_bytes(layout, plan, precision_formats())


def test_without_levels_a_plan_means_level_0(tiny_model: LlamaForCausalLM) -> None:
    joint = joint_of(tiny_model)
    plan = random_plan(joint.layout, (), 7)
    joint.bank.apply(plan)
    found = logits(joint.bank.model)
    joint.bank.apply(replace(plan, levels=(2, 1, 2)))
    joint.bank.apply(replace(plan, levels=(0, 0, 0)))
    assert torch.equal(logits(joint.bank.model), found)
    assert joint.bank.packed_bytes(plan) == joint.bank.packed_bytes(replace(plan, levels=(0,) * 3))


@pytest.mark.parametrize("host", [False, True])
def test_restore_gives_back_level_0_at_its_own_weights(
    tiny_model: LlamaForCausalLM, host: bool
) -> None:
    joint = joint_of(tiny_model, packed=host, host=host)
    before = {name: value.clone() for name, value in joint.bank.model.state_dict().items()}
    joint.bank.apply(random_plan(joint.layout, (2, 1, 0), 3))
    joint.bank.restore()
    after = joint.bank.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    model, _ = joint.cut((0, 0, 0))
    assert torch.equal(logits(joint.bank.model), logits(model))


def test_one_layer_and_one_linear_change_alone(tiny_model: LlamaForCausalLM) -> None:
    joint = joint_of(tiny_model)
    joint.bank.set_level(1, 2)
    model, layout = joint.cut((0, 2, 0))
    assert torch.equal(logits(joint.bank.model), logits(model))
    name = next(linear.name for linear in layout.linears if linear.layer == 1)
    joint.bank.set(name, "nf4")
    Bank(model, layout, PRECISIONS, CPU).set(name, "nf4")
    assert torch.equal(logits(joint.bank.model), logits(model))


def test_levels_share_all_but_their_decoder_layers(tiny_model: LlamaForCausalLM) -> None:
    layout = llama.layout(tiny_model.config.to_dict())
    other = with_layers_of_its_own(tiny_model, layout)
    places = {name: p.data_ptr() for name, p in tiny_model.named_parameters()}
    for name, parameter in other.named_parameters():
        is_shared = parameter.data_ptr() == places[name]
        assert is_shared == (not name.startswith(layout.layer_prefix))
    assert other.config is not tiny_model.config


def test_levels_that_are_not_there_are_refused_and_change_nothing(
    tiny_model: LlamaForCausalLM,
) -> None:
    joint = joint_of(tiny_model)
    before = logits(joint.bank.model)
    plan = random_plan(joint.layout, (0, 1, 3), 0)
    with pytest.raises(BadInputError, match="levels up to 3"):
        joint.bank.apply(plan)
    with pytest.raises(BadInputError, match="gives 2 layers"):
        joint.bank.packed_bytes(replace(plan, levels=(0, 1)))
    with pytest.raises(BadInputError, match="int3"):
        joint.bank.apply(replace(PrecisionPlan.uniform(joint.layout, "int3"), levels=(1, 1, 1)))
    with pytest.raises(BadInputError, match="does not have"):
        joint.bank.set("model.layers.9.mlp.up_proj", "nf4")
    assert torch.equal(logits(joint.bank.model), before)


def test_a_precision_that_one_level_cannot_carry_is_held_by_the_others(
    tiny_model: LlamaForCausalLM,
) -> None:
    layout = llama.layout(tiny_model.config.to_dict())
    kinds = ("mlp_channels",)
    spec = PruningSpec(ratio=0.31, protect_first=0, protect_last=0, width_multiple=1, kinds=kinds)
    narrow = select(layout, None, spec)
    level = Level(ratio=0.31, plan=narrow.plan, layout=narrow.layout)
    own = Level(ratio=0.0, plan=PruningPlan(kept={}), layout=layout)
    models = (m.model for m in level_models(loaded(tiny_model, layout), (own, level)))
    bank = LevelBank(models, [layout, narrow.layout], PRECISIONS, CPU)
    before = logits(bank.model)
    plan = PrecisionPlan.uniform(layout, "nf4")
    with pytest.raises(IncompatibleShapeError, match="down_proj"):
        bank.apply(replace(plan, levels=(0, 1, 0)))
    assert torch.equal(logits(bank.model), before)
    bank.apply(plan)
    bank.apply(replace(PrecisionPlan.uniform(layout, "int8"), levels=(0, 1, 0)))
    assert not torch.equal(logits(bank.model), before)
    with pytest.raises(IncompatibleShapeError, match="down_proj"):
        LevelBank([tiny_model], [narrow.layout], PRECISIONS, CPU)
