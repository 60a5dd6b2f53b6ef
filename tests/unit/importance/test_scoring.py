"""What scoring hands back, and what it says on the way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scored_models import IDS, build

from qpruner_core.domain.plan import PruningPlan
from qpruner_core.domain.progress import Progress
from qpruner_core.domain.spec import ImportanceSpec
from qpruner_core.errors import BadInputError, DataTooShortError, NonFiniteLossError
from qpruner_core.importance import layer_signal, score, table
from qpruner_core.importance.passes import SEQUENCES_PER_BACKWARD, n_batches
from qpruner_core.importance.random import RandomCriterion
from qpruner_core.models.coupled import coupled_groups
from qpruner_core.models.inputs import TOKENS_PER_BATCH
from qpruner_core.models.trunk import decoder_layers
from qpruner_core.pruning.surgery import prune_


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(4, 128, (24, 128), generator=torch.Generator().manual_seed(1))


def test_all_criteria_land_in_one_table(tiny_model, tiny_layout, ids):
    scores = score(tiny_model, tiny_layout, ids, ImportanceSpec())
    assert list(scores.unit_scores) == ["taylor", "wanda", "flap", "magnitude", "random"]
    assert list(scores.layer_scores) == ["mutual_information", "block_influence"]
    assert scores.n_tokens == 24 * 128
    cells = {(cell.criterion, cell.layer, cell.module): cell.value for cell in table(scores)}
    assert len(cells) == 5 * 2 * 2 + 2 * 2
    taylor = scores.unit_scores["taylor"]["model.layers.1.self_attn"]
    assert cells["taylor", 1, "attention"] == pytest.approx(taylor.mean())
    signal = scores.layer_scores["block_influence"]
    assert cells["block_influence", 0, "layer"] == pytest.approx(signal[0])


def test_progress_goes_up_by_ones_to_its_total(tiny_model, tiny_layout, ids):
    seen: list[Progress] = []
    score(tiny_model, tiny_layout, ids, ImportanceSpec(), seen.append)
    assert (n_batches(ids, SEQUENCES_PER_BACKWARD), n_batches(ids)) == (24, 3)
    assert [report.done for report in seen] == list(range(1, 24 + 3 + 7 + 1))
    assert {report.total for report in seen} == {34}
    assert {report.step for report in seen} == {"score"}


def test_weights_alone_need_no_pass(tiny_model, tiny_layout, ids):
    seen: list[Progress] = []
    score(tiny_model, tiny_layout, ids, ImportanceSpec(criteria=("magnitude",)), seen.append)
    assert [report.message for report in seen] == ["Scored by magnitude"]


def test_long_sequences_go_one_by_one():
    assert n_batches(torch.zeros(3, 2 * TOKENS_PER_BATCH)) == 3
    assert n_batches(torch.zeros(17, TOKENS_PER_BATCH // 8)) == 3


def test_experts_of_a_layer_are_one_mlp_of_the_table_and_whole_ones_another():
    model, layout = build("mixtral")
    scores = score(model, layout, IDS, ImportanceSpec(criteria=("magnitude", "wanda")))
    cells = {(cell.criterion, cell.layer, cell.module): cell.value for cell in table(scores)}
    assert len(cells) == 2 * 3 * 3
    for name, groups in scores.unit_scores.items():
        channels = [groups[f"model.layers.1.mlp.experts.{expert}"] for expert in range(8)]
        assert cells[name, 1, "mlp"] == pytest.approx(np.concatenate(channels).mean())
        assert cells[name, 1, "experts"] == pytest.approx(groups["model.layers.1.mlp"].mean())
    kinds = {(pair.first, pair.second, pair.kind) for pair in scores.agreement}
    assert kinds == {
        ("magnitude", "wanda", kind) for kind in ("kv_heads", "expert_channels", "experts")
    }


def test_one_forward_pass_serves_signals_and_inputs(tiny_model, tiny_layout, ids):
    calls: list[None] = []
    block = tiny_model.model.layers[0].self_attn.o_proj
    block.register_forward_pre_hook(lambda *_: calls.append(None))
    criteria = ("wanda", "flap", "mutual_information", "block_influence")
    score(tiny_model, tiny_layout, ids, ImportanceSpec(criteria=criteria))
    assert len(calls) == n_batches(ids)
    calls.clear()
    criteria = ("taylor", "taylor_second", "taylor_mixed", "magnitude")
    score(tiny_model, tiny_layout, ids, ImportanceSpec(criteria=criteria))
    assert len(calls) == n_batches(ids, SEQUENCES_PER_BACKWARD)


def test_random_scores_follow_the_seed_and_the_name_alone(tiny_model, tiny_layout):
    first, _, third, _ = coupled_groups(tiny_model, tiny_layout)
    scored = RandomCriterion(seed=1).score(first)
    assert torch.equal(scored, RandomCriterion(seed=1).score(first))
    assert not torch.equal(scored, RandomCriterion(seed=2).score(first))
    assert not torch.equal(scored, RandomCriterion(seed=1).score(third))


def test_block_influence_is_one_minus_the_mean_cosine(tiny_model, tiny_layout, ids):
    states = {}
    handles = [
        layer.register_forward_hook(
            lambda _, args, output, index=index: states.update({index: (args[0], output)})
        )
        for index, layer in enumerate(decoder_layers(tiny_model, tiny_layout))
    ]
    with torch.no_grad():
        tiny_model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    expected = [
        1 - torch.cosine_similarity(states[index][0], states[index][1], dim=-1).mean().item()
        for index in range(2)
    ]
    signal = layer_signal("block_influence", tiny_model, tiny_layout, ids)
    np.testing.assert_allclose(signal, expected, atol=1e-5)


def test_a_layer_that_passes_its_input_on_has_no_influence(tiny_model, tiny_layout, ids):
    with torch.no_grad():
        for block in (tiny_model.model.layers[1].self_attn.o_proj, tiny_model.model.layers[1].mlp):
            for parameter in block.parameters():
                parameter.zero_()
    signal = layer_signal("block_influence", tiny_model, tiny_layout, ids)
    assert signal[0] > 0.01
    assert signal[1] == pytest.approx(0.0, abs=1e-6)


def test_signals_answer_for_a_pruned_model_too(tiny_model, tiny_layout, ids):
    plan = PruningPlan(kept={"model.layers.0.mlp": (1, 5), "model.layers.1.self_attn": (0,)})
    pruned = prune_(tiny_model, tiny_layout, plan)
    options = {"n_samples": 256, "n_components": 2}
    signal = layer_signal("mutual_information", tiny_model, pruned, ids, options, seed=1)
    assert signal.shape == (2,)
    assert (signal >= 0.0).all()


def test_a_unit_criterion_is_no_layer_signal(tiny_model, tiny_layout, ids):
    with pytest.raises(BadInputError, match="mutual_information_gaussian, block_influence"):
        layer_signal("taylor", tiny_model, tiny_layout, ids)


@pytest.mark.parametrize(
    ("criterion", "shape"), [("block_influence", (0, 16)), ("taylor", (0, 16)), ("taylor", (4, 1))]
)
def test_no_calibration_text_says_to_choose_a_longer_one(
    tiny_model, tiny_layout, criterion, shape
):
    ids = torch.zeros(shape, dtype=torch.int64)
    with pytest.raises(DataTooShortError, match="longer text"):
        score(tiny_model, tiny_layout, ids, ImportanceSpec(criteria=(criterion,)))


@pytest.mark.parametrize("criterion", ["taylor", "magnitude", "mutual_information"])
def test_damaged_weights_are_named_and_gradients_cleared(tiny_model, tiny_layout, ids, criterion):
    with torch.no_grad():
        tiny_model.model.layers[1].mlp.up_proj.weight[3, 3] = float("inf")
    with pytest.raises(NonFiniteLossError, match="While scoring"):
        score(tiny_model, tiny_layout, ids, ImportanceSpec(criteria=(criterion,)))
    assert all(parameter.grad is None for parameter in tiny_model.parameters())
    assert all(parameter.requires_grad for parameter in tiny_model.parameters())
