"""The moments of what enters a Linear are those of all its tokens at once."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from qpruner_core.errors import DataTooShortError, NonFiniteLossError
from qpruner_core.models.inputs import (
    InputStats,
    input_statistics,
    micro_batches,
    output_projections,
    watching,
)

CPU = torch.device("cpu")


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(4, 128, (20, 128), generator=torch.Generator().manual_seed(1))


def assert_moments(stats: InputStats, rows: torch.Tensor, rtol: float = 1e-6) -> None:
    rows = rows.double()
    assert stats.n_tokens == len(rows)
    torch.testing.assert_close(stats.mean, rows.mean(0), rtol=rtol, atol=1e-9)
    away = (rows - rows.mean(0)).square().sum(0)
    torch.testing.assert_close(stats.deviations, away, rtol=rtol, atol=1e-9)
    torch.testing.assert_close(stats.norm, rows.square().sum(0).sqrt(), rtol=rtol, atol=1e-9)


def test_a_large_mean_does_not_cancel_a_small_deviation():
    rows = 1e6 + torch.randn(1500, 3, dtype=torch.float64)
    stats = InputStats(3, CPU)
    for batch in rows.split((700, 1, 300, 499)):
        stats.add(batch)
    assert_moments(stats, rows)


def test_no_token_is_changed_or_kept():
    batch = torch.randn(2, 5, 4, dtype=torch.float64)
    before = batch.clone()
    stats = InputStats(4, CPU)
    stats.add(batch)
    assert torch.equal(batch, before)
    assert stats.mean.shape == stats.deviations.shape == stats.norm.shape == (4,)


def test_before_the_first_token_all_moments_are_zero():
    stats = InputStats(4, CPU)
    stats.add(torch.zeros(0, 4))
    assert stats.n_tokens == 0
    assert not any(values.any() for values in (stats.mean, stats.deviations, stats.norm))


def test_modules_are_watched_inside_the_context_alone():
    linear, conv = nn.Linear(6, 3), Conv1D(4, 6)
    rows = torch.randn(10, 6)
    with watching({"a": linear, "b": conv, "never": nn.Linear(2, 2)}) as stats:
        linear(rows[:4])
        linear(rows[4:])
        conv(rows.reshape(2, 5, 6))
    linear(rows)
    assert_moments(stats["a"], rows)
    assert_moments(stats["b"], rows)
    assert stats["never"].n_tokens == 0
    assert stats["never"].mean.shape == (2,)
    assert not linear._forward_pre_hooks


def test_a_pass_over_the_text_sees_what_the_whole_model_sees(tiny_model, tiny_layout, ids):
    names = output_projections(tiny_layout).values()
    expected: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    handles = [
        tiny_model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: expected[name].append(args[0].flatten(0, 1))
        )
        for name in names
    ]
    with torch.no_grad():
        tiny_model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    done: list[None] = []
    stats = input_statistics(tiny_model, tiny_layout, ids, names, lambda: done.append(None))
    assert len(done) == len(list(micro_batches(ids))) == 3
    assert list(stats) == list(expected)
    for name, rows in expected.items():
        assert_moments(stats[name], torch.cat(rows), rtol=1e-4)


def test_the_output_projection_is_where_units_are_inputs(tiny_layout):
    assert output_projections(tiny_layout) == {
        f"model.layers.{i}.{group}": f"model.layers.{i}.{group}.{role}"
        for i in range(2)
        for group, role in (("self_attn", "o_proj"), ("mlp", "down_proj"))
    }


def test_a_pass_leaves_the_model_as_it_was(tiny_model, tiny_layout, ids):
    tiny_model.model.layers[1].train()
    modes = [module.training for module in tiny_model.modules()]
    input_statistics(tiny_model, tiny_layout, ids[:1], ["model.layers.0.mlp.down_proj"])
    assert [module.training for module in tiny_model.modules()] == modes
    assert not any(module._forward_pre_hooks for module in tiny_model.modules())


def test_a_linear_that_values_overflow_into_is_named(tiny_model, tiny_layout, ids):
    with torch.no_grad():
        tiny_model.model.layers[0].mlp.up_proj.weight[3, 3] = float("inf")
    name = "model.layers.0.mlp.down_proj"
    with pytest.raises(NonFiniteLossError, match=name):
        input_statistics(tiny_model, tiny_layout, ids[:1], [name])


def test_without_text_it_says_what_to_choose(tiny_model, tiny_layout):
    with pytest.raises(DataTooShortError, match="longer text"):
        input_statistics(tiny_model, tiny_layout, torch.zeros(0, 16, dtype=torch.int64), [])
