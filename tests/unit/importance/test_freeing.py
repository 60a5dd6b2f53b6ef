"""Scoring by gradients needs the weights and one layer's gradients, whatever is scored at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scored_models import CONFIGS, IDS, build

from qpruner_core.domain.progress import Progress
from qpruner_core.domain.spec import ImportanceSpec
from qpruner_core.importance import score
from qpruner_core.importance.freeing import Freeing
from qpruner_core.models.coupled import CoupledGroup, coupled_groups

TAYLOR = ("taylor", "taylor_second", "taylor_mixed")


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("criteria", [TAYLOR[:1], TAYLOR])
def test_gradients_of_two_layers_never_exist_together(family, criteria):
    model, layout = build(family)
    layers = {
        name: int(name.removeprefix(layout.layer_prefix + ".").split(".")[0])
        for name, _ in model.named_parameters()
        if name.startswith(layout.layer_prefix + ".")
    }
    largest = max(
        sum(model.get_parameter(n).nbytes for n, of in layers.items() if of == layer)
        for layer in range(layout.n_layers)
    )
    held: list[tuple[set[int | None], int]] = []

    def look(_: torch.Tensor) -> None:
        alive = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        held.append(({layers.get(n) for n in alive}, sum(g.nbytes for g in alive.values())))

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(look)
    score(model, layout, IDS, ImportanceSpec(criteria=criteria))
    assert {frozenset(of) for of, _ in held} == {frozenset({i}) for i in range(layout.n_layers)}
    assert 0 < max(size for _, size in held) <= largest
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_a_dense_model_holds_the_gradients_of_one_group(family):
    model, layout = build(family)
    sizes = [sum(p.nbytes for p in g.parameters) for g in coupled_groups(model, layout)]
    held: list[int] = []

    def look(_: torch.Tensor) -> None:
        held.append(sum(p.grad.nbytes for p in model.parameters() if p.grad is not None))

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(look)
    score(model, layout, IDS, ImportanceSpec(criteria=TAYLOR))
    assert max(held) <= max(sizes)


def test_every_group_is_shown_once_per_backward_pass_and_frees_what_no_other_owns():
    model, layout = build("mixtral")
    shown: list[CoupledGroup] = []
    freeing = Freeing(coupled_groups(model, layout), shown.append)
    with freeing.listening():
        for sequence in IDS[:2]:
            model(sequence[None], labels=sequence[None]).loss.backward()
            freeing.finish_all()
            names = [group.name for group in shown]
            assert sorted(names) == sorted(group.name for group in layout.groups)
            shown.clear()
    assert all(parameter.grad is None for parameter in freeing.parameters)
    model(IDS, labels=IDS).loss.backward()
    assert any(parameter.grad is not None for parameter in freeing.parameters)
    assert not shown


def test_an_expert_without_tokens_is_worth_nothing_to_criteria_of_text_and_named():
    model, layout = build("mixtral")
    ids = IDS[:1, :3]  # three tokens reach at most six of the eight experts of a layer
    spec = ImportanceSpec(criteria=(*TAYLOR, "wanda", "flap", "magnitude"))
    scores = score(model, layout, ids, spec)
    idle = idle_experts(model, layout, ids)
    assert len(idle) >= 3 * 2
    for name in (*TAYLOR, "wanda", "flap"):
        assert not any(scores.unit_scores[name][expert].any() for expert in idle)
    for group in layout.groups:
        if group.kind == "expert_channels" and group.name not in idle:
            assert scores.unit_scores["wanda"][group.name].any()
    assert all(scores.unit_scores["magnitude"][name].all() for name in idle)
    (sentence,) = scores.warnings
    assert sentence.startswith(f"{len(idle)} of 24 experts")
    assert sentence.count("3 calibration tokens") == 1


def test_nothing_is_said_of_experts_where_no_text_was_looked_at():
    model, layout = build("mixtral")
    assert score(model, layout, IDS[:1], ImportanceSpec(criteria=("magnitude",))).warnings == ()
    llama, its_layout = build("llama")
    assert score(llama, its_layout, IDS[:1], ImportanceSpec(criteria=("wanda",))).warnings == ()


def idle_experts(model: Any, layout: Any, ids: torch.Tensor) -> set[str]:
    names = [group.name for group in layout.groups if group.kind == "expert_channels"]
    reached: set[str] = set()
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: reached.add(name) if args[0].numel() else None
        )
        for name in names
    ]
    with torch.no_grad():
        model(ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return set(names) - reached


@pytest.mark.parametrize("criterion", ["taylor", "wanda"])
def test_a_stop_in_the_middle_leaves_the_model_as_it_was(criterion):
    model, layout = build("mixtral")
    model.train()

    def stop(progress: Progress) -> None:
        raise KeyboardInterrupt(progress.message)

    with pytest.raises(KeyboardInterrupt):
        score(model, layout, IDS, ImportanceSpec(criteria=(criterion,)), stop)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())
    for parameter in model.parameters():
        assert parameter.requires_grad
        assert parameter.grad is None
        assert not parameter._post_accumulate_grad_hooks


@pytest.mark.parametrize("criterion", [*TAYLOR, "wanda", "flap", "magnitude"])
def test_models_in_bfloat16_are_scored_in_float32(criterion):
    model, layout = build("llama")
    spec = ImportanceSpec(criteria=(criterion,))
    wide = score(model.bfloat16().double(), layout, IDS, spec).unit_scores[criterion]
    narrow = score(model.bfloat16(), layout, IDS, spec).unit_scores[criterion]
    for name, values in narrow.items():
        assert values.dtype == np.float32
        np.testing.assert_allclose(values.sum(), wide[name].sum(), rtol=0.1)
